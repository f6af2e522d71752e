"""One advance of a saga: from its ledger to a decision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sagakit.codec import bounded
from sagakit.coordinator.compensation import UndoPlan, plan_undo
from sagakit.coordinator.ledger import Decision, Limits, NewRow, Resolution, SagaRow, StepRow
from sagakit.coordinator.replay import Progress, Replay
from sagakit.definition.saga import SagaDefinition
from sagakit.errors import ErrorInfo, SagakitError, StepError, StepFailed, describe
from sagakit.states import OPEN_STEP_STATES, Kind, SagaState, StepState

Withdraw = Callable[[Sequence[int], int], Mapping[int, StepState]]
"""``withdraw(positions, first_seq)`` cancels the rows no worker has claimed yet, numbering them from ``first_seq``.

It answers which rows those were and their state now: cancelled, or unknown where an earlier attempt was lost."""

CANCELLED = "sagakit.SagaCancelled"
DEADLINE = "sagakit.SagaDeadlineExceeded"


def decide(
    saga: SagaRow,
    rows: Sequence[StepRow],
    *,
    now: datetime,
    definition: SagaDefinition[Any, Any] | None,
    withdraw: Withdraw,
    limits: Limits | None = None,
) -> Decision:
    """Decide what happens next.

    The body runs only while it has not ended; undoing is planned from rows alone.

    Args:
        saga: the saga's row, locked.
        rows: all its rows, read after the lock was granted.
        now: the database's time.
        definition: the saga in the row's version; needed only while the body has not ended.
        withdraw: cancels rows that no worker has claimed yet, in the same transaction.
        limits: bounds on what the body may write.

    Raises:
        NonDeterminismError: the body no longer fits its ledger.
        NotDecodable: stored data no longer fits its type.
    """
    limits = limits or Limits()
    if saga.body_done or saga.state is SagaState.COMPENSATING:
        return _undo(saga, rows, _untouched(saga, now), withdraw)
    if saga.deadline_at is not None and now >= saga.deadline_at:
        error = ErrorInfo(
            type=DEADLINE, message=f"not completed by its deadline, {saga.deadline_at.isoformat()}"
        )
        return _undo(
            replace(saga, error=error, state=SagaState.COMPENSATING), rows, _untouched(saga, now), withdraw
        )
    assert definition is not None, "a body that has not ended needs its definition"
    progress = Replay(saga, rows, definition, now=now, limits=limits).run()
    return _after_body(saga, rows, progress, definition, withdraw, limits)


def _untouched(saga: SagaRow, now: datetime) -> Progress:
    now = max(now, saga.ledger_at or now)
    return Progress(now=now, started_at=saga.started_at or now, last_seq=saga.last_seq, done=True)


def _after_body(
    saga: SagaRow,
    rows: Sequence[StepRow],
    progress: Progress,
    definition: SagaDefinition[Any, Any],
    withdraw: Withdraw,
    limits: Limits,
) -> Decision:
    if not progress.done:
        landed = withdraw(progress.withdraw, progress.last_seq + 1) if progress.withdraw else {}
        return Decision(
            state=SagaState.RUNNING,
            ledger_at=progress.now,
            started_at=progress.started_at,
            last_seq=progress.last_seq + len(landed),
            resolved=tuple(progress.resolved),
            inserted=tuple(progress.inserted),
            abandoned=tuple(progress.abandoned),
            wake_at=_earliest(progress.wake_at, saga.deadline_at),
        )
    result, error, failed_step = None, None, None
    if progress.raised is None:
        try:
            result = bounded(
                definition.result_codec.dumps(progress.returned),
                definition.result_codec.what,
                limit=limits.payload,
                warning=limits.payload_warning,
            )
        except SagakitError as exc:
            error = describe(exc)
    else:
        error, failed_step = _explain(progress.raised)
    ended = replace(
        saga,
        result=result,
        error=error,
        failed_step=failed_step,
        body_done=True,
        state=SagaState.RUNNING if error is None else SagaState.COMPENSATING,
    )
    return _undo(ended, rows, progress, withdraw)


def _undo(saga: SagaRow, rows: Sequence[StepRow], progress: Progress, withdraw: Withdraw) -> Decision:
    """The body is over: withdraw what no worker has begun, wait for the rest, then undo what has to be."""
    rows = _with_progress(rows, progress)
    inserted = [
        _withdrawn(row, progress) if row.state in OPEN_STEP_STATES else row for row in progress.inserted
    ]
    resolved = list(progress.resolved) + _settle(rows, progress)
    loose = [r.position for r in rows if r.state is StepState.SCHEDULED and r.kind in (Kind.STEP, Kind.TIMER)]
    if loose:
        landed = withdraw(loose, progress.last_seq + 1)
        seqs = {position: progress.last_seq + 1 + index for index, position in enumerate(sorted(landed))}
        progress.last_seq += len(landed)
        rows = [
            replace(row, state=landed[row.position], resolved_seq=seqs[row.position])
            if row.position in landed
            else row
            for row in rows
        ]
    succeeded = saga.error is None
    taken = [row.position for row in rows] + [row.position for row in inserted]
    next_position = max(taken, default=-1) + 1
    plan = plan_undo(rows, only_abandoned=succeeded, next_position=next_position)
    return Decision(
        state=_state_after(plan, saga),
        ledger_at=progress.now,
        started_at=progress.started_at,
        last_seq=progress.last_seq,
        resolved=tuple(resolved),
        inserted=(*inserted, *plan.insert),
        abandoned=tuple(progress.abandoned),
        reopened=tuple(plan.reopen),
        result=saga.result,
        error=saga.error,
        failed_step=saga.failed_step,
        body_done=True,
    )


def _with_progress(rows: Sequence[StepRow], progress: Progress) -> list[StepRow]:
    """The rows as they will stand once this advance's own findings are written."""
    seqs = {r.position: r for r in progress.resolved}
    abandoned = frozenset(progress.abandoned)
    result = []
    for row in rows:
        if row.position in seqs:
            found = seqs[row.position]
            row = replace(row, resolved_seq=found.seq, state=found.state or row.state)
        if row.position in abandoned:
            row = replace(row, abandoned=True)
        result.append(row)
    return result


