"""Reading the ledger for people and supervision: histories, lists, counts. Nothing here decides anything."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from sagakit.history import AttemptRecord, SagaRecord, SagaSummary, StepRecord
from sagakit.states import OPEN_SAGA_STATES, TERMINAL_SAGA_STATES, SagaState
from sagakit.store.audit import Audit, AuditStatements
from sagakit.store.rows import (
    KINDS,
    SAGA_COLUMNS,
    SAGA_STATES,
    STEP_STATES,
    dump_json,
    load_error,
    load_json,
    load_undo,
    saga_row,
    select_list,
)
from sagakit.store.statements import BOOLEAN, INTEGER, TEXT, TIME, Aggregate, Columns, Sql
from sagakit.store.tables import CLAIMABLE, OPEN, quoted

_CHUNK = 1000
_ENDED = TERMINAL_SAGA_STATES | {SagaState.STUCK}

_STEP: Columns = {
    "position": INTEGER, "kind": TEXT, "name": TEXT, "state": TEXT, "task": TEXT, "attempt": INTEGER, "path": TEXT,
    "args": TEXT, "result": TEXT, "error": TEXT, "queue": TEXT, "owner": TEXT, "compensates": INTEGER, "undo": TEXT,
    "due_at": TIME, "scheduled_at": TIME, "started_at": TIME, "finished_at": TIME, "resolved_seq": INTEGER,
    "retries": INTEGER, "lost": INTEGER, "abandoned": BOOLEAN, "progress": TEXT,
}  # fmt: skip
_ATTEMPT: Columns = {
    "position": INTEGER, "attempt": INTEGER, "outcome": TEXT, "finished_at": TIME, "started_at": TIME, "error": TEXT,
    "owner": TEXT,
}  # fmt: skip
_SUMMARY: Columns = {
    "id": TEXT, "name": TEXT, "version": INTEGER, "state": TEXT, "created_at": TIME, "finished_at": TIME,
    "failed_step": TEXT, "error": TEXT, "tags": TEXT, "trouble": TEXT,
}  # fmt: skip


class QueryStatements:
    """The SQL of :class:`Queries`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        self.sql = sql
        self.audit = AuditStatements(sql)
        self.saga = sql.rows(
            f"SELECT {select_list(SAGA_COLUMNS, 's', d)} FROM {sql.saga} AS s WHERE s.id = :saga_id",
            SAGA_COLUMNS,
        )
        self.steps = sql.rows(
            f"SELECT {', '.join(_STEP)} FROM {sql.step} WHERE saga_id = :saga_id ORDER BY position", _STEP
        )
        self.attempts = sql.rows(
            f"SELECT {', '.join(_ATTEMPT)} FROM {sql.attempt} WHERE saga_id = :saga_id ORDER BY position, attempt",
            _ATTEMPT,
        )
        count: Columns = {"state": TEXT, "count": INTEGER}
        self.count = sql.rows(f"SELECT state, count(*) FROM {sql.saga} GROUP BY state", count)
        self.count_named = sql.rows(
            f"SELECT state, count(*) FROM {sql.saga} WHERE name = :name GROUP BY state", count
        )
        self.ended = sql.rows(
            f"SELECT id, state FROM {sql.saga} WHERE id IN :ids AND state IN ({quoted(_ENDED)})",
            {"id": TEXT, "state": TEXT},
        )
        self.ledger_id = sql.do(f"SELECT id FROM {sql.ledger}")
        self.oldest_unclaimed = sql.rows(
            f"SELECT queue, count(*), min(published_at) FROM {sql.step} WHERE {CLAIMABLE} AND publishes > 0"
            " GROUP BY queue ORDER BY 3",
            {"queue": TEXT, "count": INTEGER, "published_at": TIME},
        )
        unfinished = frozenset(SagaState) - TERMINAL_SAGA_STATES
        self.open_versions = sql.rows(
            f"SELECT name, version, count(*) FROM {sql.saga} WHERE state IN ({quoted(unfinished)})"
            " GROUP BY name, version ORDER BY name, version",
            {"name": TEXT, "version": INTEGER, "count": INTEGER},
        )
        # Rows of sagas that are stuck or paused are passed over: nobody will take them, and the sweep would spin.
        self.next_due = sql.rows(
            f"SELECT (SELECT min(wake_at) FROM {sql.saga} WHERE {OPEN} AND wake_at IS NOT NULL AND publishes = 0),"
            f" (SELECT t.due_at FROM {sql.step} AS t WHERE {CLAIMABLE} AND publishes = 0 AND EXISTS"
            f" (SELECT 1 FROM {sql.saga} AS s WHERE s.id = t.saga_id AND s.state IN ({quoted(OPEN_SAGA_STATES)}))"
            " ORDER BY t.due_at LIMIT 1),"
            f" (SELECT min(expires_at) FROM {sql.step} WHERE {CLAIMABLE} AND expires_at IS NOT NULL),"
            f" (SELECT min(deadline_at) FROM {sql.step} WHERE state = 'running')",
            {"wake_at": TIME, "due_at": TIME, "expires_at": TIME, "deadline_at": TIME},
        )


