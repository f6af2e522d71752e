"""Run a saga's body on the pure loop: no database, no broker, no waiting."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from sagakit.account import draw_up, happened
from sagakit.clock import Duration, duration
from sagakit.codec import to_python, to_text
from sagakit.coordinator.commands import python_version
from sagakit.coordinator.decide import decide
from sagakit.coordinator.ledger import Decision, Limits, NewRow, SagaRow, StepRow
from sagakit.definition.registry import Registry
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import Compensation, Probe, Step, TaskFunction
from sagakit.errors import ConfigurationError
from sagakit.ids import idempotency_key
from sagakit.outcomes import AnyOutcome, Compensated, CompensationFailed, Completed
from sagakit.states import TASK_KINDS, TERMINAL_SAGA_STATES, Kind, SagaState, StepState
from sagakit.worker.context import StepContext
from sagakit.worker.perform import Again, Ended, decode_arguments, perform

In = TypeVar("In")
R = TypeVar("R")

_NO_INPUT: Any = None

_START = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a step, compensation or probe.

    Attributes:
        name: its name in the ledger.
        kind: step, compensation or probe.
        args: positional arguments as the function got them.
        kwargs: keyword arguments.
        attempt: 1 for the first.
        at: virtual time since the start.
    """

    name: str
    kind: Kind
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attempt: int
    at: timedelta


@dataclass(frozen=True, slots=True)
class SagaRun(Generic[R]):
    """What a run of a body came to.

    Attributes:
        outcome: how it ended.
        calls: every attempt, in order, compensations included.
        rows: the ledger as it would stand.
    """

    outcome: AnyOutcome[R]
    calls: tuple[Call, ...]
    rows: tuple[StepRow, ...]

    @property
    def names(self) -> list[str]:
        """The names of the calls, in order."""
        return [call.name for call in self.calls]


@dataclass(frozen=True, slots=True)
class _Takes:
    time: timedelta
    then: Any


_REAL = object()


def takes(time: Duration, then: Any = _REAL) -> Any:
    """A stand-in for ``run_saga(steps=...)`` that takes virtual time before it answers.

    Args:
        time: how long.
        then: the answer: a value, an exception to raise, or a function to call; by default the step's own.
    """
    return _Takes(duration(time), then)


def run_saga(
    definition: SagaDefinition[In, R],
    input: In = _NO_INPUT,
    *,
    steps: Mapping[Any, Any] | None = None,
    saga_id: str = "test-saga",
    deadline: Duration | None = None,
) -> SagaRun[R]:
    """Run a saga's body to its end, in virtual time.

    Args:
        definition: the saga.
        input: its input.
        steps: stand-ins by step (or compensation, or probe): an exception is raised, a function is called in its
            place, anything else is returned; see :func:`takes`. What has none runs for real.
        saga_id: the saga's id.
        deadline: the saga's deadline, from its start.

    Raises:
        NonDeterminismError: the body is not deterministic.
        ConfigurationError: a stand-in is given for something that is no step, compensation or probe.
    """
    for given in steps or {}:
        if not isinstance(given, TaskFunction):
            raise ConfigurationError(
                f"run_saga(steps=...) is keyed by the steps, compensations and probes themselves, not by {given!r}"
            )
    return _Run(definition, input, steps or {}, saga_id, deadline).run()


@dataclass(slots=True)
class _Row:
    new: NewRow
    row: StepRow
    retries: int = 0
    tainted: bool = False
    running: bool = False


