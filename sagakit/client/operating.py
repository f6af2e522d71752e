"""What an operator does to a saga: cancel, resume, replay compensations. Each is audited in its own transaction."""

import getpass
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from sagakit.coordinator.commands import undo_of
from sagakit.coordinator.compensation import targets
from sagakit.coordinator.ledger import SagaRow, StepRow, Undo
from sagakit.definition.registry import Registry
from sagakit.definition.step import Step
from sagakit.dispatch.envelope import AdvanceEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.errors import ErrorInfo, InvalidInput, NotAllowed, SagaNotFound, StepNotFound, suggest
from sagakit.states import Kind, SagaState, StepState
from sagakit.store import Locked, Store, Transaction

CANCELLED = "sagakit.SagaCancelled"
UNDO_REQUESTED = "sagakit.CompensationRequested"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedUndo:
    """One step in a replay's plan.

    Attributes:
        position: the step's position in the ledger.
        step: its name.
        compensation: what undoes it.
        reason: why it is undone, or why it is left.
    """

    position: int
    step: str
    compensation: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """What ``compensate`` does, or with ``dry_run`` would do.

    Attributes:
        state: the saga's state when the plan was made.
        undo: compensations to run, in this order.
        left: steps that are left as they are.
    """

    saga_id: str
    state: SagaState
    undo: tuple[PlannedUndo, ...] = ()
    left: tuple[PlannedUndo, ...] = ()


@dataclass(slots=True)
class _Draft:
    undo: list[PlannedUndo] = field(default_factory=list)
    left: list[PlannedUndo] = field(default_factory=list)
    replay: list[int] = field(default_factory=list)
    refreshed: dict[int, Undo] = field(default_factory=dict)


