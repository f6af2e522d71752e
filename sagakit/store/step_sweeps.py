"""``saga_step`` rows as the sweep finds them: unpublished, doubtful, orphaned, overdue, expired, not yet fed."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.sql.selectable import TextualSelect

from sagakit.states import OPEN_SAGA_STATES, Kind
from sagakit.store.rows import KINDS
from sagakit.store.statements import INTEGER, TEXT, Aggregate, Columns, Sql
from sagakit.store.tables import CLAIMABLE, UNFED, quoted

_ALL = 1_000_000
"""A limit that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueStep:
    """A row whose message is to be sent (again); ``publishes`` counts this sending."""

    saga_id: str
    saga_name: str
    position: int
    kind: Kind
    name: str
    task: str
    token: str
    queue: str | None
    priority: int | None
    publishes: int
    attempt: int
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStep:
    """A row that needs a decision. ``token`` fences what is done about it."""

    saga_id: str
    position: int
    kind: Kind
    name: str
    task: str | None
    token: str
    owner: str | None
    attempt: int
    lost: int
    queue: str | None


_RUNNING: Columns = {
    "saga_id": TEXT,
    "position": INTEGER,
    "kind": TEXT,
    "name": TEXT,
    "task": TEXT,
    "token": TEXT,
    "owner": TEXT,
    "attempt": INTEGER,
    "lost": INTEGER,
    "queue": TEXT,
}


