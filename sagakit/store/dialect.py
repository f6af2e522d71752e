"""Everything in which Postgres and SQLite differ: the clock, row locks, JSON and how times are stored."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, in UTC whichever database it comes from.

    Postgres keeps it as ``timestamptz``; SQLite as text of fixed width, so that text order is time order.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        """The column type: ``timestamptz``, or text on SQLite."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.Text())
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        """Refuse naive times: nobody could say which instant they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: the ledger keeps instants")
        if dialect.name == "sqlite":
            return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
        return value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Postgres answers in the session's time zone, SQLite with text."""
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        return value.astimezone(UTC)  # type: ignore[no-any-return]  # a driver's datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The pieces of SQL that depend on the database.

    Attributes:
        now: the database's clock, read anew at each evaluation.
        now_once: the clock read once a statement. Postgres can use an index with it, which it cannot with a
            volatile function.
        lock: appended to a ``SELECT``; waits for the rows. ``NO KEY`` because inserting a row with a foreign key to
            the locked one would wait otherwise.
        lock_or_skip: the same, leaving out rows that somebody else holds.
        least: the function that returns the smallest of its arguments.
    """

    name: str
    now: str
    now_once: str
    lock: str
    lock_or_skip: str
    least: str
    _after: str
    _json_in: str
    _json_out: str
    _json_contains: str

    def after(self, moment: str, seconds: str) -> str:
        """SQL of the time ``seconds`` (an expression, may be fractional, negative or NULL) after ``moment``."""
        return self._after.format(moment=moment, seconds=seconds)

    def json_in(self, bind: str) -> str:
        """SQL that stores the JSON text of a bind in a searchable JSON column."""
        return self._json_in.format(bind)

    def json_out(self, column: str) -> str:
        """SQL that reads a searchable JSON column as text, whatever the driver would make of it."""
        return self._json_out.format(column)

    def json_contains(self, column: str, bind: str) -> str:
        """SQL that holds if the JSON object in ``column`` has every entry of the one in ``bind``."""
        return self._json_contains.format(column=column, bind=bind)


POSTGRES = Dialect(
    name="postgresql",
    now="clock_timestamp()",
    now_once="(SELECT clock_timestamp())",
    lock=" FOR NO KEY UPDATE",
    lock_or_skip=" FOR NO KEY UPDATE SKIP LOCKED",
    least="LEAST",
    _after="({moment} + ({seconds}) * interval '1 second')",
    _json_in="CAST({} AS JSONB)",
    _json_out="CAST({} AS TEXT)",
    _json_contains="{column} @> CAST({bind} AS JSONB)",
)

# Write transactions on SQLite start with BEGIN IMMEDIATE (see engine.py): whoever writes is alone, so row locks are
# not needed. Its clock has milliseconds; the three zeros keep the width.
SQLITE = Dialect(
    name="sqlite",
    now="strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    now_once="strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    lock="",
    lock_or_skip="",
    least="min",
    _after="strftime('%Y-%m-%d %H:%M:%f000', {moment}, ({seconds}) || ' seconds')",
    _json_in="{}",
    _json_out="{}",
    _json_contains=(
        "NOT EXISTS (SELECT 1 FROM json_each({bind}) AS w WHERE NOT EXISTS (SELECT 1 FROM json_each({column}) AS h"
        " WHERE h.key = w.key AND h.type = w.type AND h.value IS w.value))"
    ),
)

DIALECTS = {dialect.name: dialect for dialect in (POSTGRES, SQLITE)}
