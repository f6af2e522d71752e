"""Advances a saga inside a transaction: lock, load, decide, write. What is to be published comes out of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from sagakit import probes
from sagakit.coordinator.commands import python_version
from sagakit.coordinator.decide import decide
from sagakit.coordinator.ledger import Decision, Limits, SagaRow, StepRow
from sagakit.definition.registry import Registry
from sagakit.dispatch.envelope import AdvanceEnvelope, Envelope, StepEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.dispatch.routing import Routing
from sagakit.errors import SagakitError, describe
from sagakit.ids import new_token
from sagakit.states import OPEN_SAGA_STATES, OPEN_STEP_STATES, TASK_KINDS, SagaState, StepState
from sagakit.store import Locked, Store, Transaction
from sagakit.worker.identity import Identity

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Advanced:
    """What one advance came to.

    Attributes:
        publish: messages to send after the commit.
        look_again: rows were in flight, so an outcome may have come in while the saga was locked.
        poke: something is due soon, and this worker's sweep should know.
    """

    publish: list[Envelope]
    look_again: bool = False
    poke: bool = False


class Advancer:
    """Advances sagas.

    Args:
        store: the ledger.
        registry: the definitions of this process.
        publisher: sends what a decision calls for.
        routing: resolves queues.
        limits: bounds on what a body may write.
        identity: this worker.
        soon: a due time this close is worth waking the sweep for.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        publisher: Publisher,
        routing: Routing,
        limits: Limits,
        identity: Identity,
        soon: timedelta,
    ) -> None:
        self._store = store
        self._registry = registry
        self._publisher = publisher
        self._routing = routing
        self._limits = limits
        self._identity = identity
        self._soon = soon

    def advance(self, saga_id: str, *, not_before: datetime | None = None) -> bool:
        """Advance a saga as far as it goes; say whether there is such a saga.

        Waits for the saga's lock: whoever holds it may have read the ledger before what this advance is about.

        Args:
            saga_id: the saga.
            not_before: pretend that it is at least this late (``task_always_eager`` does not wait for timers).
        """
        try:
            with self._store.begin() as tx:
                locked = tx.sagas.lock(saga_id, wait=True)
                if locked is None:
                    return False
                if not_before is not None:
                    locked = replace(locked, now=max(locked.now, not_before))
                advanced = self.advance_locked(tx, locked)
                probes.point("advance.commit")
        except SQLAlchemyError:
            raise
        except Exception as exc:
            self.hold(saga_id, exc)
            return True
        probes.point("advance.committed")
        self.follow_up(saga_id, advanced)
        return True

    def hold(self, saga_id: str, exc: Exception) -> None:
        """Record that a saga cannot be advanced by this code, for an operator to see and resume after a fix."""
        logger.exception("saga %s cannot be advanced", saga_id)
        with self._store.begin() as tx:
            tx.sagas.stick(saga_id, describe(exc))

    def catch_up(self, saga_id: str) -> None:
        """Advance a saga only if an outcome waits to be fed, or a step of a saga being undone waits to be withdrawn."""
        with self._store.read() as tx:
            saga = tx.sagas.get(saga_id)
            needed = saga is not None and (
                tx.steps.has_unfed(saga_id)
                or (saga.state is SagaState.COMPENSATING and self._has_loose(tx, saga_id))
            )
        if needed:
            self.advance(saga_id)

    @staticmethod
    def _has_loose(tx: Transaction, saga_id: str) -> bool:
        return any(row.kind == "step" and row.state is StepState.SCHEDULED for row in tx.steps.load(saga_id))

    def follow_up(self, saga_id: str, advanced: Advanced) -> None:
        """After the commit: publish, and look again if an outcome may have come in under the lock."""
        self._publisher.publish(advanced.publish)
        if advanced.poke:
            self._identity.poke()
        while advanced.look_again:
            with self._store.begin() as tx:
                if not tx.steps.has_unfed(saga_id):
                    return
                locked = tx.sagas.lock(saga_id, wait=False)
                if locked is None:
                    return  # whoever holds the lock now will look after its own commit
                advanced = self.advance_locked(tx, locked)
            self._publisher.publish(advanced.publish)

    def advance_locked(self, tx: Transaction, locked: Locked) -> Advanced:
        """Advance a saga whose lock this transaction holds.

        Raises:
            RuntimeError: the ledger changed under the lock; the transaction must be rolled back.
        """
        saga = locked.row
        if saga.state not in OPEN_SAGA_STATES:
            return Advanced(publish=[])
        definition = self._registry.saga(saga.name, saga.version)
        needs_body = not saga.body_done and saga.state is not SagaState.COMPENSATING
        if needs_body and definition is None:
            return Advanced(publish=[self._to_version_queue(saga, locked.now)])
        # In a statement of its own, after the lock was granted: one that waited for the lock would still see
        # the other rows as they were before the wait.
        rows = tx.steps.load(saga.id)
        ledger_at = max(locked.now, saga.ledger_at or locked.now)
        try:
            decision = decide(
                saga,
                rows,
                now=locked.now,
                definition=definition,
                withdraw=lambda positions, seq: tx.steps.withdraw(
                    saga.id, positions, ledger_at=ledger_at, first_seq=seq
                ),
                limits=self._limits,
            )
        except SagakitError as exc:
            return self._stick(tx, saga, exc)
        except SQLAlchemyError:
            raise  # the transaction is lost, and nothing can be written in it
        except Exception as exc:
            # Not the body's own error, which would be a decision: a fault here must not cost the step's outcome.
            logger.exception("saga %s cannot be advanced", saga.id)
            return self._stick(tx, saga, exc)
        return self._write(tx, locked, rows, decision)

    def _is_soon(self, now: datetime, *times: datetime | None) -> bool:
        return any(at is not None and at - now < self._soon for at in times)

    @staticmethod
    def _reopen(tx: Transaction, saga: SagaRow, rows: Sequence[StepRow], positions: Sequence[int]) -> None:
        """Run compensations and probes once more, as the steps they undo now say."""
        by_position = {row.position: row for row in rows}
        undo = {
            position: target.undo
            for position in positions
            if (target := by_position[by_position[position].compensates or 0]).undo is not None
        }
        tx.steps.reopen(saga.id, positions, tokens={p: new_token() for p in positions}, undo=undo)

    def _to_version_queue(self, saga: SagaRow, now: datetime) -> AdvanceEnvelope:
        logger.warning(
            "saga %s is %s version %d, which this worker lacks: passing it on",
            saga.id,
            saga.name,
            saga.version,
        )
        queue = self._routing.version_queue(saga.name, saga.version)
        return AdvanceEnvelope(
            saga_id=saga.id, saga_name=saga.name, queue=queue, priority=saga.priority, sent_at=now
        )

    def _stick(self, tx: Transaction, saga: SagaRow, exc: Exception) -> Advanced:
        logger.error("saga %s is stuck: %s", saga.id, exc)
        tx.sagas.stick(saga.id, describe(exc))
        return Advanced(publish=[])

    def _write(
        self, tx: Transaction, locked: Locked, rows: Sequence[StepRow], decision: Decision
    ) -> Advanced:
        saga, at = locked.row, decision.ledger_at
        inserted = [
            replace(row, queue=self._routing.queue_of(row.task, row.queue)) if row.task is not None else row
            for row in decision.inserted
        ]
        tokens = {
            row.position: new_token()
            for row in inserted
            if row.kind in TASK_KINDS and row.state is StepState.SCHEDULED
        }
        fits = not decision.resolved or tx.steps.resolve(saga.id, decision.resolved, ledger_at=at)
        if decision.abandoned:
            tx.steps.abandon(saga.id, decision.abandoned)
        if decision.reopened:
            self._reopen(tx, saga, rows, decision.reopened)
        tx.steps.insert(saga.id, inserted, tokens, owner=self._identity.worker_id, ledger_at=at)
        fits = fits and tx.sagas.advance(
            saga,
            decision,
            now=locked.now,
            python=python_version(),
            definition_hash=None,
        )
        if not fits:
            raise RuntimeError(f"saga {saga.id}: the ledger changed under its lock; nothing was written")
        publish: list[Envelope] = [
            StepEnvelope(
                saga_id=saga.id,
                saga_name=saga.name,
                position=row.position,
                token=tokens[row.position],
                task=row.task or "",
                name=row.name,
                kind=row.kind,
                queue=row.queue,
                priority=row.priority,
                sent_at=locked.now,
                run=saga.run,
            )
            for row in inserted
            if row.position in tokens
        ]
        return Advanced(
            publish=publish,
            look_again=any(row.kind in TASK_KINDS and row.state in OPEN_STEP_STATES for row in rows),
            # A reopened row is due at once and sent by the sweep: it is rare, and its message is all on the row.
            poke=bool(decision.reopened)
            or self._is_soon(locked.now, decision.wake_at, *(r.expires_at for r in inserted)),
        )
