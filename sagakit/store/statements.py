"""Hand-written SQL made into statements: table names filled in, every bind and column typed, built once a store."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.selectable import TextualSelect
from sqlalchemy.types import TypeEngine

from sagakit.store.dialect import Dialect, UtcDateTime
from sagakit.store.tables import Tables

TEXT = sa.Text()
INTEGER = sa.Integer()
FLOAT = sa.Float()
BOOLEAN = sa.Boolean()
TIME = UtcDateTime()

Columns = Mapping[str, TypeEngine[Any]]

# One meaning, one name, one type: a bind's name says its type in every statement of the store. Typed binds matter
# beyond tidiness: a caller's own connection may use a driver (asyncpg) that does not guess.
_TYPES: Mapping[TypeEngine[Any], str] = {
    TEXT: (
        "action actor definition_hash detail error failed_step hostname input kind name new_id new_token outcome owner"
        " parent_id path python queue queues_json reason result root_id saga_id state tags_json task token undo args"
        " versions id wanted progress"
    ),
    INTEGER: (
        "attempt compensates concurrency last_seq limit max_lost pid position priority resolved_seq revision seq"
        " version publishes run"
    ),
    FLOAT: "delay lease older_than newer_than republish_after republish_max time_limit",
    BOOLEAN: "abandoned tainted body_done clear_error finished renamed replaced rerun resolved running published",
    TIME: "at deadline_at due_at expires_at ledger_at now started_at wake_at",
}
_BINDS = {name: type_ for type_, names in _TYPES.items() for name in names.split()}
_LISTS: Columns = {"ids": TEXT, "positions": INTEGER, "queues": TEXT, "sources": TEXT, "tasks": TEXT}
_BIND = re.compile(r"(?<![:\w]):([a-z_]+)")


class Sql:
    """Builds statements for one dialect and one set of tables.

    Attributes:
        saga, step, worker, attempt, audit, ledger: the tables' names, quoted as needed.
    """

    def __init__(self, dialect: Dialect, tables: Tables, quoting: sa.Dialect) -> None:
        self.dialect = dialect
        self.tables = tables
        name = quoting.identifier_preparer.format_table
        self.saga = name(tables.saga)
        self.step = name(tables.step)
        self.worker = name(tables.worker)
        self.attempt = name(tables.attempt)
        self.audit = name(tables.audit)
        self.ledger = name(tables.ledger)

    def do(self, sql: str) -> TextClause:
        """A statement that returns no rows."""
        binds = []
        for name in set(_BIND.findall(sql)):
            if name in _LISTS:
                binds.append(sa.bindparam(name, type_=_LISTS[name], expanding=True))
            else:
                binds.append(sa.bindparam(name, type_=_BINDS[name]))
        return sa.text(sql).bindparams(*binds)

    def rows(self, sql: str, columns: Columns) -> TextualSelect:
        """A statement that returns rows of these columns, in this order."""
        return self.do(sql).columns(*(sa.column(name, type_) for name, type_ in columns.items()))


class Aggregate:
    """Base of the aggregates: a connection, inside whose transaction every statement runs."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def _landed(self, statement: TextClause, parameters: Mapping[str, Any]) -> bool:
        """Run a guarded update of one row and say whether the guards let it through."""
        return self._connection.execute(statement, parameters).rowcount == 1

    def _each(self, statement: TextClause, parameters: Sequence[Mapping[str, Any]]) -> int:
        """Run a statement for several sets of parameters in one go; returns the rows it changed."""
        if len(parameters) == 1:  # the common case: psycopg need not enter its pipeline mode
            return self._connection.execute(statement, parameters[0]).rowcount
        return self._connection.execute(statement, parameters).rowcount
