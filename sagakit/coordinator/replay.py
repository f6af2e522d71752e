"""Runs a body over its ledger: feeds what has been resolved, and collects what the body newly asks for."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagakit.coordinator.commands import COMMAND_KINDS, Command, CommandLog
from sagakit.coordinator.context import Saga
from sagakit.coordinator.futures import OrderedTask
from sagakit.coordinator.ledger import Limits, NewRow, Resolution, SagaRow, StepRow
from sagakit.definition.saga import SagaDefinition
from sagakit.errors import BodyWaitsInVain, StepCancelled, StepFailed, StepNotAwaited, StepUnknown
from sagakit.running import is_shutdown
from sagakit.states import OPEN_STEP_STATES, Kind, StepState

_TOLERANCE = 1e-6
"""Due times are stored to the microsecond, loop time is a float: a timer due within one microsecond is due."""


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
        self._rows = rows
        self._closing = False
        self._over = False
        self._left: list[OrderedTask[Any]] = []
        self._exit: SystemExit | None = None
        self._main: OrderedTask[Any] | None = None
        # Ledger time never goes backwards, whatever the database's clock does.
        now = max(now, saga.ledger_at or now)
        started_at = saga.started_at or now
        self.commands = CommandLog(saga, rows, definition, limits or Limits(), started_at)
        self.loop = self.commands.loop
        self.progress = Progress(
            now=now,
            started_at=started_at,
            last_seq=saga.last_seq,
            withdraw=self.commands.to_withdraw,
            abandoned=self.commands.abandoned,
        )

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
        saga = Saga(self.saga, self.commands)
        arguments: tuple[Any, ...] = (saga,)
        if self.definition.takes_input:
            arguments += (self.definition.input_codec.loads(self.saga.input or "null"),)
        self._move_to(self.progress.started_at)
        self._main = self.loop.start(self.definition.body(*arguments))  # type: ignore[arg-type]
        self._drain()

    def _feed_history(self) -> None:
        known = [row for row in self._rows if row.resolved_seq is not None and row.kind in COMMAND_KINDS]
        for row in sorted(known, key=lambda row: row.resolved_seq or 0):
            self._move_to(row.resolved_at or self.progress.now)
            self._feed(row)
        for row in self._rows:
            if row.kind in COMMAND_KINDS and self.commands.get(row.path) is None:
                raise self.commands.diverged(f"{row.kind} {row.name!r}", self._found_instead())
        self.commands.historical = False

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
                command = self.commands.get(row.path)
                assert command is not None, "history has been checked against the body"
                self._record(command)
                self._feed(row)
        # Recorded outcomes first, then due timers: what has happened beats what has merely run out.
        while (due := self._next_due()) is not None:
            self._record(due, StepState.SUCCEEDED)
            self._fire(due)

    def _next_due(self) -> Command | None:
        due = [
            command
            for command in self.commands.timers.values()
            if command.handle is not None
            and not command.handle.cancelled()
            and command.handle.when() <= self.loop.now + _TOLERANCE
        ]
        return min(due, key=lambda command: (command.handle.when(), command.position), default=None)  # type: ignore[union-attr]

    def _record(self, command: Command, state: StepState | None = None) -> None:
        command.resolved_seq = self._next_seq()
        if command.row is not None:
            self.progress.resolved.append(
                Resolution(position=command.position, seq=command.resolved_seq, state=state)
            )

    def _feed(self, row: StepRow) -> None:
        command = self.commands.get(row.path)
        if command is None:
            raise self.commands.diverged(f"{row.kind} {row.name!r}", self._found_instead())
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
        self.commands.timers.pop(id(handle), None)
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
        if (self._main.done() or self._exit is not None) and not self._closing and not self.commands.faulty:
            self._closing = True
            self._check_awaited()
            self._left = self.loop.cancel_left()
            self._run_ready()
            self._let_go_unwatched()
        while self._closing and not self._over and all(task.done() for task in self._left):
            self._left = self.loop.close_generators()
            self._over = not self._left
            self._run_ready()
        if self.commands.fault is not None:
            raise self.commands.fault

    def _run_ready(self) -> None:
        """Run what is ready. A body that calls ``sys.exit()`` has failed like any other."""
        while True:
            try:
                self.loop.drain()
            except SystemExit as exc:
                if is_shutdown(exc):
                    raise
                self._exit = self._exit or exc
                if not self._closing:
                    return
            else:
                return

    def _let_go_unwatched(self) -> None:
        """The body's own task has ended: a step that no other task of it awaits any more is abandoned."""
        for command in self.commands:
            future = command.future
            if future is not None and not future.done() and not future._callbacks:
                self.commands.withdraw(command)

    # Concluding.

    def _check_awaited(self) -> None:
        assert self._main is not None
        if self._exit is not None or self._main.cancelled() or self._main.exception() is not None:
            return
        for command in self.commands:
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
            for command in self.commands:
                self._let_go(command)
        elif not any(self._is_open(command) for command in self.commands):
            raise self._waits_in_vain(self._main)
        progress.inserted = [self._new_row(command) for command in self.commands.new]
        if not progress.done:
            whens = [
                c.handle.when()
                for c in self.commands.timers.values()
                if c.handle and not c.handle.cancelled()
            ]
            progress.wake_at = self.commands.time_at(min(whens)) if whens else None

    def _is_open(self, command: Command) -> bool:
        """Whether something may yet come of a command that the body waits for."""
        if command.kind is Kind.TIMER:
            return id(command.handle) in self.commands.timers
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
            if command.handle is not None and id(command.handle) in self.commands.timers:
                self.commands.withdraw(command)
        elif command.future is not None and not command.future.done():
            self.commands.withdraw(command)

    def _new_row(self, command: Command) -> NewRow:
        if command.withdrawn and command.resolved_seq is None:
            command.resolved_seq = self._next_seq()
        if command.kind is Kind.TIMER:
            return self.commands.timer_row(command)
        return self.commands.step_row(command, self.progress.now)

    def _next_seq(self) -> int:
        self.progress.last_seq += 1
        return self.progress.last_seq


_BY_STATE: dict[StepState, type[StepFailed]] = {
    StepState.FAILED: StepFailed,
    StepState.UNKNOWN: StepUnknown,
    StepState.CANCELLED: StepCancelled,
    StepState.SKIPPED: StepCancelled,
}