@dataclass(slots=True)
class _Run:
    definition: SagaDefinition[Any, Any]
    input: Any
    steps: Mapping[Any, Any]
    saga_id: str
    deadline: Duration | None
    now: datetime = _START
    ledger: list[_Row] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    agenda: list[tuple[datetime, int, int, Ended | Again]] = field(default_factory=list)

    def run(self) -> SagaRun[Any]:
        definition = self.definition
        saga = SagaRow(
            id=self.saga_id,
            name=definition.name,
            version=definition.version,
            state=SagaState.PENDING,
            input=definition.input_codec.dumps(self.input),
            created_at=_START,
            python=python_version(),
            deadline_at=_START + duration(self.deadline) if self.deadline is not None else None,
        )
        while True:
            decision = decide(
                saga, self.rows, now=self.now, definition=definition, withdraw=self._withdraw, limits=Limits()
            )
            saga = self._apply(saga, decision)
            if saga.state in TERMINAL_SAGA_STATES:
                return SagaRun(self._outcome(saga), tuple(self.calls), tuple(self.rows))
            self._next_event(decision.wake_at)

    @property
    def rows(self) -> list[StepRow]:
        return [entry.row for entry in self.ledger]

    def _withdraw(self, positions: Sequence[int], first_seq: int) -> dict[int, StepState]:
        landed: dict[int, StepState] = {}
        for position in sorted(positions):
            entry = self.ledger[position]
            if entry.row.state is StepState.SCHEDULED:
                landed[position] = StepState.UNKNOWN if entry.tainted else StepState.CANCELLED
                entry.row = replace(
                    entry.row,
                    state=landed[position],
                    resolved_seq=first_seq + len(landed) - 1,
                    resolved_at=self.now,
                )
        return landed

    def _apply(self, saga: SagaRow, decision: Decision) -> SagaRow:
        for found in decision.resolved:
            entry = self.ledger[found.position]
            entry.row = replace(
                entry.row,
                resolved_seq=found.seq,
                resolved_at=decision.ledger_at,
                state=found.state or entry.row.state,
            )
        for position in decision.abandoned:
            self.ledger[position].row = replace(self.ledger[position].row, abandoned=True)
        for new in decision.inserted:
            self._insert(new, decision.ledger_at)
        return replace(
            saga,
            state=decision.state,
            started_at=decision.started_at,
            ledger_at=decision.ledger_at,
            last_seq=decision.last_seq,
            result=decision.result or saga.result,
            error=decision.error or saga.error,
            failed_step=decision.failed_step or saga.failed_step,
            body_done=decision.body_done,
        )

    def _insert(self, new: NewRow, at: datetime) -> None:
        row = StepRow(
            position=new.position,
            kind=new.kind,
            name=new.name,
            state=new.state,
            path=new.path,
            task=new.task,
            error=new.error,
            due_at=new.due_at,
            resolved_seq=new.resolved_seq,
            resolved_at=at if new.resolved_seq is not None else None,
            compensates=new.compensates,
            undo=new.undo,
            abandoned=new.abandoned,
        )
        assert new.position == len(self.ledger)
        self.ledger.append(_Row(new, row))
        if new.kind in TASK_KINDS and new.state is StepState.SCHEDULED:
            self._attempt(self.ledger[-1], at)

    def _attempt(self, entry: _Row, at: datetime) -> None:
        """Run an attempt now and put what became of it on the agenda for when it would have ended."""
        function = self._function(entry.new.task or "")
        stand_in = self.steps.get(function, _REAL)
        time = timedelta(0)
        if isinstance(stand_in, _Takes):
            time, stand_in = stand_in.time, stand_in.then
        entry.row = replace(entry.row, state=StepState.RUNNING, attempt=entry.row.attempt + 1)
        ended = self._perform(function, entry, _as_function(stand_in), at)
        heapq.heappush(self.agenda, (at + time, len(self.calls), entry.row.position, ended))

    def _perform(
        self, function: TaskFunction[..., Any], entry: _Row, run: Callable[..., Any] | None, at: datetime
    ) -> Ended | Again:
        target = self.ledger[entry.row.compensates] if entry.row.compensates is not None else entry
        result = target.row.result if target is not entry else None
        known = target.row.state is StepState.SUCCEEDED
        for probe in self.rows:
            if probe.kind is Kind.PROBE and probe.compensates == entry.row.compensates and happened(probe):
                result, known = to_text(to_python(probe.result or "null")["result"]), True
        args, kwargs = decode_arguments(function, target.new.args or "{}", result)
        context = StepContext(
            saga_id=self.saga_id,
            saga_name=self.definition.name,
            step_name=entry.row.name,
            position=entry.row.position,
            attempt=entry.row.attempt,
            idempotency_key=idempotency_key(self.saga_id, entry.row.position),
            outcome=("succeeded" if known else "unknown") if entry.row.kind is Kind.COMPENSATION else None,
        )
        self.calls.append(Call(entry.row.name, entry.row.kind, args, kwargs, entry.row.attempt, at - _START))
        return perform(
            function,
            args,
            kwargs,
            context,
            policy=function.options.retry,
            retries=entry.retries,
            tainted=entry.tainted,
            limits=Limits(),
            run=run,
        )

    def _function(self, name: str) -> TaskFunction[..., Any]:
        for given in self.steps:
            if isinstance(given, TaskFunction):
                for candidate in (given, getattr(given, "undo", None), getattr(given, "find_out", None)):
                    if candidate is not None and candidate.name == name:
                        return candidate
        return self._registry().task(name)

    def _registry(self) -> Registry:
        if self.definition.registry is None:
            raise ConfigurationError(
                f"{self.definition.label} belongs to no SagaKit: declare it with kit.saga"
            )
        return self.definition.registry

    def _next_event(self, wake_at: datetime | None) -> None:
        """Move to what happens next: an attempt that ends, a retry that is due, or the saga's own timer."""
        retries = [entry for entry in self.ledger if _waits_for_retry(entry)]
        retry = min(retries, key=lambda entry: entry.row.due_at or self.now, default=None)
        times = [at for at in (wake_at, retry.row.due_at if retry else None) if at is not None]
        if self.agenda and (not times or self.agenda[0][0] <= min(times)):
            at, _, position, ended = heapq.heappop(self.agenda)
            self.now = max(self.now, at)
            self._settle(self.ledger[position], ended)
        elif retry is not None and retry.row.due_at == min(times):
            self.now = max(self.now, retry.row.due_at)
            self._attempt(retry, self.now)
        elif times:
            self.now = max(self.now, min(times))
        else:
            raise ConfigurationError(f"saga {self.definition.label} waits for nothing that could ever happen")

    def _settle(self, entry: _Row, ended: Ended | Again) -> None:
        if isinstance(ended, Again):
            entry.retries += 1
            entry.tainted = entry.tainted or ended.tainted
            entry.row = replace(
                entry.row, state=StepState.SCHEDULED, due_at=self.now + ended.delay, error=ended.error
            )
        else:
            entry.row = replace(entry.row, state=ended.state, result=ended.result, error=ended.error)

    def _outcome(self, saga: SagaRow) -> AnyOutcome[Any]:
        account = draw_up(self.rows, failed=saga.error is not None)
        told: dict[str, Any] = {
            "saga_id": saga.id,
            "failed_step": saga.failed_step,
            "error": saga.error,
            "compensated": account.compensated,
            "not_compensated": account.not_compensated,
            "unknown": account.unknown,
            "duration": self.now - _START,
        }
        if saga.state is SagaState.COMPLETED:
            return Completed(result=self.definition.result_codec.loads(saga.result or "null"), **told)
        return Compensated(**told) if saga.state is SagaState.COMPENSATED else CompensationFailed(**told)


def _waits_for_retry(entry: _Row) -> bool:
    return entry.row.state is StepState.SCHEDULED and entry.row.kind in TASK_KINDS and entry.row.attempt > 0


def _as_function(stand_in: Any) -> Callable[..., Any] | None:
    if stand_in is _REAL:
        return None
    if isinstance(stand_in, BaseException) or (
        isinstance(stand_in, type) and issubclass(stand_in, BaseException)
    ):

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise stand_in

        return fail
    if isinstance(stand_in, Step | Compensation | Probe):
        return stand_in.function
    if callable(stand_in):
        function: Callable[..., Any] = stand_in
        return function
    return lambda *args, **kwargs: stand_in
