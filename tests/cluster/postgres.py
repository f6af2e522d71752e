"""Databases of our own on a Postgres that somebody else runs."""

import secrets

import psycopg
import sqlalchemy as sa
from psycopg import sql

_PREFIX = "sagakit_test_"
_LOCK_CLASS = 0x5A6A  # first half of the advisory locks' keys; any number will do

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
        self._connection = psycopg.connect(
            self._url.set(drivername="postgresql").render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=5,
        )
        # Held while we live. Databases whose run holds none were left behind by one that was killed.
        self._connection.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_CLASS, _run))
        self._drop_abandoned()

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of ``template`` if given, and return its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        # Not template1, where people put things that they want in all of their databases.
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template or "template0"))
        self._connection.execute(statement)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off whoever is connected to it."""
        self._connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _drop_abandoned(self) -> None:
        # pg_locks shows the locks of all databases; the run is the eight digits after the prefix.
        names = self._connection.execute(
            """
            SELECT datname FROM pg_database
            WHERE datname ~ %s AND NOT EXISTS (
                SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s
                AND objid = ('x' || substr(datname, %s, 8))::bit(32)::int8::oid
            )
            """,
            (f"^{_PREFIX}[0-9a-f]{{8}}_[0-9]+$", _LOCK_CLASS, len(_PREFIX) + 1),
        )
        for (name,) in names.fetchall():
            self.drop_database(name)
