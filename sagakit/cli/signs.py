"""The signs and colours that stand for states: one set for UTF-8 terminals, one for plain ASCII."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import ConsoleOptions

from sagakit.states import Kind, SagaState, StepState

SAGA_STYLES: Mapping[SagaState, str] = {
    SagaState.PENDING: "dim",
    SagaState.RUNNING: "cyan",
    SagaState.COMPENSATING: "yellow",
    SagaState.COMPLETED: "green",
    SagaState.COMPENSATED: "yellow",
    SagaState.COMPENSATION_FAILED: "bold red",
    SagaState.STUCK: "bold magenta",
    SagaState.PAUSED: "blue",
}

STEP_STYLES: Mapping[StepState, str] = {
    StepState.SCHEDULED: "dim",
    StepState.RUNNING: "cyan",
    StepState.SUCCEEDED: "green",
    StepState.FAILED: "red",
    StepState.UNKNOWN: "bold magenta",
    StepState.CANCELLED: "dim",
    StepState.SKIPPED: "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Everything that is drawn and is not a word. Each sign is one cell wide.

    Attributes:
        work: a bar of a step that runs or ran.
        undo: a bar of a compensation.
        spent: a bar of an attempt that failed.
        waiting: a row that is decided and waits for a worker or for its next attempt.
        timer: a bar of a durable timer.
        retry: the end of an attempt after which another one followed.
        cut: idle time left out of a timeline.
    """

    saga: Mapping[SagaState, str]
    step: Mapping[StepState, str]
    kind: Mapping[Kind, str]
    work: str
    undo: str
    spent: str
    waiting: str
    timer: str
    retry: str
    cut: str
    rule: str
    tick: str
    ellipsis: str
    dot: str


UNICODE = Signs(
    saga={
        SagaState.PENDING: "○",
        SagaState.RUNNING: "►",
        SagaState.COMPENSATING: "↶",
        SagaState.COMPLETED: "✓",
        SagaState.COMPENSATED: "↶",
        SagaState.COMPENSATION_FAILED: "✗",
        SagaState.STUCK: "!",
        SagaState.PAUSED: "‖",
    },
    step={
        StepState.SCHEDULED: "○",
        StepState.RUNNING: "►",
        StepState.SUCCEEDED: "✓",
        StepState.FAILED: "✗",
        StepState.UNKNOWN: "?",
        StepState.CANCELLED: "⊘",
        StepState.SKIPPED: "–",
    },
    kind={Kind.STEP: " ", Kind.COMPENSATION: "↶", Kind.PROBE: "◇", Kind.TIMER: "◷"},
    work="█",
    undo="▒",
    spent="░",
    waiting="·",
    timer="─",
    retry="↻",
    cut="┄",
    rule="─",
    tick="┬",
    ellipsis="…",
    dot="·",
)

ASCII = Signs(
    saga={
        SagaState.PENDING: "o",
        SagaState.RUNNING: ">",
        SagaState.COMPENSATING: "<",
        SagaState.COMPLETED: "+",
        SagaState.COMPENSATED: "<",
        SagaState.COMPENSATION_FAILED: "x",
        SagaState.STUCK: "!",
        SagaState.PAUSED: "=",
    },
    step={
        StepState.SCHEDULED: "o",
        StepState.RUNNING: ">",
        StepState.SUCCEEDED: "+",
        StepState.FAILED: "x",
        StepState.UNKNOWN: "?",
        StepState.CANCELLED: "/",
        StepState.SKIPPED: "-",
    },
    kind={Kind.STEP: " ", Kind.COMPENSATION: "<", Kind.PROBE: "?", Kind.TIMER: "~"},
    work="#",
    undo="=",
    spent="-",
    waiting=".",
    timer="_",
    retry="@",
    cut="~",
    rule="-",
    tick="+",
    ellipsis="~",
    dot="-",
)


def signs(options: ConsoleOptions) -> Signs:
    """The signs that the console can show."""
    return ASCII if options.ascii_only else UNICODE
