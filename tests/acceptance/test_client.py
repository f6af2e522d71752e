"""Starting sagas and waiting for them: ids, transactions, timeouts, outcomes."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sagakit import Compensated, SagaFailed, SagaHandle, SagaKit, SagaState
from sagakit.errors import OutcomeTimeout, SagaExists, SagaIdConflict, SagaNotFound, SessionMismatch
from tests.acceptance.stage import Stage
from tests.cluster.cluster import worker_environment
from tests.cluster.messages import PublishedMessages
from tests.cluster.process import ROOT
from tests.cluster.waiting import wait_until

APP = "orders"


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> None:
    """One worker, and a table of the application's own beside the ledger."""
    stage.cluster.start(stage.app, concurrency=4)
    with stage.kit.store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE own (number int)")


@pytest.fixture(scope="module")
def published(stage: Stage) -> Iterator[PublishedMessages]:
    """Every message of this module."""
    with PublishedMessages(stage.broker_url) as found:
        yield found


@pytest.fixture(scope="module")
def engine(stage: Stage) -> Iterator[sa.Engine]:
    """The application's own engine on the ledger's database."""
    found = sa.create_engine(stage.ledger_url)
    yield found
    found.dispose()


def order(stage: Stage, number: int, **more: Any) -> Any:
    return stage.Order(number=number, **more)


def exists(stage: Stage, saga_id: str) -> bool:
    try:
        stage.kit.get(saga_id).status()
    except SagaNotFound:
        return False
    return True


def messages_of(published: PublishedMessages, saga_id: str) -> int:
    return sum((m.headers.get("sagakit") or {}).get("saga_id") == saga_id for m in published.all())


class TestIds:
    """One id, one saga."""

    def test_the_same_input_is_the_same_saga(self, stage: Stage) -> None:
        """A second start with the same id and input returns the existing saga's handle, whatever came of it."""
        first = stage.checkout.start(order(stage, 1), saga_id="same")
        again = stage.checkout.start(order(stage, 1), saga_id="same")
        assert first == again
        assert again.result(30) == 10
        assert stage.checkout.start(order(stage, 1), saga_id="same").result(5) == 10
        assert stage.done("same") == ["reserve", "charge"]

    def test_another_input_is_refused(self, stage: Stage) -> None:
        """An id stands for one input, and the refusal says what to do."""
        stage.checkout.start(order(stage, 1), saga_id="other-input")
        with pytest.raises(SagaIdConflict) as caught:
            stage.checkout.start(order(stage, 2), saga_id="other-input")
        assert str(caught.value) == (
            "saga other-input exists already with another input: an id stands for one input; choose another id, or "
            "pass the input it was started with"
        )
        assert stage.kit.get("other-input").result(30) == 10

    def test_another_saga_of_this_id_is_refused(self, stage: Stage) -> None:
        """An id belongs to one definition."""
        stage.nothing.start(saga_id="taken").result(30)
        with pytest.raises(SagaIdConflict, match=r"belongs to a saga of .*nothing, not of .*checkout"):
            stage.checkout.start(order(stage, 1), saga_id="taken")

    def test_if_exists_raise(self, stage: Stage) -> None:
        """A caller may ask to be told."""
        stage.checkout.start(order(stage, 1), saga_id="told").result(30)
        with pytest.raises(SagaExists, match=r"saga told exists already \(completed\)"):
            stage.checkout.start(order(stage, 1), saga_id="told", if_exists="raise")

    def test_restart_if_compensated(self, stage: Stage) -> None:
        """A compensated saga is started again under its id, with another input if need be; its old ledger is kept."""
        first = stage.checkout.start(order(stage, 3, fails=True), saga_id="again")
        assert isinstance(first.outcome(30), Compensated)
        second = stage.checkout.start(order(stage, 4), saga_id="again", if_exists="restart_if_compensated")
        assert second.id == "again"
        assert second.result(30) == 40
        [old] = [summary for summary in stage.kit.find(limit=1000) if summary.id.startswith("again~")]
        assert old.state is SagaState.COMPENSATED
        assert [row.name for row in stage.kit.get(old.id).history().steps] == ["reserve", "charge", "release"]
        third = stage.checkout.start(order(stage, 4), saga_id="again", if_exists="restart_if_compensated")
        assert third.result(5) == 40
        assert stage.done("again").count("charge") == 1

    def test_many_at_once(self, stage: Stage) -> None:
        """``start_many`` starts all in one transaction and returns the handles in order."""
        given = [(order(stage, n), {"saga_id": f"many-{n}", "tags": {"n": n}}) for n in range(20)]
        handles = stage.checkout.start_many([*given, order(stage, 20)])
        assert [handle.id for handle in handles[:-1]] == [f"many-{n}" for n in range(20)]
        assert [handle.result(30) for handle in handles] == [n * 10 for n in range(21)]
        [found] = stage.kit.find(tags={"n": 7})
        assert found.id == "many-7"

    def test_many_callers_at_once(self, stage: Stage) -> None:
        """Callers that race with one id get one saga."""
        with ThreadPoolExecutor(8) as pool:
            handles = list(
                pool.map(lambda _: stage.checkout.start(order(stage, 9), saga_id="raced"), range(8))
            )
        assert {handle.result(30) for handle in handles} == {90}
        assert stage.done("raced") == ["reserve", "charge"]


