"""The ``saga_step`` rows: what the coordinator, the workers and the sweep may do with them, in one place."""

import sqlalchemy as sa

from sagakit.store.statements import Sql
from sagakit.store.step_attempts import AttemptRows, AttemptStatements
from sagakit.store.step_ledger import LedgerRows, LedgerStatements
from sagakit.store.step_sweeps import SweepRows, SweepStatements


class StepStatements:
    """The SQL of :class:`Steps`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        self.ledger = LedgerStatements(sql)
        self.attempt = AttemptStatements(sql)
        self.sweep = SweepStatements(sql)


class Steps(LedgerRows, AttemptRows, SweepRows):
    """The steps, compensations, probes and timers of a ledger, within one transaction."""

    __slots__ = ("_attempt", "_ledger", "_sweep")

    def __init__(self, connection: sa.Connection, statements: StepStatements) -> None:
        super().__init__(connection)
        self._ledger = statements.ledger
        self._attempt = statements.attempt
        self._sweep = statements.sweep
