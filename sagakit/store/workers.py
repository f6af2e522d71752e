"""The ``saga_worker`` rows: one lease a worker process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from sagakit.store.statements import INTEGER, TEXT, TIME, Aggregate, Columns, Sql


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker process as it presents itself.

    Attributes:
        queues: the queues it consumes.
        versions: the saga versions it has, e.g. ``"shop.checkout:2"``.
    """

    id: str
    hostname: str
    pid: int
    queues: Sequence[str] = ()
    versions: Sequence[str] = ()
    concurrency: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker process as the ledger knows it; alive until ``expires_at``."""

    id: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    versions: tuple[str, ...]
    concurrency: int
    started_at: datetime
    renewed_at: datetime
    expires_at: datetime


class WorkerStatements:
    """The SQL of :class:`Workers`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        until = d.after(d.now, ":lease")
        given = ("hostname", "pid", "queues", "versions", "concurrency", "renewed_at", "expires_at")
        self.register = sql.do(
            f"INSERT INTO {sql.worker} (id, hostname, pid, queues, versions, concurrency, started_at, renewed_at,"
            " expires_at) VALUES (:id, :hostname, :pid, :queues_json, :versions, :concurrency,"
            f" {d.now}, {d.now}, {until})"
            f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in given)}"
        )
        self.renew = sql.do(
            f"UPDATE {sql.worker} SET renewed_at = {d.now}, expires_at = {until} WHERE id = :id"
        )
        self.remove = sql.do(f"DELETE FROM {sql.worker} WHERE id = :id")
        columns: Columns = {
            "id": TEXT,
            "hostname": TEXT,
            "pid": INTEGER,
            "queues": TEXT,
            "versions": TEXT,
            "concurrency": INTEGER,
            "started_at": TIME,
            "renewed_at": TIME,
            "expires_at": TIME,
        }
        self.live = sql.rows(
            f"SELECT {', '.join(columns)} FROM {sql.worker} WHERE expires_at > {d.now_once} ORDER BY started_at, id",
            columns,
        )
        self.purge = sql.do(
            f"DELETE FROM {sql.worker} WHERE expires_at <= {d.after(d.now_once, '-:older_than')}"
        )


class Workers(Aggregate):
    """The workers of a ledger, within one transaction."""

    __slots__ = ("_sql",)

    def __init__(self, connection: sa.Connection, statements: WorkerStatements) -> None:
        super().__init__(connection)
        self._sql = statements

    def register(self, worker: WorkerInfo, lease: timedelta) -> None:
        """Announce a worker process, alive for ``lease`` from now."""
        self._connection.execute(
            self._sql.register,
            {
                "id": worker.id,
                "hostname": worker.hostname,
                "pid": worker.pid,
                "queues_json": json.dumps(list(worker.queues)),
                "versions": json.dumps(list(worker.versions)),
                "concurrency": worker.concurrency,
                "lease": lease.total_seconds(),
            },
        )

    def renew(self, id: str, lease: timedelta) -> bool:
        """Stay alive for ``lease`` from now; ``False`` if the row is gone, and the worker must register again."""
        return self._landed(self._sql.renew, {"id": id, "lease": lease.total_seconds()})

    def remove(self, id: str) -> bool:
        """Take a worker process off; what it still runs is orphaned at once."""
        return self._landed(self._sql.remove, {"id": id})

    def live(self) -> list[WorkerRecord]:
        """Workers whose lease runs, oldest first."""
        return [
            WorkerRecord(
                id=row[0],
                hostname=row[1],
                pid=row[2],
                queues=tuple(json.loads(row[3])),
                versions=tuple(json.loads(row[4])),
                concurrency=row[5],
                started_at=row[6],
                renewed_at=row[7],
                expires_at=row[8],
            )
            for row in self._connection.execute(self._sql.live)
        ]

    def purge(self, older_than: timedelta) -> int:
        """Delete workers whose lease ran out this long ago; returns how many."""
        parameters = {"older_than": older_than.total_seconds()}
        return self._connection.execute(self._sql.purge, parameters).rowcount
