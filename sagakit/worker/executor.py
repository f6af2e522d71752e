"""A step's life in a worker: claim, run, record and advance in one transaction, publish."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy.exc import SQLAlchemyError

from sagakit import probes
from sagakit.account import happened
from sagakit.codec import to_python, to_text
from sagakit.coordinator.ledger import Limits
from sagakit.definition.registry import Registry
from sagakit.definition.retry import RetryPolicy
from sagakit.definition.step import TaskFunction
from sagakit.dispatch.envelope import Delivery
from sagakit.errors import ErrorInfo, NotDecodable, SagakitError, StepNotFound, describe
from sagakit.ids import idempotency_key, new_token
from sagakit.running import is_shutdown
from sagakit.states import Kind, SagaState, StepState
from sagakit.store import Claimed, Store, Transaction, is_outage
from sagakit.worker.advance import Advanced, Advancer
from sagakit.worker.context import Outcome, StepContext
from sagakit.worker.identity import Identity
from sagakit.worker.notices import claim_token
from sagakit.worker.perform import Again, Ended, decode_arguments, perform
from sagakit.worker.undisturbed import undisturbed

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE = 5.0
"""Seconds between two tries to record an outcome while the database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """One run, for Celery's hooks and events.

    Attributes:
        landed: the outcome was recorded; a late one is refused.
        args: arguments the user's function was called with.
    """

    ended: Ended | Again
    landed: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Executor:
    """Runs steps, compensations and probes for the Celery tasks that stand for them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        advancer: Advancer,
        identity: Identity,
        limits: Limits,
        max_lost: int,
    ) -> None:
        self._store = store
        self._registry = registry
        self._advancer = advancer
        self._identity = identity
        self._limits = limits
        self._max_lost = max_lost

    def execute(self, delivery: Delivery, policy: RetryPolicy, request: Any) -> Executed | None:
        """Work one message off.

        Args:
            delivery: what the message says.
            policy: when to try again.
            request: Celery's own request, for the step's context.

        Returns:
            What became of it, or ``None`` if there was nothing to run: a duplicate, or the row was withdrawn.
        """
        claimed = self._claim(delivery)
        if claimed is None:
            self._advancer.catch_up(delivery.saga_id)
            return None
        try:
            return self._run(claimed, policy, request)
        except BaseException as exc:
            # The worker's lease lives on: nobody else would ever speak for this row. A process that is being stopped
            # is another matter: the main process knows why (a time limit, a revoke, its own end), and says so.
            if not is_shutdown(exc):
                self._give_up(claimed, exc)
            raise

    def _run(self, claimed: Claimed, policy: RetryPolicy, request: Any) -> Executed | None:
        try:
            function = self._registry.task(claimed.task)
            args, kwargs = self._arguments(function, claimed)
        except (NotDecodable, StepNotFound) as exc:
            self._stick(claimed, exc)
            return None
        context = self._context(claimed, request)
        probes.point("effect.before")
        ended = perform(
            function,
            args,
            kwargs,
            context,
            policy=policy,
            retries=claimed.retries,
            tainted=claimed.tainted,
            limits=self._limits,
        )
        probes.point("effect.after")
        with undisturbed():
            landed = self._record(claimed, ended)
        return Executed(ended=ended, landed=landed, args=args, kwargs=kwargs)

    def _claim(self, delivery: Delivery) -> Claimed | None:
        owner = self._identity.worker_id
        assert owner is not None, "a process that claims steps has an identity"
        probes.point("claim.before")
        # Durable before the body runs: a claim that vanished with a database crash would let the step run again
        # without anybody knowing that it had begun.
        token = claim_token(delivery)
        try:
            with self._store.at_once() as tx:
                claimed = tx.steps.claim(
                    delivery.saga_id, delivery.position, delivery.token, new_token=token, owner=owner
                )
        except SQLAlchemyError:
            # It may have landed, its answer lost on the way. The body has not run: give the row back.
            self._persist(
                delivery.saga_id,
                lambda tx: tx.steps.hand_back(
                    delivery.saga_id, delivery.position, token, new_token=new_token()
                ),
            )
            self._identity.poke()
            raise
        probes.point("claim.committed")
        if claimed is not None and claimed.time_limit is not None:
            self._identity.poke()  # the sweep keeps the time
        return claimed

    def _arguments(
        self, function: TaskFunction[..., Any], claimed: Claimed
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if claimed.target is None:
            return decode_arguments(function, claimed.args or "{}", None)
        return decode_arguments(function, claimed.target.args or "{}", self._result_of_target(claimed))

    def _result_of_target(self, claimed: Claimed) -> str | None:
        """The result of the step being undone; one of unknown outcome may have been found out by a probe."""
        assert claimed.target is not None
        if claimed.target.state is StepState.SUCCEEDED:
            return claimed.target.result
        answer = self._probed(claimed)
        return to_text(answer["result"]) if answer is not None else None

    def _probed(self, claimed: Claimed) -> dict[str, Any] | None:
        with self._store.read() as tx:
            rows = tx.steps.load(claimed.saga_id)
        for row in rows:
            if row.kind is Kind.PROBE and row.compensates == claimed.compensates and happened(row):
                return cast("dict[str, Any]", to_python(row.result or "null"))
        return None

    def _context(self, claimed: Claimed, request: Any) -> StepContext:
        outcome: Outcome | None = None
        if claimed.kind is Kind.COMPENSATION and claimed.target is not None:
            known = claimed.target.state is StepState.SUCCEEDED or self._probed(claimed) is not None
            outcome = "succeeded" if known else "unknown"
        return StepContext(
            saga_id=claimed.saga_id,
            saga_name=claimed.saga_name,
            step_name=claimed.name,
            position=claimed.position,
            attempt=claimed.attempt,
            idempotency_key=idempotency_key(claimed.saga_id, claimed.position, claimed.run),
            outcome=outcome,
            request=request,
            report=lambda text: self._report(claimed, text),
        )

    def _report(self, claimed: Claimed, text: str) -> None:
        try:
            with self._store.begin() as tx:
                shown = text.replace("\0", "").encode("utf-8", "replace").decode()
                tx.steps.report(claimed.saga_id, claimed.position, claimed.token, progress=shown)
        except SQLAlchemyError as exc:  # it is for people to look at: the step must not fail of it
            logger.warning(
                "saga %s: the progress of %s cannot be noted: %s", claimed.saga_id, claimed.name, exc
            )

    def _stick(self, claimed: Claimed, exc: SagakitError) -> None:
        """Give the step back unrun and hold the saga: a bad deploy must neither run nor undo anything."""
        logger.error("saga %s is stuck at %s: %s", claimed.saga_id, claimed.name, exc)
        with self._store.begin() as tx:
            tx.sagas.lock(claimed.saga_id, wait=True)
            tx.steps.hand_back(claimed.saga_id, claimed.position, claimed.token, new_token=new_token())
            tx.sagas.stick(claimed.saga_id, describe(exc, step=claimed.name))

    def _give_up(self, claimed: Claimed, exc: BaseException) -> None:
        """Free a row whose run was broken off; if its outcome was recorded after all, nothing lands here."""
        try:
            rerun = self._registry.task(claimed.task).options.acks_late
        except StepNotFound:
            rerun = True
        error = describe(exc, step=claimed.name)

        def lose(tx: Transaction) -> None:
            state = tx.steps.lose(
                claimed.saga_id,
                claimed.position,
                claimed.token,
                new_token=new_token(),
                rerun=rerun,
                max_lost=self._max_lost,
                error=error,
            )
            if state is not None:
                self._note_attempt(tx, claimed, error, "lost" if state is StepState.SCHEDULED else "unknown")

        self._persist(claimed.saga_id, lose)
        self._identity.poke()
        self._advancer.catch_up(claimed.saga_id)

    def _record(self, claimed: Claimed, ended: Ended | Again) -> bool:
        """Record what became of the attempt, however long the database is away: the effect has happened."""
        if isinstance(ended, Again):
            return self._again_and_again(claimed.saga_id, lambda: self._record_again(claimed, ended))
        return self._again_and_again(claimed.saga_id, lambda: self._finish(claimed, ended))

    def _persist(self, saga_id: str, write: Callable[[Transaction], object]) -> None:
        def once() -> None:
            with self._store.begin() as tx:
                write(tx)

        self._again_and_again(saga_id, once)

    @staticmethod
    def _again_and_again(saga_id: str, write: Callable[[], T]) -> T:
        """Write, and write again as long as the database is away."""
        pause = 0.05
        while True:
            try:
                return write()
            except SQLAlchemyError as exc:
                if not is_outage(exc):
                    raise
                logger.warning("saga %s: the ledger cannot be written (%s); trying again", saga_id, exc)
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _record_again(self, claimed: Claimed, again: Again) -> bool:
        with self._store.begin() as tx:
            landed = tx.steps.retry(
                claimed.saga_id,
                claimed.position,
                claimed.token,
                new_token=new_token(),
                delay=again.delay,
                error=again.error,
                tainted=again.tainted,
            )
            if landed:
                self._note_attempt(tx, claimed, again.error, "retried")
        probes.point("retry.committed")
        self._identity.poke()
        # After the commit: a cancellation that came before it saw the step running, and left it to this attempt.
        with self._store.read() as tx:
            saga = tx.sagas.get(claimed.saga_id)
        if landed and saga is not None and saga.state is SagaState.COMPENSATING:
            self._advancer.catch_up(claimed.saga_id)
        return landed or self._refused(claimed)

    def _finish(self, claimed: Claimed, ended: Ended) -> bool:
        try:
            landed, advanced = self._finish_and_advance(claimed, ended)
        except SQLAlchemyError:
            raise
        except Exception as exc:
            # A fault of the advance, such as a router's, must not cost the step's outcome.
            landed, advanced = self._finish_and_hold(claimed, ended, exc), Advanced(publish=[])
        if not landed:
            return self._already_finished(claimed, ended) or self._refused(claimed)
        if advanced is None:
            advanced = Advanced(publish=[], look_again=True)  # the lock was busy: try it once more
        self._advancer.follow_up(claimed.saga_id, advanced)
        return True

    def _finish_and_hold(self, claimed: Claimed, ended: Ended, exc: Exception) -> bool:
        with self._store.begin() as tx:
            tx.sagas.lock(claimed.saga_id, wait=True)
            landed = self._write_outcome(tx, claimed, ended)
        self._advancer.hold(claimed.saga_id, exc)
        return landed

    def _finish_and_advance(self, claimed: Claimed, ended: Ended) -> tuple[bool, Advanced | None]:
        advanced: Advanced | None = None
        probes.point("finish.before")
        with self._store.begin() as tx:
            # Saga before step, in every transaction: two that met the other way round would deadlock.
            locked = tx.sagas.lock(claimed.saga_id, wait=False)
            landed = self._write_outcome(tx, claimed, ended)
            if landed and locked is not None:
                advanced = self._advancer.advance_locked(tx, locked)
            probes.point("finish.commit")
        probes.point("finish.committed")
        return landed, advanced

    def _write_outcome(self, tx: Transaction, claimed: Claimed, ended: Ended) -> bool:
        landed = tx.steps.finish(
            claimed.saga_id,
            claimed.position,
            claimed.token,
            state=ended.state,
            result=ended.result,
            error=ended.error,
        )
        if landed and ended.state is not StepState.SUCCEEDED:
            outcome = "unknown" if ended.state is StepState.UNKNOWN else "failed"
            self._note_attempt(tx, claimed, ended.error, outcome)
        return landed

    def _already_finished(self, claimed: Claimed, ended: Ended) -> bool:
        """Whether an earlier try did commit, its confirmation lost with the connection."""
        with self._store.read() as tx:
            row = next(
                (row for row in tx.steps.load(claimed.saga_id) if row.position == claimed.position), None
            )
            holder = tx.steps.token(claimed.saga_id, claimed.position)
        finished = row is not None and row.state is ended.state and holder == claimed.token
        if finished:
            self._advancer.catch_up(claimed.saga_id)
        return finished

    def _note_attempt(self, tx: Transaction, claimed: Claimed, error: ErrorInfo | None, outcome: str) -> None:
        tx.attempts.record(
            claimed.saga_id,
            claimed.position,
            claimed.attempt,
            error=error,
            owner=self._identity.worker_id,
            outcome=outcome,
        )

    def _refused(self, claimed: Claimed) -> bool:
        logger.warning(
            "saga %s: the outcome of %s (attempt %d) came too late and is refused: the attempt was given up for lost",
            claimed.saga_id,
            claimed.name,
            claimed.attempt,
        )
        self._advancer.catch_up(claimed.saga_id)
        return False
