"""The ledger's SQLAlchemy engine: its URL, its connections' settings, one engine for each process."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    NoSuchModuleError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from sagakit.errors import ConfigurationError

_EXAMPLES = "write postgresql+psycopg://user@host/database or sqlite:////path/to/sagas.db"
_POSTGRES_ALIASES = frozenset({"postgres", "postgresql"})
_DRIVERS = frozenset({"postgresql+psycopg", "sqlite", "sqlite+pysqlite"})
_IDLE_SECONDS = 5.0
_LIVELINESS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
READ_ONLY = "sagakit_read_only"

_creating = threading.Lock()


def _fresh_lock() -> None:
    # The parent may have forked while another of its threads held the lock; nobody in the child would release it.
    global _creating
    _creating = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def parse_url(text: str) -> sa.URL:
    """Read a database URL. ``postgres://`` and ``postgresql://`` mean psycopg 3.

    Raises:
        ConfigurationError: the text is no URL, or names a database or driver that cannot keep a ledger.
    """
    try:
        url = sa.make_url(text)
    except ArgumentError as exc:
        raise ConfigurationError(f"the database URL cannot be read: {_EXAMPLES}") from exc
    if url.drivername in _POSTGRES_ALIASES:
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in _DRIVERS:
        raise ConfigurationError(
            f"a ledger cannot be kept in {url.drivername!r}: sagakit speaks Postgres through psycopg 3, and SQLite; "
            f"{_EXAMPLES}"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "an SQLite ledger in memory would be another, empty one for every process and thread: name a file, "
            "for example sqlite:///sagas.db"
        )
    return url


class ProcessEngine:
    """Makes the engine when it is first asked for, and a new one in a forked child.

    A connection that two processes share corrupts the protocol of both, so a child never touches what it inherited,
    not even to close it.
    """

    def __init__(self, url: sa.URL, *, pool_size: int) -> None:
        self._url = url
        self._pool_size = pool_size
        self._current: tuple[int, sa.Engine] | None = None
        self._inherited: list[Pool] = []

    def get(self) -> sa.Engine:
        """This process's engine."""
        current = self._current
        if current is not None and current[0] == os.getpid():
            return current[1]
        with _creating:
            current = self._current
            if current is not None and current[0] == os.getpid():
                return current[1]
            if current is not None:
                # Kept from the garbage collector, which would close the parent's connections under it.
                self._inherited.append(current[1].pool)
                current[1].dispose(close=False)
            engine = _create(self._url, self._pool_size)
            self._current = (os.getpid(), engine)
            return engine

    def dispose(self) -> None:
        """Close this process's idle connections; the next use opens new ones."""
        current = self._current
        if current is not None and current[0] == os.getpid():
            current[1].dispose()


def _create(url: sa.URL, pool_size: int) -> sa.Engine:
    # Parameters are payloads: they belong neither in an error nor in a log.
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        # The guards are written for READ COMMITTED, in which an update that waited sees the row as it is now;
        # a database whose default is stricter would answer with serialization failures instead.
        options["isolation_level"] = "READ COMMITTED"
        # A database host that vanishes without a word must not hang a worker for the operating system's two hours.
        options["connect_args"] = {key: value for key, value in _LIVELINESS.items() if key not in url.query}
    else:
        _check_folder(url)
    try:
        engine = sa.create_engine(url, **options)
    except (ModuleNotFoundError, NoSuchModuleError) as exc:
        raise ConfigurationError(
            f"the driver of {url.drivername!r} is not installed ({exc}): pip install 'psycopg[binary]'"
        ) from exc
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _limit_waits)
        event.listen(engine, "checkin", _remember_idle)
        event.listen(engine, "checkout", _test_if_idle_long(engine))
    return engine


def _check_folder(url: sa.URL) -> None:
    folder = Path(str(url.database).removeprefix("file:")).parent
    if not str(url.database).startswith("file:") and not folder.is_dir():
        raise ConfigurationError(
            f"the folder of the SQLite ledger does not exist: create {folder.absolute()}"
        )


def _prepare_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver begins nothing on its own; _begin_sqlite does
    cursor = connection.cursor()
    try:
        # First the time-out, which the change to WAL may need. FULL: a claim must survive a power cut.
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A write transaction takes the write lock at once. One that began by reading could not wait for it later: SQLite
    # refuses to write over a snapshot that has grown old.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _limit_waits(connection: Any, _entry: ConnectionPoolEntry) -> None:
    """A client that vanishes in the middle of a transaction must not hold a saga's lock for ever, nor be waited for."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION idle_in_transaction_session_timeout = '60s'")
        cursor.execute("SET SESSION lock_timeout = '30s'")
    connection.commit()


def _remember_idle(_connection: Any, entry: ConnectionPoolEntry) -> None:
    entry.info["idle_since"] = time.monotonic()


def _test_if_idle_long(engine: sa.Engine) -> Any:
    """Ping a connection that was idle for a while, so that a restarted server costs no saga a failure.

    ``pool_pre_ping`` would add a round trip to every transaction; a busy connection need not be asked.
    """

    def test(connection: Any, entry: ConnectionPoolEntry, _proxy: Any) -> None:
        idle_since = entry.info.get("idle_since")
        if idle_since is None or time.monotonic() - idle_since < _IDLE_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as exc:
            raise DisconnectionError(f"the idle connection is gone: {exc}") from exc
        if not alive:
            raise DisconnectionError("the idle connection is gone")

    return test


def is_outage(exc: SQLAlchemyError) -> bool:
    """Whether trying again may help: the connection broke, or the server is away, full, read-only or deadlocked."""
    if isinstance(exc, PoolTimeout | PendingRollbackError):
        return True
    if not isinstance(exc, DBAPIError):
        return False
    if exc.connection_invalidated:
        return True
    state = getattr(exc.orig, "sqlstate", None)
    if state is None:
        return type(exc).__name__ in ("OperationalError", "InterfaceError")
    return str(state)[:2] in ("08", "25", "40", "53", "55", "57", "58")
