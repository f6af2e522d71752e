"""The store: a ledger's database, and transactions on it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sagakit.errors import ConfigurationError, SessionMismatch
from sagakit.store.attempts import AttemptRecordStatements, Attempts
from sagakit.store.audit import Audit, AuditStatements
from sagakit.store.dialect import DIALECTS
from sagakit.store.engine import READ_ONLY, ProcessEngine, parse_url
from sagakit.store.queries import Queries, QueryStatements
from sagakit.store.saga_statements import SagaStatements
from sagakit.store.sagas import Sagas
from sagakit.store.statements import TIME, Sql
from sagakit.store.steps import Steps, StepStatements
from sagakit.store.tables import Tables
from sagakit.store.workers import Workers, WorkerStatements

_SCHEMA = re.compile(r"[\w$-]{1,63}")
_PREFIX = re.compile(r"[a-z0-9_]{0,20}")


class Statements:
    """Every statement of a store, built once."""

    def __init__(self, sql: Sql) -> None:
        self.sagas = SagaStatements(sql)
        self.steps = StepStatements(sql)
        self.workers = WorkerStatements(sql)
        self.attempts = AttemptRecordStatements(sql)
        self.audit = AuditStatements(sql)
        self.queries = QueryStatements(sql)
        self.now = sql.rows(f"SELECT {sql.dialect.now}", {"now": TIME})


class Transaction:
    """A transaction on the ledger, through the aggregates."""

    __slots__ = ("_statements", "attempts", "audit", "connection", "queries", "sagas", "steps", "workers")

    def __init__(self, connection: sa.Connection, statements: Statements) -> None:
        self.connection = connection
        self._statements = statements
        self.sagas = Sagas(connection, statements.sagas)
        self.steps = Steps(connection, statements.steps)
        self.workers = Workers(connection, statements.workers)
        self.attempts = Attempts(connection, statements.attempts)
        self.audit = Audit(connection, statements.audit)
        self.queries = Queries(connection, statements.queries)

    def now(self) -> datetime:
        """The database's clock, as of this call."""
        now: datetime = self.connection.execute(self._statements.now).scalar_one()
        return now


class Store:
    """A ledger in Postgres or SQLite.

    It may be shared by threads and inherited by forked processes; connections are opened when first needed.

    Args:
        url: SQLAlchemy URL; ``postgres://`` and ``postgresql://`` mean psycopg 3.
        schema: Postgres schema of the tables; the connection's search path by default.
        prefix: put before every table's name.
        pool_size: connections a process keeps open at most.

    Raises:
        ConfigurationError: the URL, schema or prefix cannot be used; the message says what to write.
    """

    def __init__(self, url: str, *, schema: str | None = None, prefix: str = "", pool_size: int = 5) -> None:
        parsed = parse_url(url)
        if schema is not None and parsed.get_backend_name() == "sqlite":
            raise ConfigurationError("SQLite has no schemas: leave sagakit_database_schema out")
        if schema is not None and not _SCHEMA.fullmatch(schema):
            raise ConfigurationError(
                f"{schema!r} cannot be a schema: use up to 63 letters, digits, _, - and $"
            )
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"{prefix!r} cannot be a table prefix: use up to 20 small letters, digits and _"
            )
        self.url = parsed.render_as_string(hide_password=False)
        self.tables = Tables(schema=schema, prefix=prefix)
        self.dialect = DIALECTS[parsed.get_backend_name()]
        self._shown_url = parsed.render_as_string(hide_password=True)
        self._engine = ProcessEngine(parsed, pool_size=pool_size)
        self._statements = Statements(Sql(self.dialect, self.tables, parsed.get_dialect()()))

    def __repr__(self) -> str:
        return f"Store({self._shown_url!r})"

    @property
    def engine(self) -> sa.Engine:
        """This process's engine; a forked child gets its own.

        Raises:
            ConfigurationError: the database's driver is not installed.
        """
        return self._engine.get()

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction that may write. It commits on leaving and rolls back if an exception leaves it."""
        with self.engine.begin() as connection:
            yield Transaction(connection, self._statements)

    @contextmanager
    def at_once(self) -> Iterator[Transaction]:
        """Statements of which each is a transaction: one round trip instead of three. Durable like any other."""
        if self.dialect.name != "postgresql":
            with self.begin() as tx:
                yield tx
            return
        with self.engine.connect() as connection:
            yield Transaction(connection.execution_options(isolation_level="AUTOCOMMIT"), self._statements)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads: all its statements see the ledger as it is at the first of them."""
        with self.engine.connect() as connection:
            options: dict[str, Any] = {READ_ONLY: True}
            if self.dialect.name == "postgresql":
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            yield Transaction(connection.execution_options(**options), self._statements)

    def join(self, connection: sa.Connection) -> Transaction:
        """The aggregates inside somebody else's transaction, which is theirs to commit.

        Raises:
            SessionMismatch: the connection leads to another kind of database.
        """
        if connection.dialect.name != self.dialect.name:
            raise SessionMismatch(
                f"the session is connected to {connection.dialect.name}, the ledger is kept in {self.dialect.name}: "
                "start the saga without session=, or with a session on the ledger's database"
            )
        return Transaction(connection, self._statements)

    def dispose(self) -> None:
        """Close the idle connections; the store can still be used."""
        self._engine.dispose()
