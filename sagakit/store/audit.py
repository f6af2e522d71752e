"""The ``saga_audit`` rows: what operators did, by whom and why, written in the transaction of the deed."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from sagakit.history import AuditRecord
from sagakit.ids import new_saga_id
from sagakit.store.statements import TEXT, TIME, Aggregate, Columns, Sql


class AuditStatements:
    """The SQL of :class:`Audit`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        self.write = sql.do(
            f"INSERT INTO {sql.audit} (id, saga_id, action, actor, reason, detail, at)"
            f" VALUES (:id, :saga_id, :action, :actor, :reason, :detail, {sql.dialect.now})"
        )
        columns: Columns = {
            "id": TEXT,
            "action": TEXT,
            "actor": TEXT,
            "reason": TEXT,
            "detail": TEXT,
            "at": TIME,
        }
        self.of = sql.rows(
            f"SELECT {', '.join(columns)} FROM {sql.audit} WHERE saga_id = :saga_id ORDER BY at, id", columns
        )


class Audit(Aggregate):
    """The audit trail of a ledger, within one transaction."""

    __slots__ = ("_sql",)

    def __init__(self, connection: sa.Connection, statements: AuditStatements) -> None:
        super().__init__(connection)
        self._sql = statements

    def write(
        self,
        saga_id: str,
        *,
        action: str,
        actor: str,
        reason: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Put an action on record."""
        self._connection.execute(
            self._sql.write,
            {
                "id": new_saga_id(),  # a UUIDv7 like a saga's: entries of one instant keep their order
                "saga_id": saga_id,
                "action": action,
                "actor": actor,
                "reason": reason,
                "detail": json.dumps(detail or {}, separators=(",", ":")),
            },
        )

    def of(self, saga_id: str) -> list[AuditRecord]:
        """What was done to a saga, oldest first."""
        return [
            AuditRecord(
                id=row[0], action=row[1], actor=row[2], reason=row[3], detail=json.loads(row[4]), at=row[5]
            )
            for row in self._connection.execute(self._sql.of, {"saga_id": saga_id})
        ]