class Queries(Aggregate):
    """What can be asked of a ledger, within one transaction."""

    __slots__ = ("_sql",)

    def __init__(self, connection: sa.Connection, statements: QueryStatements) -> None:
        super().__init__(connection)
        self._sql = statements

    def record(self, saga_id: str) -> SagaRecord | None:
        """Everything about a saga (four statements; in a ``read()`` transaction they see one instant)."""
        parameters = {"saga_id": saga_id}
        found = self._connection.execute(self._sql.saga, parameters).first()
        if found is None:
            return None
        saga = saga_row(found)
        steps = self._connection.execute(self._sql.steps, parameters)
        attempts = self._connection.execute(self._sql.attempts, parameters)
        return SagaRecord(
            id=saga.id,
            name=saga.name,
            version=saga.version,
            state=saga.state,
            created_at=saga.created_at,
            input=load_json(saga.input),
            result=load_json(saga.result),
            error=saga.error,
            failed_step=saga.failed_step,
            trouble=saga.trouble,
            priority=saga.priority,
            tags=saga.tags,
            revision=saga.revision,
            started_at=saga.started_at,
            finished_at=saga.finished_at,
            deadline_at=saga.deadline_at,
            body_done=saga.body_done,
            steps=tuple(_step(dict(zip(_STEP, row, strict=True))) for row in steps),
            attempts=tuple(_attempt(dict(zip(_ATTEMPT, row, strict=True))) for row in attempts),
            audit=tuple(Audit(self._connection, self._sql.audit).of(saga_id)),
        )

    def find(
        self,
        *,
        states: Collection[SagaState] | None = None,
        name: str | None = None,
        older_than: timedelta | None = None,
        newer_than: timedelta | None = None,
        tags: Mapping[str, Any] | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[SagaSummary]:
        """Sagas, newest first.

        Args:
            states: only sagas in one of these.
            name: only sagas of this name.
            older_than: only sagas started longer ago than this.
            newer_than: only sagas started more recently than this.
            tags: only sagas that have all of these tags with these values.
            limit: how many at most.
            after: id of the last saga of the previous page.
        """
        conditions, parameters = self._filters(name, older_than, newer_than, tags, after)
        # One branch a state, each read off the index in order and cut to the limit: listing the newest sagas costs
        # the same however many there are. With `IN` the database would have to sort all of them.
        columns = select_list(_SUMMARY, "s", self._sql.sql.dialect)
        branches = [
            f"SELECT * FROM (SELECT {columns} FROM {self._sql.sql.saga} AS s WHERE"
            f" {' AND '.join([f's.state = {quoted([state.value])}', *conditions])}"
            f" ORDER BY s.created_at DESC, s.id DESC LIMIT :limit) AS {state.value}_sagas"
            for state in sorted(frozenset(states) if states is not None else frozenset(SagaState))
        ]
        if not branches:
            return []
        statement = self._sql.sql.rows(
            f"{' UNION ALL '.join(branches)} ORDER BY created_at DESC, id DESC LIMIT :limit", _SUMMARY
        )
        rows = self._connection.execute(statement, {**parameters, "limit": limit})
        return [_summary(dict(zip(_SUMMARY, row, strict=True))) for row in rows]

    def _filters(
        self,
        name: str | None,
        older_than: timedelta | None,
        newer_than: timedelta | None,
        tags: Mapping[str, Any] | None,
        after: str | None,
    ) -> tuple[list[str], dict[str, Any]]:
        d = self._sql.sql.dialect
        conditions: list[str] = []
        parameters: dict[str, Any] = {}
        if name is not None:
            conditions.append("s.name = :name")
            parameters["name"] = name
        if older_than is not None:
            conditions.append(f"s.created_at <= {d.after(d.now_once, '-:older_than')}")
            parameters["older_than"] = older_than.total_seconds()
        if newer_than is not None:
            conditions.append(f"s.created_at > {d.after(d.now_once, '-:newer_than')}")
            parameters["newer_than"] = newer_than.total_seconds()
        if tags:
            conditions.append(d.json_contains("s.tags", ":wanted"))
            parameters["wanted"] = dump_json(tags)
        if after is not None:
            conditions.append(
                f"(s.created_at, s.id) < (SELECT a.created_at, a.id FROM {self._sql.sql.saga} AS a"
                " WHERE a.id = :saga_id)"
            )
            parameters["saga_id"] = after
        return conditions, parameters

    def count_by_state(self, name: str | None = None) -> dict[SagaState, int]:
        """How many sagas (of a name) are in each state; states without any are left out."""
        if name is None:
            rows = self._connection.execute(self._sql.count)
        else:
            rows = self._connection.execute(self._sql.count_named, {"name": name})
        return {SAGA_STATES[row[0]]: row[1] for row in rows}

    def ended(self, ids: Iterable[str]) -> dict[str, SagaState]:
        """Those of the sagas that are terminal or stuck (one statement a thousand ids)."""
        wanted = list(ids)
        found: dict[str, SagaState] = {}
        for start in range(0, len(wanted), _CHUNK):
            rows = self._connection.execute(self._sql.ended, {"ids": wanted[start : start + _CHUNK]})
            found.update((row[0], SAGA_STATES[row[1]]) for row in rows)
        return found

    def next_due(self) -> datetime | None:
        """When the sweep has something to do: a first sending, an expiry, a time limit; may lie in the past."""
        row: Sequence[datetime | None] = self._connection.execute(self._sql.next_due).one()
        return min((moment for moment in row if moment is not None), default=None)

    def ledger_id(self) -> str:
        """The id by which this database is recognised."""
        return str(self._connection.execute(self._sql.ledger_id).scalar_one())

    def oldest_unclaimed(self) -> list[tuple[str | None, int, datetime]]:
        """By queue (``None``: Celery's routing decides): rows sent but not claimed, and when the oldest was sent."""
        return [(row[0], row[1], row[2]) for row in self._connection.execute(self._sql.oldest_unclaimed)]

    def open_versions(self) -> list[tuple[str, int, int]]:
        """Names and versions of sagas that are not terminal, stuck and paused ones included, with their numbers."""
        return [(row[0], row[1], row[2]) for row in self._connection.execute(self._sql.open_versions)]


def _step(row: dict[str, Any]) -> StepRecord:
    undo = load_undo(row.pop("undo"))
    row |= {"kind": KINDS[row["kind"]], "state": STEP_STATES[row["state"]], "error": load_error(row["error"])}
    row |= {"args": load_json(row["args"]), "result": load_json(row["result"])}
    return StepRecord(**row, compensatable=undo is not None, compensation=undo.compensation if undo else None)


def _attempt(row: dict[str, Any]) -> AttemptRecord:
    return AttemptRecord(**row | {"error": load_error(row["error"])})


def _summary(row: dict[str, Any]) -> SagaSummary:
    row |= {"state": SAGA_STATES[row["state"]], "error": load_error(row["error"])}
    row["trouble"] = load_error(row["trouble"])
    return SagaSummary(**row | {"tags": load_json(row["tags"])})