class SweepStatements:
    """The SQL of :class:`SweepRows`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        self.due = self._due(sql, f"publishes = 0 AND due_at <= {d.now_once}", "due_at")
        backoff = f"{d.least}(:republish_after * (1 << {d.least}(publishes - 1, 20)), :republish_max)"
        doubtful = (
            f"publishes > 0 AND published_at <= {d.after(d.now_once, '-:republish_after')}"
            f" AND {d.after('published_at', backoff)} <= {d.now_once}"
            f" AND (due_at IS NULL OR due_at <= {d.now_once})"
        )
        self.due_again = self._due(sql, doubtful, "published_at")
        # An empty name cannot be a queue's, so it can stand for "no queue".
        self.due_again_on = self._due(sql, f"{doubtful} AND COALESCE(t.queue, '') IN :queues", "published_at")
        gone = (
            f"t.state = 'running' AND NOT EXISTS (SELECT 1 FROM {sql.worker} AS w"
            f" WHERE w.id = t.owner AND w.expires_at > {d.now_once})"
        )
        self.orphaned = self._found(sql, gone)
        self.orphaned_of = self._found(sql, f"{gone} AND t.task IN :tasks")
        self.overdue = self._found(sql, f"t.state = 'running' AND t.deadline_at <= {d.now_once}")
        self.expired = self._found(
            sql, f"{CLAIMABLE} AND t.expires_at IS NOT NULL AND t.expires_at <= {d.now_once}"
        )
        self.running = sql.rows(
            f"SELECT {', '.join(_RUNNING)} FROM {sql.step} WHERE saga_id = :saga_id AND position = :position"
            " AND state = 'running'",
            _RUNNING,
        )
        self.token = sql.do(f"SELECT token FROM {sql.step} WHERE saga_id = :saga_id AND position = :position")
        self.hurry = self._due(
            sql,
            f"t.saga_id = :saga_id AND (publishes = 0 OR due_at > {d.now_once})",
            "due_at",
            f", due_at = {d.now}",
        )
        # Only while nobody has claimed it or given it a new token.
        self.not_sent = sql.do(
            f"UPDATE {sql.step} SET publishes = 0, published_at = NULL, due_at = COALESCE(due_at, {d.now})"
            f" WHERE saga_id = :saga_id AND position = :position AND {CLAIMABLE} AND token = :token"
        )
        # A saga that is locked is being advanced: whoever holds it looks for unfed outcomes before it lets go.
        self.unfed = sql.rows(
            f"SELECT s.id FROM {sql.saga} AS s WHERE s.state IN ({quoted(OPEN_SAGA_STATES)}) AND s.id IN"
            f" (SELECT saga_id FROM {sql.step} WHERE {UNFED}"
            f" AND finished_at <= {d.after(d.now_once, '-:older_than')})"
            # One that is due to be woken has its message, or will have it in this sweep.
            f" AND (s.wake_at IS NULL OR s.wake_at > {d.now_once}) LIMIT :limit{d.lock_or_skip}",
            {"id": TEXT},
        )

    @staticmethod
    def _due(sql: Sql, condition: str, order: str, more: str = "") -> TextualSelect:
        d = sql.dialect
        columns: Columns = {
            "saga_id": TEXT,
            "saga_name": TEXT,
            "position": INTEGER,
            "kind": TEXT,
            "name": TEXT,
            "task": TEXT,
            "token": TEXT,
            "queue": TEXT,
            "priority": INTEGER,
            "publishes": INTEGER,
            "attempt": INTEGER,
            "run": INTEGER,
        }
        return sql.rows(
            f"WITH due AS MATERIALIZED (SELECT saga_id, position FROM {sql.step} AS t WHERE {CLAIMABLE}"
            f" AND {condition} AND EXISTS (SELECT 1 FROM {sql.saga} AS s WHERE s.id = t.saga_id"
            f" AND s.state IN ({quoted(OPEN_SAGA_STATES)})) ORDER BY {order} LIMIT :limit{d.lock_or_skip})"
            f" UPDATE {sql.step} AS t SET publishes = publishes + 1, published_at = {d.now}{more}"
            " WHERE (t.saga_id, t.position) IN (SELECT due.saga_id, due.position FROM due)"
            f" RETURNING saga_id, (SELECT s.name FROM {sql.saga} AS s WHERE s.id = saga_id), position, kind, name,"
            " task, token, queue, priority, publishes, attempt,"
            f" (SELECT s.run FROM {sql.saga} AS s WHERE s.id = saga_id)",
            columns,
        )

    @staticmethod
    def _found(sql: Sql, condition: str) -> TextualSelect:
        return sql.rows(
            f"SELECT {', '.join(_RUNNING)} FROM {sql.step} AS t WHERE {condition}"
            f" LIMIT :limit{sql.dialect.lock_or_skip}",
            _RUNNING,
        )


class SweepRows(Aggregate):
    """The sweep's side of :class:`~sagakit.store.steps.Steps`.

    Each call locks what it returns until the transaction ends, so that two sweeps do not work on one row: end it at
    once and act on each row in a transaction of its own, for no transaction may touch two sagas for long.
    """

    __slots__ = ()
    _sweep: SweepStatements

    def due(
        self,
        limit: int,
        *,
        republish_after: timedelta,
        republish_max: timedelta,
        queues: Collection[str | None] | None = None,
        presume_lost: bool,
    ) -> list[DueStep]:
        """Take rows that a message is due for, counting a publish on each (one statement, or two).

        Args:
            limit: rows taken at most.
            republish_after: a message is doubted after this; the time doubles with each sending.
            republish_max: ceiling of that time.
            queues: take doubtful rows of these queues only; ``None`` in it stands for rows without a queue.
            presume_lost: take rows whose message was sent, too, once it is doubtful.
        """
        parameters: dict[str, Any] = {"limit": limit}
        rows = list(self._connection.execute(self._sweep.due, parameters))
        if presume_lost and len(rows) < limit:
            parameters["limit"] = limit - len(rows)
            parameters["republish_after"] = republish_after.total_seconds()
            parameters["republish_max"] = republish_max.total_seconds()
            if queues is None:
                rows += self._connection.execute(self._sweep.due_again, parameters)
            else:
                parameters["queues"] = [queue or "" for queue in queues]
                rows += self._connection.execute(self._sweep.due_again_on, parameters)
        return _due_steps(rows)

    def not_sent(self, steps: Sequence[DueStep]) -> None:
        """Take back the count of a publish that failed: the next sweep sends these rows, whatever their back-off."""
        if steps:
            self._each(
                self._sweep.not_sent,
                [{"saga_id": step.saga_id, "position": step.position, "token": step.token} for step in steps],
            )

    def hurry(self, saga_id: str) -> list[DueStep]:
        """Make everything of a saga that waits for a time due now, and take it (``task_always_eager``)."""
        return _due_steps(self._connection.execute(self._sweep.hurry, {"saga_id": saga_id, "limit": _ALL}))

    def running(self, saga_id: str, position: int) -> RunningStep | None:
        """One row, if it is running."""
        found = self._running(self._sweep.running, {"saga_id": saga_id, "position": position})
        return found[0] if found else None

    def token(self, saga_id: str, position: int) -> str | None:
        """The current token of one row."""
        parameters = {"saga_id": saga_id, "position": position}
        token: str | None = self._connection.execute(self._sweep.token, parameters).scalar()
        return token

    def orphaned(self, limit: int, *, tasks: Sequence[str] | None = None) -> list[RunningStep]:
        """Running rows whose worker is gone or has let its lease run out.

        Args:
            limit: rows found at most.
            tasks: only rows of these tasks, so that what this process cannot judge does not fill the limit.
        """
        if tasks is None:
            return self._running(self._sweep.orphaned, {"limit": limit})
        return self._running(self._sweep.orphaned_of, {"limit": limit, "tasks": tasks})

    def overdue(self, limit: int) -> list[RunningStep]:
        """Running rows past their time limit."""
        return self._running(self._sweep.overdue, {"limit": limit})

    def expired(self, limit: int) -> list[RunningStep]:
        """Rows that should have been claimed by now, and must not be any more."""
        return self._running(self._sweep.expired, {"limit": limit})

    def unfed(self, limit: int, older_than: timedelta) -> list[str]:
        """Open sagas, not being advanced right now, with an outcome that has waited this long to be fed."""
        found = self._connection.execute(
            self._sweep.unfed, {"limit": limit, "older_than": older_than.total_seconds()}
        )
        return [row[0] for row in found]

    def _running(self, statement: TextualSelect, parameters: dict[str, Any]) -> list[RunningStep]:
        return [
            RunningStep(
                saga_id=row[0],
                position=row[1],
                kind=KINDS[row[2]],
                name=row[3],
                task=row[4],
                token=row[5],
                owner=row[6],
                attempt=row[7],
                lost=row[8],
                queue=row[9],
            )
            for row in self._connection.execute(statement, parameters)
        ]


def _due_steps(rows: Iterable[Any]) -> list[DueStep]:
    return [
        DueStep(
            saga_id=row[0],
            saga_name=row[1],
            position=row[2],
            kind=KINDS[row[3]],
            name=row[4],
            task=row[5],
            token=row[6],
            queue=row[7],
            priority=row[8],
            publishes=row[9],
            attempt=row[10],
            run=row[11],
        )
        for row in rows
    ]
