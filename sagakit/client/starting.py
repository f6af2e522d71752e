"""Starting sagas: the row is written in the caller, in the caller's transaction if there is one."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy.exc import OperationalError, ProgrammingError

from sagakit import probes
from sagakit.client.session import AfterCommit, SessionJoiner
from sagakit.clock import duration
from sagakit.codec import bounded, canonical
from sagakit.definition.saga import SagaDefinition
from sagakit.dispatch.envelope import AdvanceEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.errors import InvalidInput, SagaExists, SagaIdConflict, suggest
from sagakit.ids import check_saga_id, new_saga_id, new_token
from sagakit.settings import Settings
from sagakit.states import SagaState
from sagakit.store import NewSaga, Store, Transaction
from sagakit.store import schema as ledger_schema

IfExists = Literal["return", "raise", "restart_if_compensated"]

_INSTEAD = {
    "countdown": "begin the body with `await asyncio.sleep(...)`, which is durable",
    "eta": "begin the body with `await asyncio.sleep(...)`, which is durable",
    "expires": "deadline=... is when the saga must have completed",
    "queue": "the queue is each step's own, and sagakit_coordinator_queue is the coordinator's",
    "id": "saga_id=... is the saga's id",
}
"""What a Celery user may mean by an option that a start does not have."""

_OPTIONS = frozenset({"saga_id", "deadline", "priority", "tags", "if_exists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """How one saga is to be started; see :meth:`SagaDefinition.start`."""

    saga_id: str | None = None
    deadline: Any = None
    priority: int | None = None
    tags: Mapping[str, Any] | None = None
    if_exists: IfExists = "return"


class SagaStarter:
    """Writes the rows of new sagas.

    Args:
        store: the ledger.
        publisher: sends their first messages.
        settings: size bounds and intervals.
        after_start: called with the id of each saga that was started and published.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        settings: Settings,
        after_start: Callable[[str], None],
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._settings = settings
        self._after_start = after_start
        self._joiner = SessionJoiner(store)
        self._after_commit = AfterCommit(store)

    def start(
        self, definition: SagaDefinition[Any, Any], given: Iterable[tuple[Any, StartOptions]], session: Any
    ) -> list[str]:
        """Start sagas of one definition in one transaction; return their ids, in order."""
        prepared = [(self._prepare(definition, value, options), options) for value, options in given]
        if session is not None:
            try:
                tx = self._joiner.join(session)
            except (ProgrammingError, OperationalError):
                ledger_schema.require(self._store)
                raise
            fresh = self._insert(tx, prepared)
            if fresh:
                self._after_commit.watch(
                    tx.connection, [new.id for new in fresh], lambda: self._send(definition, fresh)
                )
        else:
            try:
                with self._store.begin() as tx:
                    fresh = self._insert(tx, prepared)
                    probes.point("start.commit")
            except (ProgrammingError, OperationalError):
                ledger_schema.require(self._store)  # says what to do if the tables are missing
                raise
            probes.point("start.committed")
            self._send(definition, fresh)
        return [new.id for new, _ in prepared]

    async def astart(
        self, definition: SagaDefinition[Any, Any], given: Iterable[tuple[Any, StartOptions]], session: Any
    ) -> list[str]:
        """:meth:`start` for async code."""
        listed = list(given)
        if session is None:
            return await asyncio.to_thread(self.start, definition, listed, None)
        if hasattr(session, "run_sync"):
            ids: list[str] = await session.run_sync(lambda inner: self.start(definition, listed, inner))
            return ids
        return self.start(definition, listed, session)

    def _prepare(self, definition: SagaDefinition[Any, Any], value: Any, options: StartOptions) -> NewSaga:
        if options.if_exists not in get_args(IfExists):
            raise InvalidInput(
                f"if_exists={options.if_exists!r}: {suggest(str(options.if_exists), get_args(IfExists))}"
            )
        text = bounded(
            definition.input_codec.dumps(value),
            definition.input_codec.what,
            limit=self._settings.payload_limit,
            warning=self._settings.payload_warning,
        )
        try:
            saga_id = check_saga_id(options.saga_id) if options.saga_id is not None else new_saga_id()
        except ValueError as exc:
            raise InvalidInput(str(exc)) from None
        return NewSaga(
            id=saga_id,
            name=definition.name,
            version=definition.version,
            definition_hash=definition.hash,
            input=text,
            deadline_at=self._deadline(options.deadline),
            priority=options.priority,
            tags=options.tags,
            wake_at_delay=self._settings.republish_after,
        )

    def _deadline(self, deadline: Any) -> datetime | None:
        if deadline is None:
            return None
        if isinstance(deadline, datetime):
            if deadline.tzinfo is None:
                raise InvalidInput(
                    f"deadline={deadline!r} has no time zone: pass an aware datetime, or a duration"
                )
            return deadline
        try:
            span: timedelta = duration(deadline)
        except ValueError as exc:
            raise InvalidInput(f"deadline: {exc}") from None
        # Deadlines are judged by the database's clock, so a span is counted from there.
        with self._store.read() as tx:
            return tx.now() + span

    def _insert(self, tx: Transaction, prepared: list[tuple[NewSaga, StartOptions]]) -> list[NewSaga]:
        """Insert what is new, and deal with what exists; return the sagas that were inserted."""
        inserted = tx.sagas.insert([new for new, _ in prepared])
        fresh, seen = [], set()
        for new, options in prepared:
            if new.id in inserted and new.id not in seen:
                seen.add(new.id)
                fresh.append(new)
            elif self._restart(tx, new, options):
                fresh.append(new)
        return fresh

    def _restart(self, tx: Transaction, new: NewSaga, options: StartOptions) -> bool:
        """Decide about a saga whose id is taken; whether it was started again."""
        existing = tx.sagas.get(new.id)
        if existing is None:
            raise SagaExists(f"saga {new.id} is being removed at this moment: start it again")
        if options.if_exists == "raise":
            raise SagaExists(
                f"saga {new.id} exists already ({existing.state}); kit.get({new.id!r}) is its handle"
            )
        if existing.name != new.name:
            raise SagaIdConflict(f"the id {new.id!r} belongs to a saga of {existing.name}, not of {new.name}")
        if options.if_exists == "restart_if_compensated" and existing.state is SagaState.COMPENSATED:
            # The old ledger stays, under an id of its own; only one of two that restart at once moves it.
            tx.sagas.rename(new.id, f"{new.id}~{new_token()}", state_in=frozenset({SagaState.COMPENSATED}))
            return new.id in tx.sagas.insert([replace(new, run=existing.run + 1)])
        if canonical(existing.input or "null") != canonical(new.input or "null"):
            raise SagaIdConflict(
                f"saga {new.id} exists already with another input: an id stands for one input; choose another id, or "
                "pass the input it was started with"
            )
        return False

    def _send(self, definition: SagaDefinition[Any, Any], fresh: list[NewSaga]) -> None:
        self._publisher.publish(
            AdvanceEnvelope(saga_id=new.id, saga_name=definition.name, priority=new.priority) for new in fresh
        )
        for new in fresh:
            self._after_start(new.id)


def read_inputs(inputs: Iterable[Any], common: Mapping[str, Any]) -> list[tuple[Any, StartOptions]]:
    """Read what ``start_many`` was given: inputs, or pairs of an input and its options.

    Raises:
        InvalidInput: an option does not exist.
    """
    result = []
    for item in inputs:
        own: Mapping[str, Any] = {}
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping):
            item, own = item
        result.append((item, start_options({**common, **own})))
    return result


def start_options(given: Mapping[str, Any]) -> StartOptions:
    """Check the options of a start.

    Raises:
        InvalidInput: an option does not exist.
    """
    for name in given:
        if name not in _OPTIONS:
            raise InvalidInput(
                f"start() has no option {name!r}; {_INSTEAD.get(name) or suggest(name, _OPTIONS)}"
            )
    return StartOptions(**given)
