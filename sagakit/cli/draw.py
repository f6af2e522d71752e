"""Sagas as people read them: a tree of one, a table of many, a plan to replay, and (from its module) a timeline."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from sagakit.cli.lanes import earlier_attempts
from sagakit.cli.signs import STEP_STYLES, Signs, signs
from sagakit.cli.table import table
from sagakit.cli.timeline import headline, timeline
from sagakit.cli.wording import first_line, fit, moment, printable, short_names, span
from sagakit.cli.wording import tags as tag_words
from sagakit.clock import utcnow
from sagakit.errors import ErrorInfo
from sagakit.history import AttemptRecord, SagaRecord, StepRecord
from sagakit.states import OPEN_SAGA_STATES, Kind, SagaState, StepState

if TYPE_CHECKING:
    from sagakit.client.operating import ReplayPlan

_ATTEMPTS = {"retried": "failed", "lost": "was lost with its worker", "unknown": "ended unknown"}

__all__ = ["plan", "table", "timeline", "tree"]


@dataclass(frozen=True, slots=True)
class SagaTree:
    """One saga: its steps with their attempts, its compensations, the account of both, and who intervened."""

    record: SagaRecord
    payloads: bool
    tracebacks: bool
    now: datetime | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _TreeDrawing(self, signs(options)).draw()


def tree(
    record: SagaRecord, *, payloads: bool = False, tracebacks: bool = False, now: datetime | None = None
) -> RenderableType:
    """One saga as a tree: state, attempts, times, errors, and the compensation ledger.

    Args:
        record: the saga, from ``handle.history()``.
        payloads: show input, arguments and results as well.
        tracebacks: show whole tracebacks instead of the error's first line.
        now: the time up to which unfinished steps have taken; by default this machine's.
    """
    return SagaTree(record, payloads, tracebacks, now)


class _TreeDrawing:
    def __init__(self, given: SagaTree, signs: Signs) -> None:
        self.record = given.record
        self.payloads = given.payloads
        self.tracebacks = given.tracebacks
        self.now = given.now or utcnow()
        self.signs = signs
        self.names = short_names(step.name for step in self.record.steps)
        self.by_position = {step.position: step for step in self.record.steps}
        self.width = max((len(self._name(step)) for step in self.record.steps), default=0)

    def _name(self, step: StepRecord) -> str:
        return printable(self.names[step.name])

    def draw(self) -> Tree:
        top = Tree(self._head(), guide_style="dim")
        forward = [step for step in self.record.steps if step.kind in (Kind.STEP, Kind.TIMER)]
        undoing = [step for step in self.record.steps if step.kind not in (Kind.STEP, Kind.TIMER)]
        if forward:
            self._branch(top.add(Text("steps", style="bold")), forward)
        if undoing:
            self._branch(top.add(Text("compensations", style="bold")), undoing)
        self._account(top)
        if self.record.audit:
            branch = top.add(Text("operators", style="bold"))
            for entry in self.record.audit:
                line = Text(f"{moment(entry.at)}  ", style="dim")
                line.append(printable(f"{entry.action} by {entry.actor}"), style="default not dim")
                if entry.reason:
                    line.append(f": {printable(entry.reason)}")
                branch.add(line)
        return top

    def _head(self) -> Text:
        record = self.record
        head = headline(record, self.signs, self.now)
        facts = [moment(record.created_at)]
        if record.priority is not None:
            facts.append(f"priority {record.priority}")
        if record.deadline_at is not None:
            facts.append(f"deadline {moment(record.deadline_at)}")
        if record.tags:
            facts.append(tag_words(record.tags))
        head.append("\n" + f" {self.signs.dot} ".join(facts), style="dim not bold")
        if record.error is not None:
            where = f"failed at {printable(record.failed_step)}: " if record.failed_step else ""
            head.append(f"\n{where}", style="not bold")
            head.append(self._error(record.error), style="red not bold")
        if record.trouble is not None:
            head.append("\nstuck: ", style="not bold")
            head.append(self._error(record.trouble), style="magenta not bold")
        if self.payloads:
            head.append(f"\ninput   {_payload(record.input)}", style="not bold")
            if record.state is SagaState.COMPLETED:
                head.append(f"\nresult  {_payload(record.result)}", style="not bold")
        return head

    def _branch(self, branch: Tree, steps: Sequence[StepRecord]) -> None:
        for step in steps:
            branch.add(self._step(step))

    def _step(self, step: StepRecord) -> Text:
        line = Text(self.signs.step[step.state], style=STEP_STYLES[step.state])
        line.append(f" {self._name(step):<{self.width}}  ", style="default not dim not bold")
        line.append(f"{step.state.value:<9}")
        line.append(f"  {self._took(step):>6}  {self._offset(step):>7}", style="default not bold")
        for remark in self._remarks(step):
            line.append(f"  {remark}", style="default not dim not bold")
        if step.error is not None:
            style = (
                "default not bold"
                if step.state in (StepState.SUCCEEDED, StepState.CANCELLED)
                else "red not bold"
            )
            line.append(f"\n  {self._error(step.error)}", style=style)
        for attempt in earlier_attempts(self.record, step):
            line.append(f"\n  {self.signs.retry} ", style="default not bold")
            line.append(self._attempt(attempt), style="default not bold")
        if self.payloads and step.kind is Kind.STEP:
            line.append(f"\n  args    {_payload(step.args)}", style="default not bold")
            if step.state is StepState.SUCCEEDED:
                line.append(f"\n  result  {_payload(step.result)}", style="default not bold")
        return line

    def _attempt(self, attempt: AttemptRecord) -> str:
        took = ""
        if attempt.started_at is not None:
            took = f" after {span(attempt.finished_at - attempt.started_at)}"
        why = f": {self._error(attempt.error)}" if attempt.error else ""
        return f"attempt {attempt.attempt} {_ATTEMPTS.get(attempt.outcome, attempt.outcome)}{took}{why}"

    def _took(self, step: StepRecord) -> str:
        start = step.scheduled_at if step.kind is Kind.TIMER else step.started_at
        if start is None or (step.state is StepState.SCHEDULED and step.kind is not Kind.TIMER):
            return ""
        return span((step.finished_at or self.now) - start)

    def _offset(self, step: StepRecord) -> str:
        return f"+{span((step.started_at or step.scheduled_at) - self.record.created_at)}"

    def _remarks(self, step: StepRecord) -> Iterator[str]:
        if step.compensates is not None and step.compensates in self.by_position:
            verb = "probes" if step.kind is Kind.PROBE else "of"
            yield f"{verb} {self._name(self.by_position[step.compensates])}"
        if step.attempt > 1:
            yield f"x{step.attempt}"
        if step.abandoned:
            yield "abandoned by the body"
        if step.lost:
            yield f"{step.lost} lost with a worker"
        if step.state is StepState.SCHEDULED and step.due_at is not None:
            yield f"due in {span(step.due_at - self.now)}" if step.due_at > self.now else "due now"
        if step.state is StepState.SCHEDULED and step.queue:
            yield f"queue {printable(step.queue)}"
        if step.state is StepState.RUNNING and step.owner:
            yield f"on {printable(step.owner)}"

    def _error(self, error: ErrorInfo) -> str:
        if self.tracebacks and error.traceback:
            return printable(error.traceback.rstrip())
        return first_line(str(error))

    def _account(self, top: Tree) -> None:
        if self.record.state in OPEN_SAGA_STATES:
            return
        rows = [
            ("undone", self.record.compensated, "yellow"),
            ("NOT undone", self.record.not_compensated, "bold red"),
            ("unknown", self.record.unknown, "bold magenta"),
        ]
        if not any(names for _, names, _ in rows):
            return
        branch = top.add(Text("account", style="bold"))
        for label, names, style in rows:
            if names:
                line = Text(f"{label:<10}", style=style)
                line.append(f"  {printable(', '.join(names))}", style="default not bold")
                branch.add(line)


def _payload(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))


def plan(plan: "ReplayPlan") -> RenderableType:
    """What a replay of compensations will undo, and what it leaves."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    undo, left = plan.undo, plan.left
    names = short_names([*(entry.step for entry in (*undo, *left))])
    for verb, style, entries in (("undo", "yellow", undo), ("leave", "dim", left)):
        for entry in entries:
            lines.add_row(
                Text(f"  {verb}", style=style),
                Text(printable(names[entry.step])),
                Text(f"by {printable(entry.compensation)}" if verb == "undo" and entry.compensation else ""),
                Text(printable(entry.reason), style="dim"),
            )
    if not undo:
        lines.add_row(Text("  nothing to undo", style="dim"), Text(), Text(), Text())
    return lines


def cut(text: str, width: int = 72) -> str:
    """One line of foreign text, cut."""
    return fit(first_line(text), width)
