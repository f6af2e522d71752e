"""Runs a body over its ledger: feeds what has been resolved, and collects what the body newly asks for."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sagakit.codec import bounded
from sagakit.coordinator.context import Saga
from sagakit.coordinator.ledger import NewRow, Resolution, SagaRow, StepRow, Undo
from sagakit.coordinator.loop import LedgerLoop, OrderedTask, StepFuture
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import Step
from sagakit.errors import (
    BodyWaitsInVain,
    LedgerTooLong,
    NonDeterminismError,
    SagakitError,
    StepCancelled,
    StepFailed,
    StepNotAwaited,
    StepUnknown,
    UseAStep,
)
from sagakit.states import OPEN_STEP_STATES, Kind, StepState

_COMMAND_KINDS = frozenset({Kind.STEP, Kind.TIMER})
_TOLERANCE = 1e-6
"""Due times are stored to the microsecond, loop time is a float: a timer due within one microsecond is due."""

_TIMER_NAMES = {
    "_set_result_unless_cancelled": "sleep",
    "Timeout._on_timeout": "timeout",
    "_release_waiter": "timeout",
    "as_completed.<locals>._on_timeout": "timeout",
    "_AsCompletedIterator._handle_timeout": "timeout",
}


@dataclass(slots=True, eq=False)
class Command:
    """One thing the body asked for: a step or a timer."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a body may write."""

    rows: int = 10_000
    payload: int = 2 * 1024 * 1024
    payload_warning: int = 256 * 1024


@dataclass(slots=True)
class Progress:
    """What one replay found out, beyond what the ledger holds already."""

    now: datetime
    started_at: datetime
    last_seq: int
    resolved: list[Resolution] = field(default_factory=list)
    inserted: list[NewRow] = field(default_factory=list)
    withdraw: list[int] = field(default_factory=list)
    abandoned: list[int] = field(default_factory=list)
    wake_at: datetime | None = None
    done: bool = False
    returned: Any = None
    raised: BaseException | None = None


