"""A kit without Celery and a ledger without a database: what it takes to drive the pure coordinator by hand."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sagakit.coordinator.commands import python_version
from sagakit.coordinator.decide import decide
from sagakit.coordinator.ledger import Decision, Limits, NewRow, SagaRow, StepRow
from sagakit.coordinator.replay import Progress, Replay
from sagakit.definition.options import step_options
from sagakit.definition.registry import Registry
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.signature import caller_frame, location
from sagakit.definition.step import AsyncStep, Compensation, Probe, Step
from sagakit.errors import ErrorInfo, StepError, describe
from sagakit.states import OPEN_STEP_STATES, TASK_KINDS, TERMINAL_SAGA_STATES, Kind, SagaState, StepState

ECHO: Any = object()
"""The result of a step that answers with its first argument."""

START = datetime(2030, 1, 1, tzinfo=UTC)


class StandInKit:
    """Declares steps and sagas as ``SagaKit`` does, for no Celery app."""

    def __init__(self) -> None:
        self.registry = Registry()

    def step(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        frame = caller_frame(1)

        def declare(function: Callable[..., Any]) -> Any:
            checked = step_options(options, location(function))
            step: Step[..., Any] = Step(function, checked, name=checked.name or _name(function), frame=frame)
            if step.is_async:
                step.__class__ = AsyncStep
            self.registry.add_task(step)
            step.name_task = _name
            step.on_declared = self.registry.add_task
            return step

        return declare if function is None else declare(function)

    def saga(self, body: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        frame = caller_frame(1)

        def declare(body: Callable[..., Any]) -> Any:
            saga: SagaDefinition[Any, Any] = SagaDefinition(
                body, name=options.get("name", _name(body)), version=options.get("version", 1), frame=frame
            )
            self.registry.add_saga(saga)
            return saga

        return declare if body is None else declare(body)


def _name(function: Callable[..., Any]) -> str:
    return f"shop.{function.__name__}"


class Declined(StepError):
    """A business error that ``charge`` declares."""

    reason: str


class Shop(StandInKit):
    """A kit with four steps. Each is called with a number and answers with one; ``mail`` cannot be undone."""

    def __init__(self) -> None:
        super().__init__()

        @self.step
        def reserve(number: int = 0) -> int:
            return number

        @reserve.compensation
        def release(result: int) -> None: ...

        @self.step(throws=(Declined,))
        def charge(number: int = 0) -> int:
            return number

        @charge.compensation
        def refund(result: int) -> None: ...

        @self.step
        def ship(number: int = 0) -> int:
            return number

        @ship.compensation
        def recall(result: int) -> None: ...

        @self.step
        def mail(number: int = 0) -> int:
            return number

        self.reserve, self.charge, self.ship, self.mail = reserve, charge, ship, mail
        self.release, self.refund, self.recall = release, refund, recall


@dataclass(slots=True)
class Ledger:
    """One saga's rows, as a store would keep them, advanced by :func:`decide`.

    Attributes:
        saga: the saga's row.
        rows: its other rows, by position.
        new: the rows as they were inserted, by position.
        now: the database's time.
        decisions: every decision so far.
        tainted: positions of rows an earlier attempt of which may have taken effect.
    """

    definition: SagaDefinition[Any, Any]
    registry: Registry
    saga: SagaRow
    limits: Limits = field(default_factory=Limits)
    rows: list[StepRow] = field(default_factory=list)
    new: list[NewRow] = field(default_factory=list)
    now: datetime = START
    decisions: list[Decision] = field(default_factory=list)
    tainted: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        definition: SagaDefinition[Any, Any],
        input: Any = None,
        *,
        limits: Limits | None = None,
        deadline: float | None = None,
        advance: bool = True,
    ) -> "Ledger":
        """A saga as ``start`` writes it, and advanced once."""
        saga = SagaRow(
            id="order-1",
            name=definition.name,
            version=definition.version,
            state=SagaState.PENDING,
            input=definition.input_codec.dumps(input),
            created_at=START,
            python=python_version(),
            deadline_at=START + timedelta(seconds=deadline) if deadline is not None else None,
        )
        ledger = cls(definition, definition.registry, saga, limits or Limits())
        if advance:
            ledger.advance()
        return ledger

    # What workers do.

    def claim(self, *names: str | int) -> None:
        """A worker begins these rows."""
        for name in names:
            row = self[name]
            assert row.state is StepState.SCHEDULED, f"{name} is {row.state}"
            self._set(row, state=StepState.RUNNING, attempt=row.attempt + 1)

    def end(
        self,
        name: str | int,
        result: Any = ECHO,
        *,
        error: BaseException | None = None,
        unknown: bool = False,
    ) -> None:
        """A worker records what became of a row."""
        row = self[name]
        assert row.state in OPEN_STEP_STATES, f"{name} is {row.state}"
        if error is not None or unknown:
            state = StepState.UNKNOWN if unknown else StepState.FAILED
            self._set(row, state=state, error=self._describe(row, error) if error is not None else None)
        else:
            if result is ECHO:
                arguments = json.loads(self.new[row.position].args or "{}")
                result = next(iter(arguments.values()), None)
            self._set(row, state=StepState.SUCCEEDED, result=self._encode(row, result))

    def retry(self, name: str | int) -> None:
        """A worker gives a row back, to be tried again."""
        assert self[name].state is StepState.RUNNING
        self._set(self[name], state=StepState.SCHEDULED)

    def advance(self, seconds: float = 0.0) -> Decision:
        """Advance the saga after so many seconds, and write the decision."""
        self.now += timedelta(seconds=seconds)
        decision = decide(
            self.saga,
            self.rows,
            now=self.now,
            definition=self.definition,
            withdraw=self._withdraw,
            limits=self.limits,
        )
        self._write(decision)
        return decision

    def finish(self, results: Mapping[str, Any] | None = None, *, seconds: float = 0.0) -> "Ledger":
        """Let every open row succeed, one by one in order, until the saga has ended."""
        for _ in range(1000):
            if self.saga.state in TERMINAL_SAGA_STATES:
                return self
            row = next(
                (row for row in self.rows if row.state in OPEN_STEP_STATES and row.kind in TASK_KINDS), None
            )
            unfed = any(row.resolved_seq is None and row.state not in OPEN_STEP_STATES for row in self.rows)
            if unfed:
                self.advance(seconds)
            elif row is not None:
                self.end(row.position, (results or {}).get(row.name, ECHO))
                self.advance(seconds)
            else:
                wake_at = self.decisions[-1].wake_at
                assert wake_at is not None, "the saga waits for nothing"
                self.advance((wake_at - self.now).total_seconds())
        raise AssertionError("the saga does not end")

    # What tests look at.

    def __getitem__(self, name: str | int) -> StepRow:
        """The row of this position, or the only one of this name that is open, or else the last."""
        if isinstance(name, int):
            return self.rows[name]
        named = [row for row in self.rows if row.name == name]
        assert named, f"no row is named {name!r}; there are {[row.name for row in self.rows]}"
        return next((row for row in named if row.state in OPEN_STEP_STATES), named[-1])

    @property
    def names(self) -> list[str]:
        """The names of all rows, by position."""
        return [row.name for row in self.rows]

    @property
    def undone(self) -> list[str]:
        """The names of all compensations, in the order they were planned."""
        return [row.name for row in self.rows if row.kind is Kind.COMPENSATION]

    @property
    def open(self) -> list[str]:
        """The names of the rows that wait for a worker or run."""
        return [row.name for row in self.rows if row.state in OPEN_STEP_STATES and row.kind in TASK_KINDS]

    @property
    def commands(self) -> list[tuple[int, str | None, str, str, str | None]]:
        """What the body has asked for: position, path, kind, name, arguments."""
        return [
            (new.position, new.path, str(new.kind), new.name, new.args)
            for new in self.new
            if new.path is not None
        ]

    @property
    def result(self) -> Any:
        return json.loads(self.saga.result or "null")

    @property
    def error(self) -> ErrorInfo:
        assert self.saga.error is not None, f"the saga is {self.saga.state}, without an error"
        return self.saga.error

    def replay(self, definition: SagaDefinition[Any, Any] | None = None) -> Progress:
        """Run the body over the rows as they stand, and write nothing."""
        return Replay(
            self.saga, self.rows, definition or self.definition, now=self.now, limits=self.limits
        ).run()

    # What the store does.

    def _withdraw(self, positions: Sequence[int], first_seq: int) -> dict[int, StepState]:
        landed: dict[int, StepState] = {}
        for position in sorted(positions):
            row = self.rows[position]
            if row.state is StepState.SCHEDULED:
                landed[position] = StepState.UNKNOWN if position in self.tainted else StepState.CANCELLED
                self._set(
                    row,
                    state=landed[position],
                    resolved_seq=first_seq + len(landed) - 1,
                    resolved_at=max(self.now, self.saga.ledger_at or self.now),
                )
        return landed

    def _write(self, decision: Decision) -> None:
        at = decision.ledger_at
        for found in decision.resolved:
            row = self.rows[found.position]
            self._set(row, resolved_seq=found.seq, resolved_at=at, state=found.state or row.state)
        for position in decision.abandoned:
            self._set(self.rows[position], abandoned=True)
        for position in decision.reopened:
            afresh = {
                "result": None,
                "error": None,
                "resolved_seq": None,
                "resolved_at": None,
                "replay": False,
            }
            self._set(self.rows[position], state=StepState.SCHEDULED, **afresh)
        for new in decision.inserted:
            self._insert(new, at)
        self.saga = replace(
            self.saga,
            state=decision.state,
            started_at=decision.started_at,
            ledger_at=at,
            last_seq=decision.last_seq,
            result=decision.result or self.saga.result,
            error=decision.error or self.saga.error,
            failed_step=decision.failed_step or self.saga.failed_step,
            body_done=decision.body_done,
        )
        self.decisions.append(decision)
        check_ledger(self.saga, self.rows)

    def _insert(self, new: NewRow, at: datetime) -> None:
        assert new.position == len(self.rows), "positions are contiguous"
        self.new.append(new)
        names = set(StepRow.__dataclass_fields__) & set(NewRow.__dataclass_fields__)
        same = {name: getattr(new, name) for name in names}
        self.rows.append(StepRow(**same, resolved_at=at if new.resolved_seq is not None else None))

    def _set(self, row: StepRow, **changes: Any) -> None:
        self.rows[row.position] = replace(row, **changes)

    def _task(self, row: StepRow) -> Any:
        return self.registry.task(row.task or "")

    def _encode(self, row: StepRow, result: Any) -> str:
        task = self._task(row)
        if isinstance(task, Step):
            return task.result_codec.dumps(result)
        if isinstance(task, Compensation):
            return "null"
        assert isinstance(task, Probe)
        return json.dumps(result)

    def _describe(self, row: StepRow, error: BaseException) -> ErrorInfo:
        task = self._task(row)
        return task.describe_error(error) if isinstance(task, Step) else describe(error, step=row.name)


def check_ledger(saga: SagaRow, rows: Iterable[StepRow]) -> None:
    """What holds of every ledger at every moment."""
    rows = list(rows)
    assert [row.position for row in rows] == list(range(len(rows))), "positions are contiguous"
    paths = [row.path for row in rows if row.path is not None]
    assert len(paths) == len(set(paths)), "a path names one command"
    seqs = [row.resolved_seq for row in rows if row.resolved_seq is not None]
    assert len(seqs) == len(set(seqs)), "a place in the order of completion is given once"
    assert max(seqs, default=0) <= saga.last_seq, "the saga knows the last place given out"
    undone = [row.compensates for row in rows if row.kind is Kind.COMPENSATION]
    assert len(undone) == len(set(undone)), "a step has one compensation"
    running = [row for row in rows if row.state in OPEN_STEP_STATES and row.kind in TASK_KINDS]
    if saga.state in TERMINAL_SAGA_STATES:
        assert not running, "nothing runs in a saga that has ended"
    elif not running:
        timers = [row for row in rows if row.kind is Kind.TIMER and row.state in OPEN_STEP_STATES]
        assert timers or saga.state is SagaState.PENDING, (
            "something is under way, or the saga would never move"
        )
