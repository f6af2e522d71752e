"""What a body asks for, matched against what its ledger says it asked for the first time."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sagakit.codec import bounded
from sagakit.coordinator.futures import StepFuture
from sagakit.coordinator.ledger import Limits, NewRow, SagaRow, StepRow, Undo
from sagakit.coordinator.loop import LedgerLoop
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import Step
from sagakit.errors import LedgerTooLong, NonDeterminismError, SagakitError, UseAStep
from sagakit.states import OPEN_STEP_STATES, Kind, StepState

COMMAND_KINDS = frozenset({Kind.STEP, Kind.TIMER})
"""Kinds of rows that a body issues; the others are planned without it."""

_TIMER_NAMES = {
    "_set_result_unless_cancelled": "sleep",
    "Timeout._on_timeout": "timeout",
    "_release_waiter": "timeout",
    "as_completed.<locals>._on_timeout": "timeout",
    "_AsCompletedIterator._handle_timeout": "timeout",
}


@dataclass(slots=True, eq=False)
class Command:
    """One thing the body asked for: a step or a timer.

    Attributes:
        key: path of the asyncio task that issued it, and its number there.
        row: its row, if the ledger has it already.
        withdrawn: the body no longer waits for it.
    """

    key: str
    kind: Kind
    name: str
    task: str | None = None
    position: int = -1
    row: StepRow | None = None
    step: Step[..., Any] | None = None
    args: str | None = None
    future: StepFuture[Any] | None = None
    handle: asyncio.TimerHandle | None = None
    withdrawn: bool = False
    resolved_seq: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} (task path {self.key})"


class CommandLog:
    """All commands of one run of a body.

    The loop and the body's context report to it. While history is fed, each command must have its row; afterwards,
    one without a row is new.

    Args:
        saga: the saga's row.
        rows: all its rows.
        definition: the saga's definition.
        limits: bounds on what the body may write.
        started_at: ledger time of the first advance, which is 0 on the loop.
    """

    def __init__(
        self,
        saga: SagaRow,
        rows: Sequence[StepRow],
        definition: SagaDefinition[Any, Any],
        limits: Limits,
        started_at: datetime,
    ) -> None:
        self.loop = LedgerLoop(self)  # type: ignore[abstract]  # what it refuses is added when the class is defined
        self.fault: SagakitError | None = None
        self.historical = saga.started_at is not None
        self.timers: dict[int, Command] = {}
        self.new: list[Command] = []
        self.abandoned: list[int] = []
        self.to_withdraw: list[int] = []
        self._saga = saga
        self._definition = definition
        self._limits = limits
        self._started_at = started_at
        self._by_key = {row.path: row for row in rows if row.path is not None}
        self._commands: dict[str, Command] = {}
        self._by_future: dict[int, Command] = {}
        self._first_position = max((row.position for row in rows), default=-1) + 1

    def __iter__(self) -> Iterator[Command]:
        return iter(list(self._commands.values()))

    def get(self, key: str | None) -> Command | None:
        """The command of this key, if the body has issued it."""
        return self._commands.get(key or "")

    # What the loop and the body's context report (see loop.Commands).

    @property
    def faulty(self) -> bool:
        return self.fault is not None

    def timer_set(self, handle: asyncio.TimerHandle) -> None:
        if self.loop.dead:
            return
        callback = getattr(handle._callback, "__qualname__", "timer")  # type: ignore[attr-defined]
        command = Command(key=self.loop.next_key(), kind=Kind.TIMER, name=_TIMER_NAMES.get(callback, "timer"))
        command.handle = handle
        self.time_at(handle.when())  # refuses a time no calendar has
        self._issue(command)
        self.timers[id(handle)] = command

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        command = self.timers.pop(id(handle), None)
        if command is not None and not self.loop.dead:
            self.withdraw(command)

    def step_abandoned(self, future: StepFuture[Any]) -> None:
        command = self._by_future.get(id(future))
        if command is not None and not self.loop.dead:
            self.withdraw(command)

    def issue_step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], line: tuple[str, int]
    ) -> StepFuture[Any]:
        """Record that the body asked for a step.

        Raises:
            InvalidInput, NotEncodable, PayloadTooLarge: the arguments cannot be stored.
        """
        if self.loop.dead:
            raise UseAStep(f"{step.label}: this run of the body is over; a step cannot be started any more")
        command = Command(
            key=self.loop.next_key(), kind=Kind.STEP, name=step.row_name, task=step.name, step=step
        )
        if command.key not in self._by_key:
            # Encoding comes before the check against history: arguments that cannot be stored raise here, in the
            # body, every time, and never become a row.
            command.args = _encode(step, args, kwargs, self._limits)
        future: StepFuture[Any] = StepFuture(loop=self.loop, commands=self, line=line)
        command.future = future
        self._by_future[id(future)] = command
        self._issue(command)
        return future

    def _issue(self, command: Command) -> None:
        # Counted over commands, new or not, so that a replay raises at the same place.
        if len(self._commands) >= self._limits.rows:
            raise LedgerTooLong(
                f"the saga issued more than {self._limits.rows:,} commands: split it, or raise sagakit_ledger_limit"
            )
        row = self._by_key.get(command.key)
        self._commands[command.key] = command
        if row is not None:
            if (row.kind, row.name, row.task) != (command.kind, command.name, command.task):
                self._go_astray(f"{row.kind} {row.name!r}", str(command))
            command.row = row
            command.position = row.position
        elif self.historical:
            self._go_astray("nothing more before the next recorded outcome", str(command))
        else:
            command.position = self._first_position + len(self.new)
            self.new.append(command)

    def _go_astray(self, expected: str, found: str) -> None:
        # Not raised here, inside the body, which might catch it: the loop stops, and the replay raises it.
        self.fault = self.fault or self.diverged(expected, found)

    def withdraw(self, command: Command) -> None:
        """Note that the body no longer waits for a command."""
        if command.withdrawn:
            return
        command.withdrawn = True
        row = command.row
        if row is None:
            return
        if command.kind is Kind.STEP and not row.abandoned:
            self.abandoned.append(row.position)
        if row.state in OPEN_STEP_STATES:
            self.to_withdraw.append(row.position)

    def diverged(self, expected: str, found: str) -> NonDeterminismError:
        """The error of a body that no longer does what its ledger says."""
        saga, definition, hint = self._saga, self._definition, ""
        if saga.python and saga.python != python_version():
            hint = f"; the saga was started under Python {saga.python}, this is {python_version()}"
        return NonDeterminismError(
            f"saga {saga.id}: the body of {definition.label} ({definition.where}) no longer does what "
            f"its ledger says: expected {expected}, found {found}{hint}. Restore the code this saga was started with, "
            f"or declare the change as a new version, then run: saga resume {saga.id}",
            expected=expected,
            found=found,
        )

    # What goes to the ledger.

    def time_at(self, when: float) -> datetime:
        """A time of the loop as a time of the calendar.

        Raises:
            ValueError: no calendar has it.
        """
        try:
            return self._started_at + timedelta(seconds=when)
        except (OverflowError, ValueError):
            raise ValueError(
                f"a timer {when:g} seconds after the saga's start is beyond any calendar"
            ) from None

    def timer_row(self, command: Command) -> NewRow:
        """The row of a new timer."""
        assert command.handle is not None
        state = StepState.SCHEDULED
        if command.resolved_seq is not None:
            state = StepState.CANCELLED if command.withdrawn else StepState.SUCCEEDED
        return NewRow(
            position=command.position,
            kind=Kind.TIMER,
            name=command.name,
            state=state,
            path=command.key,
            due_at=self.time_at(command.handle.when()),
            resolved_seq=command.resolved_seq,
        )

    def step_row(self, command: Command, now: datetime) -> NewRow:
        """The row of a new step."""
        step = command.step
        assert step is not None
        return NewRow(
            position=command.position,
            kind=Kind.STEP,
            name=command.name,
            state=StepState.CANCELLED if command.withdrawn else StepState.SCHEDULED,
            path=command.key,
            task=step.name,
            args=command.args,
            queue=step.queue,
            priority=step.priority if step.priority is not None else self._saga.priority,
            expires_at=now + step.expires if step.expires is not None else None,
            time_limit=step.time_limit.total_seconds() if step.time_limit is not None else None,
            undo=undo_of(step),
            resolved_seq=command.resolved_seq,
            abandoned=command.withdrawn,
        )


def _encode(step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limits: Limits) -> str:
    """A call's arguments as JSON text within the size bound."""
    text = step.signature.arguments.dumps(args, kwargs)
    return bounded(
        text, f"the arguments of {step.label}", limit=limits.payload, warning=limits.payload_warning
    )


def undo_of(step: Step[..., Any]) -> Undo | None:
    """How a step is undone, as data for its row; ``None`` if it declares no compensation."""
    undo, probe = step.undo, step.find_out
    if undo is None:
        return None
    return Undo(
        compensation=undo.name,
        name=undo.label,
        accepts_none=undo.accepts_none,
        probe=probe.name if probe else None,
        queue=undo.options.queue or step.queue,
        priority=undo.options.priority if undo.options.priority is not None else step.priority,
    )


def python_version() -> str:
    """The minor version of this Python, on which asyncio's internal order depends."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