class Operator:
    """Acts on sagas on behalf of people.

    Args:
        store: the ledger.
        registry: the definitions of this process, whose compensations a replay uses.
        publisher: sends what an action calls for.
        patience: how long the sweep leaves the action's message to arrive.
        announced: called with the saga's id once an action is committed and published.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        publisher: Publisher,
        patience: timedelta,
        announced: Callable[[str], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._publisher = publisher
        self._patience = patience
        self._announced = announced

    def cancel(self, saga_id: str, *, reason: str, actor: str | None) -> None:
        """Stop a saga and undo what it did. From this commit on it cannot end ``completed``.

        Raises:
            SagaNotFound: there is no such saga.
            NotAllowed: it has ended.
        """
        _require_reason(reason, "cancel")
        with self._store.begin() as tx:
            locked = self._lock(tx, saga_id)
            saga = locked.row
            if saga.state is SagaState.COMPENSATING:
                return  # it is being undone already
            allowed = {SagaState.PENDING, SagaState.RUNNING, SagaState.STUCK, SagaState.PAUSED}
            if saga.state not in allowed:
                hint = (
                    "; `saga compensate --completed` undoes it" if saga.state is SagaState.COMPLETED else ""
                )
                raise NotAllowed(f"saga {saga_id} is {saga.state} and cannot be cancelled any more{hint}")
            error = ErrorInfo(type=CANCELLED, message=f"cancelled: {reason}")
            self._open(tx, locked, SagaState.COMPENSATING, error=error)
            self._audit(tx, saga_id, "cancel", actor, reason, {"state": saga.state.value})
        self._announce(saga)

    def resume(self, saga_id: str, *, reason: str | None, actor: str | None) -> None:
        """Let a stuck saga go on, after the code fits its ledger again.

        Raises:
            SagaNotFound: there is no such saga.
            NotAllowed: it is not stuck.
        """
        with self._store.begin() as tx:
            locked = self._lock(tx, saga_id)
            saga = locked.row
            if saga.state not in (SagaState.STUCK, SagaState.PAUSED):
                raise NotAllowed(
                    f"saga {saga_id} is {saga.state}: only a stuck or paused saga can be resumed"
                )
            target = SagaState.RUNNING
            if saga.started_at is None:
                target = SagaState.PENDING
            elif saga.error is not None:
                target = SagaState.COMPENSATING
            self._open(tx, locked, target)
            self._audit(tx, saga_id, "resume", actor, reason, {"to": target.value})
        self._announce(saga)

    def compensate(
        self,
        saga_id: str,
        *,
        failed_only: bool,
        step: str | None,
        completed: bool,
        dry_run: bool,
        reason: str | None,
        actor: str | None,
    ) -> ReplayPlan:
        """Undo what is not undone yet.

        Args:
            saga_id: the saga.
            failed_only: only compensations that were tried and failed.
            step: only that of the step of this name.
            completed: undo a saga that has completed.
            dry_run: only say what would be done.
            reason: goes on record.
            actor: goes on record; the operating system's user by default.

        Raises:
            SagaNotFound: there is no such saga.
            NotAllowed: the saga is in no state to be undone.
            InvalidInput: it has no step of this name.
        """
        if not dry_run:
            _require_reason(reason, "compensate")
        with self._store.begin() as tx:
            locked = self._lock(tx, saga_id)
            saga = locked.row
            _check_replayable(saga, completed=completed, step=step)
            rows = tx.steps.load(saga_id)
            draft = self._draft(saga, rows, failed_only=failed_only, step=step)
            plan = ReplayPlan(
                saga_id=saga_id, state=saga.state, undo=tuple(draft.undo), left=tuple(draft.left)
            )
            if dry_run or not draft.undo:
                return plan
            tx.steps.set_undo(saga_id, draft.refreshed)
            tx.steps.mark_for_replay(saga_id, draft.replay)
            error = None
            if saga.state is SagaState.COMPLETED:
                error = ErrorInfo(type=UNDO_REQUESTED, message=f"undone after it had completed: {reason}")
            self._open(tx, locked, SagaState.COMPENSATING, error=error)
            detail = {"steps": [undo.step for undo in draft.undo], "failed_only": failed_only}
            self._audit(tx, saga_id, "compensate", actor, reason, detail)
        self._announce(saga)
        return plan

    def _draft(
        self, saga: SagaRow, rows: Sequence[StepRow], *, failed_only: bool, step: str | None
    ) -> _Draft:
        only_abandoned = saga.error is None and saga.state is not SagaState.COMPLETED
        undoing = {row.compensates: row for row in rows if row.kind is Kind.COMPENSATION}
        probes = {row.compensates: row for row in rows if row.kind is Kind.PROBE}
        chosen = targets(rows, only_abandoned=only_abandoned)
        if step is not None and step not in {row.name for row in chosen}:
            raise InvalidInput(
                f"saga {saga.id} has no step named {step!r} to undo; {suggest(step, {row.name for row in chosen})}"
            )
        draft = _Draft()
        for target in chosen:
            row = undoing.get(target.position)
            undo = self._current_undo(target)
            why_left = _why_left(target, row, undo, failed_only=failed_only, step=step)
            planned = PlannedUndo(
                position=target.position,
                step=target.name,
                compensation=undo.name,
                reason=why_left or (f"its compensation {row.state}" if row is not None else "not undone yet"),
            )
            if why_left:
                draft.left.append(planned)
                continue
            draft.undo.append(planned)
            draft.refreshed[target.position] = undo
            draft.replay += [r.position for r in (row, probes.get(target.position)) if r is not None]
        return draft

    def _current_undo(self, target: StepRow) -> Undo:
        """The compensation as the code has it now: a replay usually follows a fix."""
        assert target.undo is not None
        try:
            step = self._registry.task(target.task or "")
        except StepNotFound:
            return target.undo
        undo = undo_of(step) if isinstance(step, Step) else None
        return replace(undo, queue=undo.queue or target.undo.queue) if undo is not None else target.undo

    def _lock(self, tx: Transaction, saga_id: str) -> Locked:
        locked = tx.sagas.lock(saga_id, wait=True)
        if locked is None:
            raise SagaNotFound(f"there is no saga {saga_id!r}")
        return locked

    def _open(
        self, tx: Transaction, locked: Locked, target: SagaState, *, error: ErrorInfo | None = None
    ) -> None:
        landed = tx.sagas.transition(
            locked.row.id,
            target=target,
            sources=frozenset({locked.row.state}),
            error=error,
            wake_at=locked.now + self._patience,
        )
        if not landed:
            raise NotAllowed(f"saga {locked.row.id} has changed meanwhile: try again")

    def _audit(
        self,
        tx: Transaction,
        saga_id: str,
        action: str,
        actor: str | None,
        reason: str | None,
        detail: dict[str, object],
    ) -> None:
        tx.audit.write(saga_id, action=action, actor=actor or current_user(), reason=reason, detail=detail)

    def _announce(self, saga: SagaRow) -> None:
        self._publisher.publish(
            [AdvanceEnvelope(saga_id=saga.id, saga_name=saga.name, priority=saga.priority)]
        )
        self._announced(saga.id)


def _require_reason(reason: str | None, action: str) -> None:
    if not reason or not reason.strip():
        raise InvalidInput(f"{action} needs a reason: it goes on the saga's record")


def _check_replayable(saga: SagaRow, *, completed: bool, step: str | None) -> None:
    if saga.state is SagaState.COMPENSATION_FAILED:
        return
    if saga.state is SagaState.COMPLETED:
        if not completed:
            raise NotAllowed(
                f"saga {saga.id} has completed: pass --completed (completed=True) if it is really to be undone"
            )
        if step is not None:
            raise NotAllowed(f"saga {saga.id} has completed: it is undone as a whole, not step by step")
        return
    hints = {
        SagaState.COMPENSATED: "everything it did is undone already",
        SagaState.COMPENSATING: "it is being undone at this moment",
        SagaState.STUCK: "resume it after a fix, or cancel it, which undoes what it did",
    }
    hint = hints.get(saga.state, "cancel it, which undoes what it did")
    raise NotAllowed(f"saga {saga.id} is {saga.state}: {hint}")


def _why_left(
    target: StepRow, row: StepRow | None, undo: Undo, *, failed_only: bool, step: str | None
) -> str | None:
    """Why a step is not part of a replay, or ``None`` if it is."""
    if row is not None and row.state is StepState.SUCCEEDED:
        return "undone already"
    if step is not None and target.name != step:
        return "not asked for"
    if failed_only and (row is None or row.state not in (StepState.FAILED, StepState.UNKNOWN)):
        return "its compensation was not tried"
    if target.state is StepState.UNKNOWN and not undo.accepts_none and undo.probe is None:
        return (
            f"its outcome is unknown: give it a probe, or let the first parameter of {undo.name} admit None"
        )
    return None


def current_user() -> str:
    """Who acts, where nobody says: the operating system's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
