"""The ``saga_attempt`` rows: attempts that did not succeed, for the account a person reads."""

import sqlalchemy as sa

from sagakit.errors import ErrorInfo
from sagakit.store.rows import dump_error
from sagakit.store.statements import Aggregate, Sql


class AttemptRecordStatements:
    """The SQL of :class:`Attempts`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        self.record = sql.do(
            f"INSERT INTO {sql.attempt} (saga_id, position, attempt, error, owner, started_at, finished_at, outcome)"
            " VALUES (:saga_id, :position, :attempt, :error, :owner,"
            f" (SELECT t.started_at FROM {sql.step} AS t WHERE t.saga_id = :saga_id AND t.position = :position),"
            f" {sql.dialect.now}, :outcome) ON CONFLICT DO NOTHING"
        )


class Attempts(Aggregate):
    """The failed attempts of a ledger, within one transaction."""

    __slots__ = ("_sql",)

    def __init__(self, connection: sa.Connection, statements: AttemptRecordStatements) -> None:
        super().__init__(connection)
        self._sql = statements

    def record(
        self,
        saga_id: str,
        position: int,
        attempt: int,
        *,
        error: ErrorInfo | None,
        owner: str | None,
        outcome: str,
    ) -> bool:
        """Note how an attempt ended: ``failed``, ``retried``, ``lost`` or ``unknown``.

        Returns:
            Whether it was noted; an attempt is noted once.
        """
        return self._landed(
            self._sql.record,
            {
                "saga_id": saga_id,
                "position": position,
                "attempt": attempt,
                "error": dump_error(error),
                "owner": owner,
                "outcome": outcome,
            },
        )
