"""The schema's versions: bringing a database up to date, and refusing one that does not fit the code.

A deploy migrates first and rolls out the code after it, so for a while old code meets a schema one version ahead.
Every migration is written so that the version before it still works; one version ahead is therefore accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from zlib import crc32

import sqlalchemy as sa

from sagakit.errors import SchemaMismatch
from sagakit.store.store import Store
from sagakit.store.tables import Tables

HEAD = 1
"""Version of the schema this code is written for: the newest revision in ``migrations/versions``, as a number."""

_LOCK_TIMEOUT = "10s"
_COMMAND = "`sagakit --app APP migrate` (or `celery -A APP saga migrate`)"


class Fit(StrEnum):
    """How the database's schema relates to the code's."""

    OK = "ok"
    MISSING = "missing"
    BEHIND = "behind"
    AHEAD_BY_ONE = "ahead_by_one"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStatus:
    """The database's schema version (``None``: no tables) and the code's."""

    current: int | None
    head: int

    @property
    def fit(self) -> Fit:
        """How the two relate."""
        if self.current is None:
            return Fit.MISSING
        if self.current < self.head:
            return Fit.BEHIND
        if self.current == self.head:
            return Fit.OK
        return Fit.AHEAD_BY_ONE if self.current == self.head + 1 else Fit.AHEAD

    @property
    def usable(self) -> bool:
        """Whether this code may work on the database."""
        return self.fit in (Fit.OK, Fit.AHEAD_BY_ONE)


def upgrade(store: Store) -> list[str]:
    """Bring the database up to date, in one transaction. Upgrades that run at once wait for each other.

    Returns:
        The revisions that were applied, oldest first.

    Raises:
        SchemaMismatch: the database is ahead of this code by more than one version.
    """
    # Alembic is imported here: a worker, which only checks, does not pay for it.
    from alembic import command
    from alembic.config import Config

    applied: list[str] = []
    with store.engine.begin() as connection:
        if store.dialect.name == "postgresql":
            _prepare_postgres(connection, store.tables)
        status = _status(connection, store.tables)
        if status.fit in (Fit.AHEAD_BY_ONE, Fit.AHEAD):
            _refuse_unusable(store, status)
            return []  # Alembic could not find the revision that a newer sagakit applied
        config = Config()
        config.set_main_option("script_location", "sagakit.store:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes |= {"connection": connection, "tables": store.tables, "applied": applied}
        command.upgrade(config, "head")
    return applied


def _prepare_postgres(connection: sa.Connection, tables: Tables) -> None:
    key = crc32(f"sagakit.migrate:{tables.schema or ''}:{tables.prefix}".encode())
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    # Only now: the limit is for tables that the application holds, not for another upgrade. DDL that waits makes
    # every query behind it wait, too; better to give up and be run again.
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    if tables.schema is not None:
        connection.execute(sa.schema.CreateSchema(tables.schema, if_not_exists=True))


def check(store: Store) -> SchemaStatus:
    """Compare the database's schema version with the code's."""
    with store.engine.connect() as connection:
        return _status(connection, store.tables)


def _status(connection: sa.Connection, tables: Tables) -> SchemaStatus:
    if not sa.inspect(connection).has_table(tables.version_table, schema=tables.schema):
        return SchemaStatus(current=None, head=HEAD)
    version = sa.table(tables.version_table, sa.column("version_num", sa.Text), schema=tables.schema)
    found = connection.execute(sa.select(version.c.version_num)).scalar()
    return SchemaStatus(current=None if found is None else int(found), head=HEAD)


def require(store: Store) -> SchemaStatus:
    """Check that this code may work on the database.

    Raises:
        SchemaMismatch: it may not; the message says what to run.
    """
    status = check(store)
    _refuse_unusable(store, status)
    return status


def _refuse_unusable(store: Store, status: SchemaStatus) -> None:
    if status.usable:
        return
    if status.fit is Fit.MISSING:
        raise SchemaMismatch(f"{store!r} has no ledger yet: run {_COMMAND}")
    if status.fit is Fit.BEHIND:
        raise SchemaMismatch(
            f"the ledger in {store!r} has schema version {status.current}, this code needs {status.head}: "
            f"run {_COMMAND} before you start it"
        )
    raise SchemaMismatch(
        f"the ledger in {store!r} has schema version {status.current}; this code knows {status.head} and can work with "
        f"{status.head + 1} at most: install a newer sagakit here"
    )


IncludeObject = Callable[[Any, str | None, str, bool, Any], bool]


def include_object_for(*, prefix: str = "", schema: str | None = None) -> IncludeObject:
    """Make an ``include_object`` for an application's ``alembic/env.py`` that leaves sagakit's tables alone.

    Without it, ``alembic revision --autogenerate`` finds tables it does not know and drops them.

    Args:
        prefix: the ledger's table prefix.
        schema: the ledger's schema, if the application may have tables of the same names in another one.
    """
    names = Tables(prefix=prefix).names

    def include(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
        table = object if type_ == "table" else getattr(object, "table", None)
        if table is None or table.name not in names:
            return True
        return schema is not None and table.schema != schema

    return include


include_object = include_object_for()
"""For ``context.configure(include_object=...)`` in an application's ``alembic/env.py``, with no prefix."""
