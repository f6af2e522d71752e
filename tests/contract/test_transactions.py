"""Transactions: committed, rolled back, read-only, joined to a caller's; and how many statements the hot ones take."""

from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sagakit.coordinator.ledger import Resolution
from sagakit.errors import SessionMismatch
from sagakit.states import SagaState, StepState
from sagakit.store import Store, WorkerInfo
from tests.contract.ledgers import COMPENSATION, STEP, TIMER, Ledger, new_saga

SECOND = timedelta(seconds=1)


def exists(store: Store, saga_id: str = "a") -> bool:
    """Whether others can see the saga."""
    with store.read() as tx:
        return tx.sagas.get(saga_id) is not None


def test_begin_commits(store: Store) -> None:
    """Leaving the transaction makes it visible to others, not before."""
    with store.begin() as tx:
        tx.sagas.insert([new_saga("a")])
        assert not exists(store)
    assert exists(store)


def test_begin_rolls_back(store: Store) -> None:
    """An exception that leaves the transaction takes everything back."""

    def fail() -> None:
        with store.begin() as tx:
            tx.sagas.insert([new_saga("a")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not exists(store)


def test_read_sees_one_instant(store: Store, ledger: Ledger) -> None:
    """All statements of a reading transaction see the ledger as it was at the first one."""
    ledger.running("a")
    with store.read() as reader:
        assert reader.sagas.get("a") is not None
        with store.begin() as tx:
            tx.steps.finish("a", 0, "t0", state=StepState.SUCCEEDED, result=None, error=None)
        assert reader.steps.load("a")[0].state is StepState.RUNNING
    with store.read() as reader:
        assert reader.steps.load("a")[0].state is StepState.SUCCEEDED


@pytest.mark.postgres
def test_read_refuses_to_write(postgres: Store) -> None:
    """A reading transaction cannot write by mistake, and leaves the connection as it was for the next."""
    store = Store(postgres.url, pool_size=1)
    with pytest.raises(sa.exc.InternalError, match="read-only"), store.read() as tx:
        tx.sagas.insert([new_saga("a")])
    with store.begin() as tx:
        tx.sagas.insert([new_saga("a")])
        assert tx.connection.execute(sa.text("SHOW transaction_isolation")).scalar() == "read committed"
    store.dispose()


def test_now_is_the_databases_clock(store: Store) -> None:
    """The clock goes on within a transaction, and is aware of its zone."""
    with store.begin() as tx:
        first = tx.now()
        assert first.utcoffset() == timedelta(0)
        assert tx.now() >= first


def test_naive_times_are_refused(store: Store, ledger: Ledger) -> None:
    """A time without a zone is nobody's instant."""
    ledger.saga("a")
    naive = ledger.now().replace(tzinfo=None)
    with pytest.raises(sa.exc.StatementError, match="no time zone"), store.begin() as tx:
        tx.sagas.wake("a", naive)


def test_times_of_any_zone_are_instants(store: Store, ledger: Ledger) -> None:
    """A time given in another zone comes back as the same instant, in UTC."""
    at = ledger.now().astimezone(timezone(timedelta(hours=5, minutes=30)))
    ledger.saga("a", wake_at=None)
    with store.begin() as tx:
        tx.sagas.wake("a", at)
    assert ledger.saga_columns("a")["wake_at"] == at


# --- join ---


def test_join_a_connection(store: Store) -> None:
    """What is done in the caller's transaction commits and vanishes with it."""
    with store.engine.connect() as connection:
        store.join(connection).sagas.insert([new_saga("a")])
        connection.rollback()
        assert not exists(store)
        store.join(connection).sagas.insert([new_saga("a")])
        connection.commit()
    assert exists(store)


def test_join_a_session_of_an_engine_of_the_callers_own(store: Store) -> None:
    """A session that sagakit did not make serves as well, savepoints included."""
    engine = sa.create_engine(store.url)
    with Session(engine) as session:
        with session.begin_nested() as savepoint:
            store.join(session.connection()).sagas.insert([new_saga("a")])
            savepoint.rollback()
        store.join(session.connection()).sagas.insert([new_saga("b")])
        session.commit()
    engine.dispose()
    assert (exists(store, "a"), exists(store, "b")) == (False, True)


def test_join_another_kind_of_database(store: Store, tmp_path: Path) -> None:
    """A session on another kind of database is refused, and the error says what to do."""
    other = "sqlite://" if store.dialect.name == "postgresql" else "postgresql+psycopg://nowhere/db"
    engine = sa.create_engine(other)
    with pytest.raises(SessionMismatch, match="without session="):
        store.join(sa.Connection(engine, connection=object()))  # type: ignore[arg-type]  # never used


@pytest.mark.postgres
def test_join_an_asynchronous_session(postgres: Store) -> None:
    """A session of asyncpg's, which takes no parameter whose type it must guess, starts a saga as well."""
    pytest.importorskip("greenlet")
    pytest.importorskip("asyncpg")
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    async def start() -> frozenset[str]:
        engine = create_async_engine(sa.make_url(postgres.url).set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            found = await connection.run_sync(
                lambda sync: postgres.join(sync).sagas.insert(
                    [new_saga("a", tags={"k": 1}, priority=None), new_saga("b", wake_at_delay=SECOND)]
                )
            )
        await engine.dispose()
        return found

    assert asyncio.run(start()) == {"a", "b"}
    assert exists(postgres)


# --- statements ---


def test_statement_counts(store: Store, ledger: Ledger) -> None:
    """Each hot operation is one statement; a compensation's claim reads its target with a second."""
    ledger.running("a")
    ledger.row("a", replace(STEP, position=1))
    ledger.row("a", replace(TIMER, position=2))
    ledger.ended(StepState.SUCCEEDED, "a", replace(STEP, position=3))
    ledger.row("a", replace(COMPENSATION, position=4, compensates=3))
    ledger.worker("w")
    ledger.running("a", replace(STEP, position=5))
    ledger.running("a", replace(STEP, position=6))
    decision = ledger.decision(SagaState.RUNNING)
    many = [replace(STEP, position=n) for n in range(10, 20)]
    with store.begin() as tx, ledger.counting() as statements:

        def costs(count: int) -> None:
            assert len(statements) == count, statements
            statements.clear()

        locked = tx.sagas.lock("a", wait=True)
        assert locked is not None
        costs(1)
        tx.steps.load("a")
        costs(1)
        tx.steps.finish("a", 0, "t0", state=StepState.SUCCEEDED, result="1", error=None)
        costs(1)
        tx.steps.claim("a", 1, "t1", new_token="x", owner="w")
        costs(1)
        tx.steps.claim("a", 4, "t4", new_token="x", owner="w")
        costs(2)
        tx.steps.retry("a", 5, "t5", new_token="x", delay=SECOND, error=None)
        costs(1)
        tx.steps.lose("a", 6, "t6", new_token="x", rerun=True, max_lost=3, error=None)
        costs(1)
        fed = [Resolution(position=0, seq=1), Resolution(position=3, seq=2)]
        assert tx.steps.resolve("a", fed, ledger_at=locked.now)
        costs(1)
        tx.steps.insert("a", many, dict.fromkeys(range(10, 20), "t"))
        costs(1)
        tx.sagas.advance(locked.row, decision, now=locked.now)
        costs(1)
        tx.steps.has_unfed("a")
        costs(1)
        tx.sagas.insert([new_saga("b")])
        costs(1)
        tx.sagas.get("a")
        costs(1)
        tx.queries.ended(["a", "b"])
        costs(1)
        tx.workers.renew("w", SECOND)
        costs(1)
        tx.queries.record("a")
        costs(4)


def test_statements_are_compiled_once(store: Store, ledger: Ledger) -> None:
    """A statement is compiled by its first call only, whatever the parameters, and lists of any length, are."""
    for n in range(3):
        ledger.running("a", replace(STEP, position=n))
    sizes = []
    for n in range(3):
        with store.begin() as tx:
            tx.steps.finish("a", n, f"t{n}", state=StepState.SUCCEEDED, result=None, error=None)
            tx.steps.resolve("a", [Resolution(position=n, seq=n + 1)], ledger_at=tx.now())
            tx.workers.register(WorkerInfo(id=f"w{n}", hostname="h", pid=n), SECOND)
            tx.queries.ended([f"s{i}" for i in range(n + 1)])
            tx.sagas.insert([new_saga(f"new{n}", tags={"n": n} if n else None)])
            tx.steps.withdraw("a", list(range(n + 1)), ledger_at=tx.now(), first_seq=9)
        cache = store.engine._compiled_cache
        assert cache is not None
        sizes.append(len(cache))
    assert sizes[0] == sizes[1] == sizes[2]