class TestOutcomes:
    """Waiting, in threads and in coroutines."""

    def test_a_failure_is_raised_with_its_account(self, stage: Stage) -> None:
        """``result`` raises ``SagaFailed``, whose outcome and text tell what was undone."""
        handle = stage.checkout.start(order(stage, 5, fails=True), saga_id="failed")
        with pytest.raises(SagaFailed) as caught:
            handle.result(30)
        assert str(caught.value) == (
            "saga failed failed and was compensated at step charge: Refused: number=5 (compensated: reserve)"
        )
        match caught.value.outcome:
            case Compensated(failed_step, error, compensated):
                assert (failed_step, error.fields, compensated) == ("charge", {"number": 5}, ("reserve",))
            case other:
                pytest.fail(f"{other!r}")

    def test_a_timeout(self, stage: Stage) -> None:
        """Waiting in vain says so, and the saga runs on."""
        with stage.effects.gate("reserve slow") as gate:
            handle = stage.checkout.start(order(stage, 6), saga_id="slow")
            gate.wait_reached()
            with pytest.raises(OutcomeTimeout, match=r"^saga slow has not ended within 0.2 s; it runs on$"):
                handle.outcome(timeout=0.2)
            with pytest.raises(TimeoutError):
                asyncio.run(handle.aoutcome(timeout=0.1))
        assert handle.outcome().result == 60

    def test_async(self, stage: Stage) -> None:
        """``astart``, ``aoutcome`` and ``aresult`` are for async code."""

        async def both() -> tuple[Any, Any]:
            good = await stage.checkout.astart(order(stage, 7), saga_id="async-good")
            bad = await stage.checkout.astart(order(stage, 8, fails=True), saga_id="async-bad")
            return await asyncio.gather(good.aresult(timeout=30), bad.aoutcome(timeout="30s"))

        result, outcome = asyncio.run(both())
        assert result == 70
        assert isinstance(outcome, Compensated)

    def test_waiters_share_a_poller(self, stage: Stage) -> None:
        """However many wait, in threads or coroutines, one thread asks the ledger."""

        async def wait(handle: SagaHandle[Any]) -> list[Any]:
            waiting = asyncio.gather(*(handle.aoutcome(30) for _ in range(20)))
            await asyncio.to_thread(wait_until, lambda: len(pollers()) == 1)
            gate.open()
            return await waiting

        with stage.effects.gate("reserve shared") as gate, ThreadPoolExecutor(20) as pool:
            handle = stage.checkout.start(order(stage, 2), saga_id="shared")
            waiting = [pool.submit(handle.outcome, 30) for _ in range(20)]
            outcomes = asyncio.run(wait(handle))
            outcomes += [future.result() for future in waiting]
        assert {outcome.result for outcome in outcomes} == {20}
        assert len(pollers()) <= 1

    def test_no_such_saga(self, stage: Stage) -> None:
        """A handle on nothing says so when it is used."""
        with pytest.raises(SagaNotFound, match="there is no saga 'missing'"):
            stage.kit.get("missing").outcome(1)


def pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sagakit-outcomes"]


class TestSessions:
    """Point 5 of the issue: a start joins the caller's transaction."""

    def test_rollback_leaves_no_trace(
        self, stage: Stage, engine: sa.Engine, published: PublishedMessages
    ) -> None:
        """Neither a row nor a message."""
        with Session(engine) as session:
            session.execute(sa.text("INSERT INTO own VALUES (1)"))
            stage.checkout.start(order(stage, 1), saga_id="rolled-back", session=session)
            session.rollback()
        self.assert_never_was(stage, published, "rolled-back")

    def assert_never_was(self, stage: Stage, published: PublishedMessages, saga_id: str) -> None:
        # Another saga, begun after it and seen to its end: whatever was sent for the first would be here by now.
        stage.nothing.start(saga_id=f"after-{saga_id}").outcome(30)
        assert not exists(stage, saga_id)
        assert messages_of(published, saga_id) == 0

    def test_commit_starts_it(self, stage: Stage, engine: sa.Engine, published: PublishedMessages) -> None:
        """A session's commit is the saga's start, and not before."""
        with Session(engine) as session:
            handle = stage.checkout.start(order(stage, 2), saga_id="committed", session=session)
            with pytest.raises(SagaNotFound, match="if it was started with session=, that transaction"):
                handle.status()
            assert messages_of(published, "committed") == 0
            session.commit()
        assert handle.result(30) == 20

    def test_a_connection(self, stage: Stage, engine: sa.Engine) -> None:
        """A connection does as well as a session."""
        with engine.begin() as connection:
            handle = stage.checkout.start(order(stage, 3), saga_id="connection", session=connection)
        assert handle.result(30) == 30

    def test_savepoints(self, stage: Stage, engine: sa.Engine, published: PublishedMessages) -> None:
        """What was started in a savepoint goes with it."""
        with Session(engine) as session:
            with session.begin_nested():
                kept = stage.checkout.start(order(stage, 4), saga_id="kept", session=session)
            savepoint = session.begin_nested()
            stage.checkout.start(order(stage, 5), saga_id="dropped", session=session)
            savepoint.rollback()
            session.commit()
        assert kept.result(30) == 40
        self.assert_never_was(stage, published, "dropped")

    def test_an_outer_transaction(
        self, stage: Stage, engine: sa.Engine, published: PublishedMessages
    ) -> None:
        """A session that itself joined a transaction commits nothing; the outermost commit counts."""
        with engine.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                stage.checkout.start(order(stage, 6), saga_id="outer-rolled-back", session=session)
                session.commit()
            outer.rollback()
            with connection.begin():
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    handle = stage.checkout.start(order(stage, 7), saga_id="outer", session=session)
                    session.commit()
                assert not exists(stage, "outer")
                assert messages_of(published, "outer") == 0
        assert handle.result(30) == 70
        self.assert_never_was(stage, published, "outer-rolled-back")

    def test_a_session_is_used_again(self, stage: Stage, engine: sa.Engine) -> None:
        """Each transaction of a session starts its own sagas."""
        with Session(engine) as session:
            first = stage.checkout.start(order(stage, 1), saga_id="reused-1", session=session)
            session.commit()
            second = stage.checkout.start(order(stage, 2), saga_id="reused-2", session=session)
            session.rollback()
            third = stage.checkout.start(order(stage, 3), saga_id="reused-3", session=session)
            session.commit()
        assert (first.result(30), third.result(30)) == (10, 30)
        assert not exists(stage, second.id)

    def test_many_in_a_session(self, stage: Stage, engine: sa.Engine) -> None:
        """``start_many`` joins, too."""
        with Session(engine) as session:
            handles = stage.checkout.start_many([order(stage, n) for n in range(3)], session=session)
            session.commit()
        assert [handle.result(30) for handle in handles] == [0, 10, 20]

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_async_sessions(self, stage: Stage, published: PublishedMessages, driver: str) -> None:
        """``astart`` takes async sessions and connections, of any driver."""

        async def play() -> list[int]:
            async with async_engine(stage.ledger_url, f"postgresql+{driver}") as engine:
                async with AsyncSession(engine) as session:
                    await stage.checkout.astart(order(stage, 1), saga_id=f"{driver}-no", session=session)
                    await session.rollback()
                    one = await stage.checkout.astart(order(stage, 2), saga_id=f"{driver}-1", session=session)
                    await session.commit()
                async with engine.begin() as connection:
                    two = await stage.checkout.astart(
                        order(stage, 3), saga_id=f"{driver}-2", session=connection
                    )
                return [await one.aresult(30), await two.aresult(30)]

        assert asyncio.run(play()) == [20, 30]
        self.assert_never_was(stage, published, f"{driver}-no")

    def test_an_async_session_is_for_astart(self, stage: Stage) -> None:
        """``start`` says where an async session belongs."""

        async def play() -> None:
            async with (
                async_engine(stage.ledger_url, "postgresql+psycopg") as engine,
                AsyncSession(engine) as session,
            ):
                stage.checkout.start(order(stage, 1), session=session)

        with pytest.raises(SessionMismatch, match=r"goes to `await saga.astart\(\.\.\., session=\.\.\.\)`"):
            asyncio.run(play())

    def test_another_database_is_refused(self, stage: Stage, postgres_url: str) -> None:
        """A session elsewhere could not be joined, and is still good for its own work."""
        elsewhere = sa.create_engine(postgres_url)
        with Session(elsewhere) as session:
            session.execute(sa.text("CREATE TABLE mine (number int)"))
            with pytest.raises(SessionMismatch, match="which is not the ledger's database"):
                stage.checkout.start(order(stage, 1), saga_id="elsewhere", session=session)
            session.execute(sa.text("INSERT INTO mine VALUES (1)"))
            session.commit()
        elsewhere.dispose()
        assert not exists(stage, "elsewhere")

    def test_what_is_no_session_is_refused(self, stage: Stage) -> None:
        """Anything else is named."""
        with pytest.raises(SessionMismatch, match="takes a SQLAlchemy Session or Connection, not str"):
            stage.checkout.start(order(stage, 1), session="nonsense")

    def test_a_process_that_dies_after_its_commit(self, stage: Stage) -> None:
        """The message is never sent, and the saga runs all the same."""
        script = (
            "import os\n"
            "from sqlalchemy.orm import Session\n"
            "from tests.acceptance.apps.orders import Order, checkout, kit\n"
            "with Session(kit.store.engine) as session:\n"
            "    checkout.start(Order(number=8), saga_id='orphan', session=session)\n"
            "    session.commit()\n"
            "    os._exit(7)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=worker_environment(stage.cluster.env),
            check=False,
            timeout=60,
        )
        assert done.returncode == 7
        assert stage.kit.get("orphan").result(15) == 80


@asynccontextmanager
async def async_engine(url: str, driver: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sa.make_url(url).set(drivername=driver))
    try:
        yield engine
    finally:
        await engine.dispose()


def test_aiosqlite(sqlite_ledger_url: str) -> None:
    """An async session on an SQLite ledger joins, too."""
    kit = SagaKit(Celery("lite", broker="memory://", set_as_current=False), database_url=sqlite_ledger_url)

    @kit.saga
    async def empty(saga: Any) -> None:
        """Does nothing."""

    async def play() -> None:
        async with (
            async_engine(sqlite_ledger_url, "sqlite+aiosqlite") as engine,
            AsyncSession(engine) as session,
        ):
            await empty.astart(saga_id="no", session=session)
            await session.rollback()
            await empty.astart(saga_id="yes", session=session)
            await session.commit()

    asyncio.run(play())
    assert [summary.id for summary in kit.find()] == ["yes"]
    kit.store.dispose()
