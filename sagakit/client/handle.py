"""A handle on one saga: follow it, wait for it, act on it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Generic, Protocol, TypeVar, cast

from sqlalchemy.exc import DBAPIError

from sagakit.account import draw_up
from sagakit.client.operating import Operator, ReplayPlan
from sagakit.client.waiting import OutcomeWaiter
from sagakit.clock import Duration, duration, utcnow
from sagakit.codec import to_python
from sagakit.definition.registry import Registry
from sagakit.errors import OutcomeTimeout, SagaNotFound
from sagakit.history import SagaRecord
from sagakit.outcomes import AnyOutcome, Compensated, CompensationFailed, Completed, SagaFailed, Stuck
from sagakit.states import TERMINAL_SAGA_STATES, SagaState
from sagakit.store import Store, Transaction

R = TypeVar("R")
T = TypeVar("T")


class Backstage(Protocol):
    """What handles need of the kit."""

    @property
    def store(self) -> Store: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def waiter(self) -> OutcomeWaiter: ...
    @property
    def operator(self) -> Operator: ...


class SagaHandle(Generic[R]):
    """One saga.

    Attributes:
        id: the saga's id.
    """

    __slots__ = ("_kit", "id")

    def __init__(self, kit: Backstage, saga_id: str) -> None:
        self._kit = kit
        self.id = saga_id

    def status(self) -> SagaState:
        """The state it is in.

        Raises:
            SagaNotFound: there is no such saga.
        """
        saga = self._ask(lambda tx: tx.sagas.get(self.id))
        if saga is None:
            raise self._not_found()
        return saga.state

    def history(self) -> SagaRecord:
        """Everything on record: its ledger, its failed attempts, what operators did.

        Raises:
            SagaNotFound: there is no such saga.
        """
        record = self._ask(lambda tx: tx.queries.record(self.id))
        if record is None:
            raise self._not_found()
        return record

    def _ask(self, question: Callable[[Transaction], T]) -> T:
        """Read, and read again if the connection had died in the pool: a restarted database drops them all."""
        try:
            with self._kit.store.read() as tx:
                return question(tx)
        except DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
        with self._kit.store.read() as tx:
            return question(tx)

    def _not_found(self) -> SagaNotFound:
        return SagaNotFound(
            f"there is no saga {self.id!r} (if it was started with session=, that transaction has not committed)"
        )

    def outcome(self, timeout: Duration | None = None) -> AnyOutcome[R]:
        """Wait for the saga to end, or to get stuck, and tell how.

        Args:
            timeout: how long to wait; for ever by default.

        Raises:
            OutcomeTimeout: it has not ended yet. It runs on.
            SagaNotFound: there is no such saga.
        """
        state = self.status()
        if state not in TERMINAL_SAGA_STATES and state is not SagaState.STUCK:
            future = self._kit.waiter.wait(self.id)
            try:
                future.result(None if timeout is None else duration(timeout).total_seconds())
            except FutureTimeout:
                future.cancel()
                raise self._timeout(timeout) from None
        return self._read_outcome()

    async def aoutcome(self, timeout: Duration | None = None) -> AnyOutcome[R]:
        """:meth:`outcome` for async code."""
        state = await asyncio.to_thread(self.status)
        if state not in TERMINAL_SAGA_STATES and state is not SagaState.STUCK:
            future = asyncio.wrap_future(self._kit.waiter.wait(self.id))
            try:
                await asyncio.wait_for(future, None if timeout is None else duration(timeout).total_seconds())
            except TimeoutError:
                raise self._timeout(timeout) from None
        return await asyncio.to_thread(self._read_outcome)

    def _timeout(self, timeout: Duration | None) -> OutcomeTimeout:
        seconds = duration(timeout or 0).total_seconds()
        return OutcomeTimeout(f"saga {self.id} has not ended within {seconds:g} s; it runs on")

    def result(self, timeout: Duration | None = None) -> R:
        """Wait for the saga to complete, and return what its body returned.

        Raises:
            SagaFailed: it did not complete; ``.outcome`` is the whole account.
            OutcomeTimeout: it has not ended yet.
        """
        return _unwrap(self.outcome(timeout))

    async def aresult(self, timeout: Duration | None = None) -> R:
        """:meth:`result` for async code."""
        return _unwrap(await self.aoutcome(timeout))

    def _read_outcome(self) -> AnyOutcome[R]:
        saga, rows = self._ask(lambda tx: (tx.sagas.get(self.id), tx.steps.load(self.id)))
        if saga is None:
            raise self._not_found()
        account = draw_up(rows, failed=saga.error is not None)
        told: dict[str, Any] = {
            "saga_id": saga.id,
            "failed_step": saga.failed_step,
            "error": saga.error,
            "compensated": account.compensated,
            "not_compensated": account.not_compensated,
            "unknown": account.unknown,
            "duration": (saga.finished_at or utcnow()) - saga.created_at,
        }
        match saga.state:
            case SagaState.COMPLETED:
                return Completed(result=self._decode(saga.name, saga.version, saga.result), **told)
            case SagaState.COMPENSATED:
                return Compensated(**told)
            case SagaState.COMPENSATION_FAILED:
                return CompensationFailed(**told)
            case SagaState.STUCK:
                return Stuck(**{**told, "error": saga.trouble or saga.error})
        return self.outcome()  # an operator opened it again meanwhile

    def _decode(self, name: str, version: int, text: str | None) -> R:
        definition = self._kit.registry.saga(name, version) or self._kit.registry.sagas.get(name)
        if (
            definition is None
        ):  # this process follows a saga it does not define: plain JSON is all it can have
            return cast(R, to_python(text or "null"))
        return cast(R, definition.result_codec.loads(text or "null"))

    def cancel(self, *, reason: str, actor: str | None = None) -> None:
        """Stop the saga and undo what it did. From now on it cannot end ``completed``.

        Raises:
            NotAllowed: it has ended.
            SagaNotFound: there is no such saga.
        """
        self._kit.operator.cancel(self.id, reason=reason, actor=actor)

    def resume(self, *, reason: str | None = None, actor: str | None = None) -> None:
        """Let a stuck saga go on, after a fix.

        Raises:
            NotAllowed: it is not stuck.
            SagaNotFound: there is no such saga.
        """
        self._kit.operator.resume(self.id, reason=reason, actor=actor)

    def compensate(
        self,
        *,
        reason: str | None = None,
        failed_only: bool = False,
        step: str | None = None,
        completed: bool = False,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> ReplayPlan:
        """Undo what is not undone yet.

        Args:
            reason: goes on record; required unless ``dry_run``.
            failed_only: only compensations that were tried and failed.
            step: only that of the step of this name.
            completed: undo a saga that has completed.
            dry_run: write nothing; only say what would be done.
            actor: who does it; the operating system's user by default.

        Raises:
            NotAllowed: the saga is in no state to be undone.
            SagaNotFound: there is no such saga.
            InvalidInput: no reason, or no step of this name.
        """
        return self._kit.operator.compensate(
            self.id,
            failed_only=failed_only,
            step=step,
            completed=completed,
            dry_run=dry_run,
            reason=reason,
            actor=actor,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SagaHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<SagaHandle {self.id}>"


def _unwrap(outcome: AnyOutcome[R]) -> R:
    if isinstance(outcome, Completed):
        return outcome.result
    raise SagaFailed(outcome)