class Replay:
    """One body on one loop, over the ledger of one saga.

    Args:
        saga: the saga's row.
        rows: all its rows.
        definition: the saga's definition, in the version the row names.
        now: the database's time.
        limits: bounds on what the body may write.
    """

    def __init__(
        self,
        saga: SagaRow,
        rows: Sequence[StepRow],
        definition: SagaDefinition[Any, Any],
        *,
        now: datetime,
        limits: Limits | None = None,
    ) -> None:
        self.saga = saga
        self.definition = definition
        self.limits = limits or Limits()
        self._rows = rows
        self._by_key = {row.path: row for row in rows if row.path is not None}
        self._commands: dict[str, Command] = {}
        self._by_future: dict[int, Command] = {}
        self._timers: dict[int, Command] = {}
        self._new: list[Command] = []
        self._historical = saga.started_at is not None
        self._first_position = max((row.position for row in rows), default=-1) + 1
        self._fault: SagakitError | None = None
        self._closing = False
        self._over = False
        self._left: list[OrderedTask[Any]] = []
        self._exit: SystemExit | None = None
        # Ledger time never goes backwards, whatever the database's clock does.
        now = max(now, saga.ledger_at or now)
        self.progress = Progress(now=now, started_at=saga.started_at or now, last_seq=saga.last_seq)
        # What a real loop must have and this one refuses is added to the class when it is defined.
        self.loop = LedgerLoop(self)  # type: ignore[abstract]
        self._main: OrderedTask[Any] | None = None

    def run(self) -> Progress:
        """Feed the ledger's history, then what is new; return what the body decided.

        Raises:
            NonDeterminismError: the body no longer does what the ledger says it did.
            NotDecodable: the saga's input or a step's stored result no longer fits its type.
        """
        try:
            self._begin()
            self._feed_history()
            self._feed_news()
            self._conclude()
        finally:
            self.loop.close()
        return self.progress

    # Feeding.

    def _begin(self) -> None:
        saga = Saga(self)
        arguments: tuple[Any, ...] = (saga,)
        if self.definition.takes_input:
            arguments += (self.definition.input_codec.loads(self.saga.input or "null"),)
        self._move_to(self.progress.started_at)
        self._main = self.loop.start(self.definition.body(*arguments))  # type: ignore[arg-type]
        self._drain()

    def _feed_history(self) -> None:
        known = [row for row in self._rows if row.resolved_seq is not None and row.kind in _COMMAND_KINDS]
        for row in sorted(known, key=lambda row: row.resolved_seq or 0):
            self._move_to(row.resolved_at or self.progress.now)
            self._feed(row)
        missing = [row for row in self._rows if row.kind in _COMMAND_KINDS and row.path not in self._commands]
        if missing:
            raise self._diverged(f"{missing[0].kind} {missing[0].name!r}", self._found_instead())
        self._historical = False

    def _found_instead(self) -> str:
        """What the body did where the ledger has another row: nothing, as far as its commands go."""
        if self._main is None or not self._main.done():
            return "no such command"
        error = None if self._main.cancelled() else self._main.exception()
        return "the end of the body" + (f", which raised {type(error).__name__}: {error}" if error else "")

    def _feed_news(self) -> None:
        self._move_to(self.progress.now)
        # Steps that ended in one and the same commit are fed by position: any fixed order will do.
        for row in self._rows:
            if row.kind is Kind.STEP and row.resolved_seq is None and row.state not in OPEN_STEP_STATES:
                self._record(self._commands[row.path or ""])
                self._feed(row)
        # Recorded outcomes first, then due timers: what has happened beats what has merely run out.
        while (due := self._next_due()) is not None:
            self._record(due, StepState.SUCCEEDED)
            self._fire(due)

    def _next_due(self) -> Command | None:
        due = [
            command
            for command in self._timers.values()
            if command.handle is not None
            and not command.handle.cancelled()
            and command.handle.when() <= self.loop.now + _TOLERANCE
        ]
        return min(due, key=lambda command: (command.handle.when(), command.position), default=None)  # type: ignore[union-attr]

    def _record(self, command: Command, state: StepState | None = None) -> None:
        self.progress.last_seq += 1
        command.resolved_seq = self.progress.last_seq
        if command.row is not None:
            self.progress.resolved.append(
                Resolution(position=command.position, seq=command.resolved_seq, state=state)
            )

    def _feed(self, row: StepRow) -> None:
        command = self._commands.get(row.path or "")
        if command is None:
            raise self._diverged(f"{row.kind} {row.name!r}", self._found_instead())
        if row.kind is Kind.TIMER:
            if row.state is StepState.SUCCEEDED:
                self._fire(command)
            return
        future = command.future
        if self._over or future is None or future.done() or command.withdrawn:
            return  # abandoned by the body
        if row.state is StepState.SUCCEEDED:
            assert command.step is not None
            future.set_result(command.step.result_codec.loads(row.result or "null"))
        else:
            future.set_exception(self._error(command, row))
        self._drain()

    def _fire(self, command: Command) -> None:
        handle = command.handle
        self._timers.pop(id(handle), None)
        if handle is not None and not handle.cancelled() and not self._over:
            self.loop.fire(handle)
            self._drain()

    def _error(self, command: Command, row: StepRow) -> Exception:
        assert command.step is not None
        info = row.error
        if info is None:
            why = (
                "it was withdrawn before it ran"
                if row.state is StepState.CANCELLED
                else "its outcome is unknown"
            )
            return _BY_STATE[row.state](why, step=row.name)
        declared = command.step.rebuild_error(info)
        if declared is not None:
            declared.step = row.name
            declared.ledger_info = info
            return declared
        return _BY_STATE[row.state](info.message, step=row.name, type=info.type, traceback=info.traceback)

    def _move_to(self, at: datetime) -> None:
        self.loop.now = max(self.loop.now, (at - self.progress.started_at).total_seconds())

    def _drain(self) -> None:
        assert self._main is not None
        self._run_ready()
        # asyncio.run cancels what is left the moment the body's own task ends, then closes async generators.
        if (self._main.done() or self._exit is not None) and not self._closing and self._fault is None:
            self._closing = True
            self._check_awaited()
            self._left = self.loop.cancel_left()
            self._run_ready()
            self._let_go_unwatched()
        while self._closing and not self._over and all(task.done() for task in self._left):
            self._left = self.loop.close_generators()
            self._over = not self._left
            self._run_ready()
        if self._fault is not None:
            raise self._fault

    def _run_ready(self) -> None:
        """Run what is ready. A body that calls ``sys.exit()`` has failed like any other."""
        while True:
            try:
                self.loop.drain()
            except SystemExit as exc:
                if _from_the_worker(exc):
                    raise
                self._exit = self._exit or exc
                if not self._closing:
                    return
            else:
                return

    def _let_go_unwatched(self) -> None:
        """The body's own task has ended: a step that no other task of it awaits any more is abandoned."""
        for command in list(self._commands.values()):
            future = command.future
            if future is not None and not future.done() and not future._callbacks:
                self._withdraw(command)

    # What the loop and the body's context report (see loop.Commands).

    @property
    def faulty(self) -> bool:
        return self._fault is not None

    def timer_set(self, handle: asyncio.TimerHandle) -> None:
        if self.loop.dead:
            return
        callback = getattr(handle._callback, "__qualname__", "timer")  # type: ignore[attr-defined]
        command = Command(key=self.loop.next_key(), kind=Kind.TIMER, name=_TIMER_NAMES.get(callback, "timer"))
        command.handle = handle
        self.time_at(handle.when())  # refuses a time no calendar has
        self._issue(command)
        self._timers[id(handle)] = command

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        command = self._timers.pop(id(handle), None)
        if command is not None and not self.loop.dead:
            self._withdraw(command)

    def step_abandoned(self, future: StepFuture[Any]) -> None:
        command = self._by_future.get(id(future))
        if command is not None and not self.loop.dead:
            self._withdraw(command)

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
            command.args = bounded_arguments(step, args, kwargs, self.limits)
        future: StepFuture[Any] = StepFuture(loop=self.loop, commands=self, line=line)
        command.future = future
        self._by_future[id(future)] = command
        self._issue(command)
        return future

    def _issue(self, command: Command) -> None:
        if (
            len(self._commands) >= self.limits.rows
        ):  # counted over commands, so that a replay raises at the same place
            raise LedgerTooLong(
                f"the saga issued more than {self.limits.rows:,} commands: split it, or raise sagakit_ledger_limit"
            )
        row = self._by_key.get(command.key)
        self._commands[command.key] = command
        if row is None:
            if self._historical:
                self._fault = self._fault or self._diverged(
                    "nothing more before the next recorded outcome", str(command)
                )
                return
            command.position = self._first_position + len(self._new)
            self._new.append(command)
            return
        if (row.kind, row.name, row.task) != (command.kind, command.name, command.task):
            self._fault = self._fault or self._diverged(f"{row.kind} {row.name!r}", str(command))
        command.row = row
        command.position = row.position

    def _withdraw(self, command: Command) -> None:
        if command.withdrawn:
            return
        command.withdrawn = True
        row = command.row
        if row is None:
            return
        if command.kind is Kind.STEP and not row.abandoned:
            self.progress.abandoned.append(row.position)
        if row.state in OPEN_STEP_STATES:
            self.progress.withdraw.append(row.position)

    def _diverged(self, expected: str, found: str) -> NonDeterminismError:
        hint = ""
        if self.saga.python and self.saga.python != python_version():
            hint = f"; the saga was started under Python {self.saga.python}, this is {python_version()}"
        return NonDeterminismError(
            f"saga {self.saga.id}: the body of {self.definition.label} ({self.definition.where}) no longer does what "
            f"its ledger says: expected {expected}, found {found}{hint}. Restore the code this saga was started with, "
            f"or declare the change as a new version, then run: saga resume {self.saga.id}",
            expected=expected,
            found=found,
        )

    # Concluding.

    def _check_awaited(self) -> None:
        assert self._main is not None
        if self._exit is not None or self._main.cancelled() or self._main.exception() is not None:
            return
        for command in self._commands.values():
            future = command.future
            if future is not None and not future.awaited and not future.cancelled():
                file, line = future.line
                self.progress.raised = StepNotAwaited(
                    f"{file}:{line}: the step {command.name!r} was started and never awaited: write "
                    f"`await saga.step(...)`, or gather it"
                )
                return

    def _conclude(self) -> None:
        progress = self.progress
        assert self._main is not None
        progress.done = self._over
        if progress.done:
            self._collect_result(self._main)
            for command in self._commands.values():
                self._let_go(command)
        elif not any(self._is_open(command) for command in self._commands.values()):
            raise self._waits_in_vain(self._main)
        progress.inserted = [self._new_row(command) for command in self._new]
        if not progress.done:
            whens = [c.handle.when() for c in self._timers.values() if c.handle and not c.handle.cancelled()]
            progress.wake_at = self.time_at(min(whens)) if whens else None

    def _is_open(self, command: Command) -> bool:
        """Whether something may yet come of a command that the body waits for."""
        if command.kind is Kind.TIMER:
            return id(command.handle) in self._timers
        return command.future is not None and not command.future.done() and not command.withdrawn

    def _waits_in_vain(self, main: OrderedTask[Any]) -> BodyWaitsInVain:
        frame = next(iter(main.get_stack(limit=1)), None)
        where = f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        return BodyWaitsInVain(
            f"saga {self.saga.id}: the body of {self.definition.label} ({self.definition.where}) waits{where} for what "
            "no step and no timer will ever bring, such as an event that nobody sets: await a step, a timer, or a task "
            f"that awaits one, then run: saga resume {self.saga.id}"
        )

    def _collect_result(self, main: OrderedTask[Any]) -> None:
        progress = self.progress
        if self._exit is not None:
            progress.raised = self._exit
        elif main.cancelled():
            progress.raised = asyncio.CancelledError("the body cancelled itself")
        elif progress.raised is None:
            progress.raised = main.exception()
            if progress.raised is None:
                progress.returned = main.result()

    def _let_go(self, command: Command) -> None:
        """The body is over: whatever it still had open is no longer waited for."""
        if command.kind is Kind.TIMER:
            if command.handle is not None and id(command.handle) in self._timers:
                self._withdraw(command)
        elif command.future is not None and not command.future.done():
            self._withdraw(command)

    def _new_row(self, command: Command) -> NewRow:
        state = StepState.CANCELLED if command.withdrawn else StepState.SCHEDULED
        if command.kind is Kind.TIMER:
            assert command.handle is not None
            if command.resolved_seq is not None:
                state = StepState.SUCCEEDED
            elif command.withdrawn:
                command.resolved_seq = self._next_seq()
            return NewRow(
                position=command.position,
                kind=Kind.TIMER,
                name=command.name,
                state=state,
                path=command.key,
                due_at=self.time_at(command.handle.when()),
                resolved_seq=command.resolved_seq,
            )
        step = command.step
        assert step is not None
        return NewRow(
            position=command.position,
            kind=Kind.STEP,
            name=command.name,
            state=state,
            path=command.key,
            task=step.name,
            args=command.args,
            queue=step.queue,
            priority=step.priority if step.priority is not None else self.saga.priority,
            expires_at=self.progress.now + step.expires if step.expires is not None else None,
            time_limit=step.time_limit.total_seconds() if step.time_limit is not None else None,
            undo=undo_of(step),
            resolved_seq=self._next_seq() if command.withdrawn else None,
            abandoned=command.withdrawn,
        )

    def _next_seq(self) -> int:
        self.progress.last_seq += 1
        return self.progress.last_seq

    def time_at(self, when: float) -> datetime:
        """A time of the loop as a time of the calendar."""
        try:
            return self.progress.started_at + timedelta(seconds=when)
        except (OverflowError, ValueError):
            raise ValueError(
                f"a timer {when:g} seconds after the saga's start is beyond any calendar"
            ) from None


_BY_STATE: dict[StepState, type[StepFailed]] = {
    StepState.FAILED: StepFailed,
    StepState.UNKNOWN: StepUnknown,
    StepState.CANCELLED: StepCancelled,
    StepState.SKIPPED: StepCancelled,
}


def bounded_arguments(
    step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limits: Limits
) -> str:
    """A call's arguments as JSON text within the size bound."""
    text = step.signature.arguments.dumps(args, kwargs)
    return bounded(
        text, f"the arguments of {step.label}", limit=limits.payload, warning=limits.payload_warning
    )


def undo_of(step: Step[..., Any]) -> Undo | None:
    """How a step is undone, as data for its row."""
    if step.undo is None and step.find_out is None:
        return None
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


def _from_the_worker(exc: SystemExit) -> bool:
    """Whether the process is being shut down: Celery's and billiard's handlers of signals raise ``SystemExit`` too."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    module = str(tb.tb_frame.f_globals.get("__name__", "")) if tb is not None else ""
    return module.partition(".")[0] in ("billiard", "celery")


def python_version() -> str:
    """The minor version of this Python, on which asyncio's internal order depends."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
