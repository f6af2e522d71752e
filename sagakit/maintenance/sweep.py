"""The sweep: finds what no message speaks for any more, and sends one. Runs in every worker; there is no leader."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from sagakit import probes
from sagakit.definition.registry import Registry
from sagakit.dispatch.envelope import AdvanceEnvelope, StepEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.dispatch.routing import Routing
from sagakit.errors import ErrorInfo, StepNotFound
from sagakit.ids import new_token
from sagakit.settings import Settings
from sagakit.states import SagaState, StepState
from sagakit.store import DueStep, RunningStep, Store
from sagakit.worker.notices import Notice, NoticeKind

logger = logging.getLogger(__name__)

LOST = "sagakit.WorkerLost"
TIMED_OUT = "sagakit.TimeLimitExceeded"
REVOKED = "sagakit.Revoked"
EXPIRED = "sagakit.Expired"

_LONGEST_BACKOFF = timedelta(days=1)

OVERTAKEN = timedelta(seconds=10)
"""A message is taken for lost once others, sent this much later to the same queue, have been received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the worker knows that the database does not.

    Attributes:
        idle: it has had nothing to do for a while, so that whatever lies in its queues would have reached it.
        queues: the queues it consumes.
        newest: by queue, when the newest message received was sent, in seconds of the database's clock.
        leases_trusted: the database has been reachable for a whole lease, so that every living worker could renew.
        notices: what the main process learned since the last sweep.
    """

    idle: bool = True
    queues: Collection[str] = ()
    newest: Mapping[str, float] = field(default_factory=dict)
    leases_trusted: bool = True
    notices: Collection[Notice] = ()


class Sweep:
    """One worker's sweep.

    Each action is one guarded write on one row, so that any number of sweeps, and the workers themselves, can meet.
    """

    def __init__(
        self, store: Store, registry: Registry, publisher: Publisher, routing: Routing, settings: Settings
    ) -> None:
        self._store = store
        self._registry = registry
        self._publisher = publisher
        self._routing = routing
        self._settings = settings
        self._broker_away = False

    def run(self, around: Surroundings) -> timedelta | None:
        """Look once; return how long it is until something is due, if that is known.

        Raises:
            Exception: the first fault there was; the other parts have been run all the same, for a row that cannot
                be dealt with must not stand in the way of all others.
        """
        parts: list[Callable[[], None]] = [partial(self._handle, notice) for notice in around.notices]
        parts += [self._cancel_expired, self._stop_overdue]
        if around.leases_trusted:
            parts.append(self._free_orphaned)
        parts += [partial(self._send_steps, around), self._wake_unfed, partial(self._send_advances, around)]
        fault: Exception | None = None
        self._broker_away = False
        for part in parts:
            try:
                part()
            except Exception as exc:
                fault = fault or exc
        if fault is not None:
            raise fault
        with self._store.read() as tx:
            due = tx.queries.next_due()
            # By the database's clock on both sides: this machine's own may be off.
            # What the broker refused is due all the time: leave it to the next regular sweep.
            return due - tx.now() if due is not None and not self._broker_away else None

    # Rows that will not go on by themselves.

    def _handle(self, notice: Notice) -> None:
        delivery = notice.delivery
        with self._store.read() as tx:
            row = tx.steps.running(delivery.saga_id, delivery.position)
        if row is not None and not notice.is_about(row.token):
            row = None
        if notice.kind is NoticeKind.REVOKED:
            with self._store.begin() as tx:
                error = ErrorInfo(type=REVOKED, message="its Celery task was revoked")
                revoked = tx.steps.revoke(
                    delivery.saga_id, delivery.position, token=delivery.token, error=error
                )
            if revoked:
                self._wake(delivery.saga_id)
        elif row is not None and notice.kind is NoticeKind.LOST:
            self._lose(
                row, ErrorInfo(type=LOST, message=f"the process that ran it died (worker {row.owner})")
            )
        elif row is not None:
            why = {
                NoticeKind.TIMED_OUT: "it was killed at Celery's hard time limit",
                NoticeKind.TERMINATED: "its Celery task was terminated while it ran",
            }[notice.kind]
            self._lose(row, ErrorInfo(type=TIMED_OUT, message=why), rerun=False)

    def _free_orphaned(self) -> None:
        # Only of tasks this process defines: whether others may run again is for their own workers to say.
        tasks = list(self._registry.tasks)
        for row in self._found(lambda tx: tx.steps.orphaned(self._settings.sweep_batch, tasks=tasks)):
            self._lose(row, ErrorInfo(type=LOST, message=f"worker {row.owner} has not been heard of"))

    def _stop_overdue(self) -> None:
        for row in self._found(lambda tx: tx.steps.overdue(self._settings.sweep_batch)):
            self._lose(row, ErrorInfo(type=TIMED_OUT, message="it ran past its time_limit"), rerun=False)

    def _cancel_expired(self) -> None:
        for row in self._found(lambda tx: tx.steps.expired(self._settings.sweep_batch)):
            with self._store.begin() as tx:
                error = ErrorInfo(type=EXPIRED, message="no worker had begun it when it expired")
                revoked = tx.steps.revoke(row.saga_id, row.position, token=row.token, error=error)
            if revoked:
                self._wake(row.saga_id)

    def _found(self, find: "Callable[..., list[RunningStep]]") -> list[RunningStep]:
        # The rows are locked only while they are being found: what is done about each is guarded by its token.
        with self._store.begin() as tx:
            return find(tx)

    def _lose(self, row: RunningStep, error: ErrorInfo, *, rerun: bool | None = None) -> None:
        """Give an attempt up for lost. The new token fences whoever may still be running it."""
        if rerun is None:
            try:
                rerun = self._registry.task(row.task or "").options.acks_late
            except StepNotFound:
                return  # whether it may run again is for a worker to say that knows the step
        probes.point("sweep.lose")
        with self._store.begin() as tx:
            state = tx.steps.lose(
                row.saga_id,
                row.position,
                row.token,
                new_token=new_token(),
                rerun=rerun,
                max_lost=self._settings.max_lost_attempts,
                error=error,
            )
            if state is None:
                return
            outcome = "lost" if state is StepState.SCHEDULED else "unknown"
            tx.attempts.record(
                row.saga_id, row.position, row.attempt, error=error, owner=row.owner, outcome=outcome
            )
        if state is not StepState.SCHEDULED or self._is_undoing(row.saga_id):
            self._wake(row.saga_id)
        logger.warning(
            "saga %s: attempt %d of %s is lost (%s)", row.saga_id, row.attempt, row.name, error.message
        )

    def _is_undoing(self, saga_id: str) -> bool:
        """Whether a step that would run again is to be withdrawn instead."""
        with self._store.read() as tx:
            saga = tx.sagas.get(saga_id)
        return saga is not None and saga.state is SagaState.COMPENSATING

    def _wake(self, saga_id: str) -> None:
        """Have the saga advanced.

        Not in the transaction that changed its step: workers lock the saga first, and would deadlock with one that
        came the other way. If this process dies in between, the outcome is found unfed.
        """
        with self._store.begin() as tx:
            tx.sagas.wake(saga_id, tx.now())

    # Messages.

    def _send_steps(self, around: Surroundings) -> None:
        limit, settings = self._settings.sweep_batch, self._settings
        due: list[DueStep] = []
        with self._store.begin() as tx:
            now = tx.now()
            if around.idle:
                due += tx.steps.due(
                    limit,
                    republish_after=settings.republish_after,
                    republish_max=settings.republish_max,
                    queues=[*around.queues, None],
                    presume_lost=True,
                )
            else:
                due += tx.steps.due(
                    limit,
                    republish_after=settings.republish_after,
                    republish_max=settings.republish_max,
                    presume_lost=False,
                )
                for queue, patience in self._overtaken(around, now):
                    due += tx.steps.due(
                        limit,
                        republish_after=patience,
                        republish_max=max(patience, settings.republish_max),
                        queues=[queue],
                        presume_lost=True,
                    )
                # Without any evidence, too, in the end: the doubling interval keeps a backlog from multiplying.
                if len(due) < limit:
                    due += tx.steps.due(
                        limit - len(due),
                        republish_after=settings.republish_max,
                        republish_max=_LONGEST_BACKOFF,
                        presume_lost=True,
                    )
        sent = self._publisher.publish(
            StepEnvelope(
                saga_id=step.saga_id,
                saga_name=step.saga_name,
                position=step.position,
                token=step.token,
                task=step.task,
                name=step.name,
                kind=step.kind,
                queue=step.queue,
                priority=step.priority,
                sent_at=now,
                run=step.run,
            )
            for step in due
        )
        if not sent:
            # What never left must not wait as long as what may be lost on its way.
            self._broker_away = True
            with self._store.begin() as tx:
                tx.steps.not_sent(due)

    @staticmethod
    def _overtaken(around: Surroundings, now: datetime) -> list[tuple[str, timedelta]]:
        """By queue, how old a message must be for later ones to have overtaken it.

        A busy worker cannot tell a lost message from one that waits its turn, except that queues are first in, first
        out: what was sent well before the newest message received should have come by now.
        """
        return [
            (queue, now - datetime.fromtimestamp(newest, now.tzinfo) + OVERTAKEN)
            for queue, newest in around.newest.items()
        ]

    def _wake_unfed(self) -> None:
        """An outcome nobody feeds: its recorder died between two commits."""
        with self._store.begin() as tx:
            waiting = tx.steps.unfed(self._settings.sweep_batch, self._settings.republish_after)
        for saga_id in waiting:
            self._wake(saga_id)

    def _send_advances(self, around: Surroundings) -> None:
        with self._store.begin() as tx:
            now = tx.now()
            queue = self._routing.coordinator_queue
            patience = self._settings.republish_after if around.idle and queue in around.queues else None
            if patience is None:
                patience = dict(self._overtaken(around, now)).get(queue)
            due = tx.sagas.due(
                self._settings.sweep_batch,
                republish_after=patience or self._settings.republish_max,
                republish_max=self._settings.republish_max if around.idle else _LONGEST_BACKOFF,
                presume_lost=True,
            )
        sent = self._publisher.publish(
            AdvanceEnvelope(saga_id=saga.id, saga_name=saga.name, priority=saga.priority, sent_at=now)
            for saga in due
        )
        if not sent:
            self._broker_away = True
            for saga in due:
                self._wake(saga.id)
