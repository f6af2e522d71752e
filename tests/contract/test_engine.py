"""The database's URL, the connections, and what a fork does to them."""

import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagakit.errors import ConfigurationError
from sagakit.store import Store, engine, is_outage
from tests.contract.ledgers import Ledger, new_saga

# --- the URL ---


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_means_psycopg(scheme: str) -> None:
    """The URLs that people have in their environment mean the driver that sagakit uses."""
    assert Store(f"{scheme}://ann@host/shop").url == "postgresql+psycopg://ann@host/shop"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("not a url", "cannot be read"),
        ("", "cannot be read"),
        ("mysql://host/shop", "speaks Postgres through psycopg 3, and SQLite"),
        ("postgresql+asyncpg://host/shop", "psycopg 3"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_unusable_urls(url: str, message: str) -> None:
    """A URL that cannot keep a ledger is refused at once, and the error says what to write."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Store(url)
    assert "sqlite:///" in str(caught.value) or "psycopg" in str(caught.value)


def test_schema_and_prefix_are_checked() -> None:
    """What cannot be part of a table's name is refused before it gets into SQL."""
    with pytest.raises(ConfigurationError, match="no schemas"):
        Store("sqlite:///x.db", schema="shop")
    with pytest.raises(ConfigurationError, match="cannot be a schema"):
        Store("postgresql://host/shop", schema='a"; drop')
    with pytest.raises(ConfigurationError, match="table prefix"):
        Store("postgresql://host/shop", prefix="A-")


def test_the_folder_of_an_sqlite_ledger(tmp_path: Path) -> None:
    """A missing folder is named; nothing is created behind the user's back."""
    store = Store(f"sqlite:///{tmp_path / 'missing' / 'ledger.db'}")
    with pytest.raises(ConfigurationError, match=r"create .*missing"), store.begin():
        pass


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the error says how to install it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'psycopg\[binary\]'"):
        _ = Store("postgresql://host/shop").engine


def test_the_password_is_not_shown() -> None:
    """A store that ends up in a log does not tell the password; its URL has it."""
    store = Store("postgresql://ann:secret@host/shop")
    assert "secret" not in repr(store)
    assert "secret" in store.url


# --- connections ---


def test_sqlite_pragmas(tmp_path: Path) -> None:
    """SQLite keeps what was committed over a power cut, lets readers read, waits for writers, checks references."""
    store = Store(f"sqlite:///{tmp_path / 'ledger.db'}")
    with store.read() as tx:
        found = {
            name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30000, "foreign_keys": 1}


def test_sqlite_writers_take_turns(tmp_path: Path) -> None:
    """A write transaction holds the write lock from its beginning; readers are not kept out."""
    path = tmp_path / "ledger.db"
    store = Store(f"sqlite:///{path}")
    with store.begin():
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with store.read() as tx:
            assert tx.now()
        other.close()


def test_connections_are_bounded(store: Store) -> None:
    """A process keeps as many connections as it was told to, and no more."""
    small = Store(store.url, pool_size=1)
    with small.begin() as tx:
        tx.now()
        assert small.engine.pool.checkedout() == 1  # type: ignore[attr-defined]  # a QueuePool
        assert small.engine.pool._max_overflow == 0  # type: ignore[attr-defined]
    small.dispose()


def test_dispose_and_use_again(store: Store) -> None:
    """A disposed store opens new connections when it is used."""
    with store.begin() as tx:
        tx.sagas.insert([new_saga("a")])
    store.dispose()
    with store.read() as tx:
        assert tx.sagas.get("a")


@pytest.mark.postgres
def test_idle_connections_are_tested(postgres: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the server closed while it was idle is replaced without anybody noticing."""
    monkeypatch.setattr(engine, "_IDLE_SECONDS", 0.0)
    with postgres.read() as tx:
        pid = tx.connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()
    other = sa.create_engine(postgres.url, poolclass=sa.NullPool)
    with other.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with postgres.begin() as tx:
        assert tx.connection.execute(sa.text("SELECT pg_backend_pid()")).scalar() != pid


def test_threads_get_one_engine(store: Store) -> None:
    """Threads that need the engine at the same time all get the same one."""
    fresh, barrier, found = Store(store.url), threading.Barrier(8), []

    def ask() -> None:
        barrier.wait(10)
        found.append(fresh.engine)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


# --- forks ---


def in_a_child(work: object) -> str:
    """What ``work()`` returns in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that hangs dies, and fails the test by having said nothing
        try:
            answer = str(work())  # type: ignore[operator]
        except BaseException as exc:
            answer = f"failed: {exc!r}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def connection_id(store: Store) -> str:
    """Which connection a transaction is on."""
    with store.begin() as tx:
        if store.dialect.name == "postgresql":
            return str(tx.connection.execute(sa.text("SELECT pg_backend_pid()")).scalar())
        return str(id(tx.connection.connection.driver_connection))


def test_a_child_gets_an_engine_of_its_own(store: Store, ledger: Ledger) -> None:
    """A forked child works on its own connection, and the parent's is as good as before."""
    parent, mine = store.engine, connection_id(store)
    inherited = parent.pool

    def work() -> str:
        theirs = connection_id(store)
        with store.begin() as tx:
            tx.sagas.insert([new_saga("child")])
        store.dispose()
        # Whoever kept the parent's engine does not get the parent's connections through it either.
        assert parent.pool is not inherited
        return f"{theirs != mine} {store.engine is not parent} {inherited.checkedin()}"  # type: ignore[attr-defined]

    assert in_a_child(work) == f"True True {inherited.checkedin()}"  # type: ignore[attr-defined]
    assert store.engine is parent
    assert connection_id(store) == mine
    assert ledger.saga_columns("child")["state"] == "pending"


def test_a_fork_in_the_middle_of_a_transaction(store: Store) -> None:
    """A child forked while the parent is inside a transaction neither ends nor sees that transaction."""
    with store.begin() as tx:
        tx.sagas.insert([new_saga("parent")])

        def work() -> object:
            with store.read() as mine:
                return mine.sagas.get("parent")

        assert in_a_child(work) == "None"
    with store.read() as tx:
        assert tx.sagas.get("parent")


def test_a_fork_while_an_engine_is_being_made(store: Store) -> None:
    """A child does not hang on a lock that another of the parent's threads held at the fork."""
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._creating:
            holding.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)
    try:
        assert in_a_child(lambda: connection_id(store) != "") == "True"
    finally:
        release.set()
        thread.join(10)


# --- outages ---


class Refused(Exception):
    """What a driver raises."""

    def __init__(self, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (sa.exc.TimeoutError("no connection is free"), True),
        (sa.exc.PendingRollbackError("roll back first"), True),
        (sa.exc.InternalError("UPDATE", {}, Refused("25006")), True),  # a standby, or a fail-over
        (sa.exc.OperationalError("UPDATE", {}, Refused("57P01")), True),
        (sa.exc.OperationalError("UPDATE", {}, Refused("40P01")), True),
        (sa.exc.OperationalError("UPDATE", {}, Refused()), True),
        (sa.exc.DBAPIError("UPDATE", {}, Refused("23505"), connection_invalidated=True), True),
        (sa.exc.DataError("UPDATE", {}, Refused("22003")), False),
        (sa.exc.DataError("UPDATE", {}, Refused()), False),
        (sa.exc.IntegrityError("UPDATE", {}, Refused("23505")), False),
        (sa.exc.ProgrammingError("UPDATE", {}, Refused("42P01")), False),
        (sa.exc.InvalidRequestError("misused"), False),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{getattr(getattr(value, 'orig', None), 'sqlstate', None)}"
        if isinstance(value, Exception)
        else ""
    ),
)
def test_is_outage(error: sa.exc.SQLAlchemyError, outage: bool) -> None:
    """What may pass is tried again, and what cannot is told at once."""
    assert is_outage(error) is outage


# --- a server that is gone, a client that is gone ---


def test_a_vanished_client_holds_no_lock_for_ever(postgres: Store) -> None:
    """The server ends a transaction that nobody goes on with, and nobody waits for a lock without end."""
    for _ in range(2):  # the second time on a connection that has been used
        with postgres.begin() as tx:
            settings = [
                tx.connection.execute(sa.text(f"SHOW {name}")).scalar()
                for name in ("idle_in_transaction_session_timeout", "lock_timeout")
            ]
        assert settings == ["1min", "30s"]


def test_a_vanished_server_is_noticed_and_the_url_has_the_last_word(postgres: Store) -> None:
    """Connections are kept alive by default; what the URL says about that wins."""
    with postgres.begin() as tx:
        defaults = tx.connection.connection.dbapi_connection.info.get_parameters()
    assert (defaults["connect_timeout"], defaults["keepalives_idle"]) == ("10", "10")
    own = Store(str(sa.make_url(postgres.url).update_query_dict({"keepalives_idle": "77"})))
    try:
        with own.begin() as tx:
            given = tx.connection.connection.dbapi_connection.info.get_parameters()
        assert (given["connect_timeout"], given["keepalives_idle"]) == ("10", "77")
    finally:
        own.dispose()
