"""The SQL of the ``saga`` rows, built once a store."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.selectable import TextualSelect

from sagakit.states import OPEN_SAGA_STATES, SAGA_TRANSITIONS, TERMINAL_SAGA_STATES, SagaState, can_become
from sagakit.store.rows import SAGA_COLUMNS, select_list
from sagakit.store.statements import INTEGER, TEXT, TIME, Columns, Sql
from sagakit.store.tables import OPEN, quoted

_DUE: Columns = {
    "id": TEXT,
    "name": TEXT,
    "version": INTEGER,
    "state": TEXT,
    "priority": INTEGER,
    "publishes": INTEGER,
}


def sources_of(target: SagaState) -> frozenset[SagaState]:
    """The states that may become ``target``."""
    return frozenset(source for source in SAGA_TRANSITIONS if can_become(source, target))


class SagaStatements:
    """The statements of :class:`~sagakit.store.sagas.Sagas`."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        columns = select_list(SAGA_COLUMNS, "s", d)
        self.insert = _insert(sql)
        self.get = sql.rows(f"SELECT {columns} FROM {sql.saga} AS s WHERE s.id = :saga_id", SAGA_COLUMNS)
        self.lock = self._lock(sql, d.lock)
        self.lock_or_skip = self._lock(sql, d.lock_or_skip)
        self.advance = {target: self._advance(sql, target) for target in SagaState}
        self.transition = sql.do(
            f"UPDATE {sql.saga} SET state = :state, wake_at = :wake_at, publishes = 0, published_at = NULL,"
            " trouble = NULL, error = CASE WHEN :clear_error THEN NULL ELSE COALESCE(:error, error) END,"
            f" finished_at = CASE WHEN :finished THEN {d.now} END, revision = revision + 1, updated_at = {d.now}"
            " WHERE id = :saga_id AND state IN :sources"
        )
        self.stick = sql.do(
            f"UPDATE {sql.saga} SET state = 'stuck', trouble = :error, wake_at = NULL, publishes = 0,"
            f" published_at = NULL, revision = revision + 1, updated_at = {d.now} WHERE id = :saga_id AND {OPEN}"
        )
        self.wake = sql.do(
            f"UPDATE {sql.saga} SET wake_at = {d.least}(COALESCE(wake_at, :at), :at), publishes = 0,"
            f" published_at = NULL, updated_at = {d.now} WHERE id = :saga_id AND {OPEN}"
        )
        self.rename = sql.do(
            f"UPDATE {sql.saga} SET id = :new_id, revision = revision + 1, updated_at = {d.now}"
            " WHERE id = :saga_id AND state IN :sources"
        )
        self.rename_audit = sql.do(f"UPDATE {sql.audit} SET saga_id = :new_id WHERE saga_id = :saga_id")
        self.due = self._due(sql, "publishes = 0", "wake_at")
        backoff = f"{d.least}(:republish_after * (1 << {d.least}(publishes - 1, 20)), :republish_max)"
        self.due_again = self._due(
            sql,
            f"publishes > 0 AND published_at <= {d.after(d.now_once, '-:republish_after')}"
            f" AND {d.after('published_at', backoff)} <= {d.now_once}",
            "published_at",
        )

    @staticmethod
    def _lock(sql: Sql, lock: str) -> TextualSelect:
        # The clock is read outside the CTE, once the lock is granted. In the same SELECT, Postgres computes the
        # select list below the lock, so `now` could lie before the commit of the previous holder.
        columns = select_list(SAGA_COLUMNS, "s", sql.dialect)
        names = ", ".join(f"locked.{name}" for name in SAGA_COLUMNS)
        return sql.rows(
            f"WITH locked AS MATERIALIZED (SELECT {columns} FROM {sql.saga} AS s WHERE s.id = :saga_id{lock})"
            f" SELECT {names}, {sql.dialect.now} FROM locked",
            {**SAGA_COLUMNS, "now": TIME},
        )

    @staticmethod
    def _advance(sql: Sql, target: SagaState) -> TextClause:
        # Only open sagas: what is terminal, stuck or paused is moved by operators, through `transition`.
        sources = (sources_of(target) | {target}) & OPEN_SAGA_STATES
        return sql.do(
            f"UPDATE {sql.saga} SET state = :state, ledger_at = :ledger_at, last_seq = :last_seq,"
            " started_at = COALESCE(started_at, :started_at), result = COALESCE(:result, result),"
            " error = COALESCE(:error, error), failed_step = COALESCE(:failed_step, failed_step),"
            " body_done = body_done OR :body_done, python = COALESCE(python, :python),"
            " definition_hash = COALESCE(definition_hash, :definition_hash), wake_at = :wake_at,"
            " publishes = 0, published_at = NULL, revision = revision + 1,"
            f" finished_at = {':now' if target in TERMINAL_SAGA_STATES else 'NULL'}, updated_at = :now"
            f" WHERE id = :saga_id AND revision = :revision AND state IN ({quoted(sources) or 'NULL'})"
        )

    @staticmethod
    def _due(sql: Sql, condition: str, order: str) -> TextualSelect:
        d = sql.dialect
        # MATERIALIZED: as a plain subquery it could run more than once, and lock more rows than the limit.
        return sql.rows(
            f"WITH due AS MATERIALIZED (SELECT id FROM {sql.saga} WHERE {OPEN} AND wake_at IS NOT NULL"
            f" AND wake_at <= {d.now_once} AND {condition} ORDER BY {order} LIMIT :limit{d.lock_or_skip})"
            f" UPDATE {sql.saga} SET publishes = publishes + 1, published_at = {d.now}"
            f" WHERE id IN (SELECT id FROM due) RETURNING {', '.join(_DUE)}",
            _DUE,
        )


def _insert(sql: Sql) -> Any:
    """The one statement left to SQLAlchemy to write: it cuts any number of rows into batches, RETURNING included."""
    d, table = sql.dialect, sql.tables.saga
    now = sa.literal_column(d.now, TIME)
    values = {
        "state": sa.literal_column("'pending'", TEXT),
        "created_at": now,
        "updated_at": now,
        "published_at": now,
        "publishes": sa.literal_column("1", INTEGER),
        "wake_at": sql.do(d.after(d.now, ":delay")),
        "tags": sql.do(d.json_in(":tags_json")),
    }
    insert = postgresql.insert if d.name == "postgresql" else sqlite.insert
    return insert(table).values(values).on_conflict_do_nothing().returning(table.c.id)