def _settle(rows: list[StepRow], progress: Progress) -> list[Resolution]:
    """Give rows that ended after the body their place in the order of completion; ``rows`` is changed to match."""
    settled = []
    for index, row in enumerate(rows):
        if row.resolved_seq is None and row.state not in OPEN_STEP_STATES:
            progress.last_seq += 1
            settled.append(Resolution(position=row.position, seq=progress.last_seq))
            rows[index] = replace(row, resolved_seq=progress.last_seq)
    return settled


def _withdrawn(row: NewRow, progress: Progress) -> NewRow:
    """A command issued in the very advance in which the body ended: on record, but never sent."""
    progress.last_seq += 1
    return replace(
        row, state=StepState.CANCELLED, resolved_seq=progress.last_seq, abandoned=row.kind is Kind.STEP
    )


def _state_after(plan: UndoPlan, saga: SagaRow) -> SagaState:
    if plan.verdict == "waiting":
        return saga.state
    if plan.verdict == "not_undone":
        return SagaState.COMPENSATION_FAILED
    return SagaState.COMPLETED if saga.error is None else SagaState.COMPENSATED


def _explain(raised: BaseException) -> tuple[ErrorInfo, str | None]:
    """The body's error as data, and the step it came from, however it was wrapped on its way up."""
    culprit = _find_step_error(raised, set())
    failed_step = culprit.step if culprit is not None else None
    info = getattr(raised, "ledger_info", None)
    return (info if isinstance(info, ErrorInfo) else describe(raised, step=failed_step)), failed_step


def _find_step_error(exc: BaseException | None, seen: set[int]) -> StepError | StepFailed | None:
    if exc is None or id(exc) in seen:
        return None
    seen.add(id(exc))
    if isinstance(exc, StepError | StepFailed) and exc.step is not None:
        return exc
    inner = list(exc.exceptions) if isinstance(exc, BaseExceptionGroup) else []
    for candidate in (*inner, exc.__cause__, exc.__context__):
        found = _find_step_error(candidate, seen)
        if found is not None:
            return found
    return None


def _earliest(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)
