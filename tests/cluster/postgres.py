"""Databases of our own on a Postgres that somebody else runs."""

import queue
import secrets
import threading

import psycopg
import sqlalchemy as sa
from psycopg import sql

_PREFIX = "sagakit_test_"
_LOCK_CLASS = 0x5A6A  # first half of the advisory locks' keys; any number will do
_CLOSE_TIMEOUT = 3.0

_run = secrets.randbits(31)
_last = 0


def fresh_name() -> str:
    """A name for a database that no other test run uses."""
    global _last
    _last += 1
    return f"{_PREFIX}{_run:08x}_{_last}"


class NamedPostgres:
    """A Postgres named by a URL; has the methods of ``sagakit.local``'s own that tests need.

    Raises:
        psycopg.Error: it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._url = sa.make_url(url)
        self._connection = self._connect()
        # Held while we live. Databases whose run holds none were left behind by one that was killed.
        self._connection.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_CLASS, _run))
        self._doomed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropper = threading.Thread(target=self._drop_doomed, name="drop-databases", daemon=True)
        self._dropper.start()
        for name in self._abandoned():
            self.drop_database(name)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of ``template`` if given, and return its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        # Not template1, where people put things that they want in all of their databases.
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template or "template0"))
        self._connection.execute(statement)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, name: str) -> None:
        """Drop a database in a while, cutting off whoever is connected to it."""
        # A drop comes with a checkpoint, which takes seconds on a busy server that flushes to a disk.
        self._doomed.put(name)

    def close(self) -> None:
        """Disconnect; what could not be dropped in time is dropped by the next test run."""
        self._doomed.put(None)
        self._dropper.join(_CLOSE_TIMEOUT)
        self._connection.close()

    def _drop_doomed(self) -> None:
        with self._connect() as connection:
            while (name := self._doomed.get()) is not None:
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
                connection.execute(drop)

    def _abandoned(self) -> list[str]:
        # pg_locks shows the locks of all databases; the run is the eight digits after the prefix.
        found = self._connection.execute(
            """
            SELECT datname FROM pg_database
            WHERE datname ~ %s AND NOT EXISTS (
                SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s
                AND objid = ('x' || substr(datname, %s, 8))::bit(32)::int8::oid
            )
            """,
            (f"^{_PREFIX}[0-9a-f]{{8}}_[0-9]+$", _LOCK_CLASS, len(_PREFIX) + 1),
        )
        return [name for (name,) in found]

    def _connect(self) -> "psycopg.Connection[tuple[str]]":
        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True, connect_timeout=5)
