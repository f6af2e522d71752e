"""The ledger's tables, as SQLAlchemy metadata for a schema and a prefix.

The constraints repeat what the code guarantees: a bug, or a hand in ``psql``, cannot write a ledger that the code
would misread.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from sagakit.states import (
    OPEN_SAGA_STATES,
    OPEN_STEP_STATES,
    RESOLVED_STEP_STATES,
    TASK_KINDS,
    TERMINAL_SAGA_STATES,
    Kind,
    SagaState,
    StepState,
)
from sagakit.store.dialect import UtcDateTime

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


def quoted(values: Iterable[str]) -> str:
    """SQL literals of enum members, sorted: Postgres matches a partial index by the very same condition."""
    return ", ".join(f"'{value}'" for value in sorted(values))


OPEN = f"state IN ({quoted(OPEN_SAGA_STATES)})"
CLAIMABLE = f"state = 'scheduled' AND kind IN ({quoted(TASK_KINDS)})"
UNFED = f"state IN ({quoted(RESOLVED_STEP_STATES)}) AND resolved_seq IS NULL"


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _time(name: str, *, nullable: bool = True) -> "sa.Column[object]":
    return sa.Column(name, UtcDateTime, nullable=nullable)


def _text(name: str, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _index(table: str, name: str, *columns: str, where: str | None = None, unique: bool = False) -> sa.Index:
    condition = None if where is None else sa.text(where)
    return sa.Index(
        f"ix_{table}_{name}", *columns, unique=unique, postgresql_where=condition, sqlite_where=condition
    )


class Tables:
    """The tables of one ledger.

    Args:
        schema: Postgres schema; the connection's search path if ``None``.
        prefix: put before every table's name.
    """

    def __init__(self, *, schema: str | None = None, prefix: str = "") -> None:
        self.schema = schema
        self.prefix = prefix
        self.version_table = f"{prefix}saga_alembic_version"
        self.metadata = sa.MetaData(schema=schema, naming_convention=NAMING)
        self.saga = self._saga(f"{prefix}saga")
        self.step = self._step(f"{prefix}saga_step")
        self.worker = self._worker(f"{prefix}saga_worker")
        self.attempt = self._attempt(f"{prefix}saga_attempt")
        self.audit = self._audit(f"{prefix}saga_audit")
        self.ledger = sa.Table(
            f"{prefix}saga_ledger", self.metadata, sa.Column("id", sa.Text, primary_key=True)
        )

    @property
    def names(self) -> frozenset[str]:
        """Bare names of all tables, Alembic's version table included."""
        return frozenset({table.name for table in self.metadata.tables.values()} | {self.version_table})

    def _saga_id(self) -> sa.Column[str]:
        # ON UPDATE CASCADE: a restart archives the old saga under another id.
        key = sa.ForeignKey(self.saga.c.id, onupdate="CASCADE", ondelete="CASCADE")
        return sa.Column("saga_id", sa.Text, key, primary_key=True)

    def _saga(self, name: str) -> sa.Table:
        return sa.Table(
            name,
            self.metadata,
            sa.Column("id", sa.Text, primary_key=True),
            _text("name", nullable=False),
            sa.Column("version", sa.Integer, nullable=False),
            _text("definition_hash"),
            _text("python"),
            _text("state", nullable=False),
            _text("input"),
            _text("result"),
            _text("error"),
            _text("failed_step"),
            _text("trouble"),
            sa.Column("body_done", sa.Boolean, nullable=False, server_default=sa.false()),
            _time("deadline_at"),
            _text("parent_id"),
            _text("root_id"),
            sa.Column("priority", sa.Integer),
            _text("tenant"),
            sa.Column("tags", sa.Text().with_variant(JSONB(), "postgresql")),
            _counter("revision"),
            _counter("run"),
            _counter("last_seq"),
            _time("started_at"),
            _time("ledger_at"),
            _time("wake_at"),
            _counter("publishes"),
            _time("published_at"),
            _time("created_at", nullable=False),
            _time("finished_at"),
            _time("updated_at", nullable=False),
            sa.CheckConstraint(f"state IN ({quoted(SagaState)})", name="state"),
            sa.CheckConstraint(
                f"state NOT IN ({quoted(TERMINAL_SAGA_STATES)}) OR finished_at IS NOT NULL", name="finished"
            ),
            # Two indexes, so that a sweep that only looks for what was never sent does not wade through a backlog.
            _index(name, "wake", "wake_at", where=f"{OPEN} AND wake_at IS NOT NULL AND publishes = 0"),
            _index(
                name, "published", "published_at", where=f"{OPEN} AND wake_at IS NOT NULL AND publishes > 0"
            ),
            _index(name, "state", "state", "created_at"),
        )

    def _step(self, name: str) -> sa.Table:
        return sa.Table(
            name,
            self.metadata,
            self._saga_id(),
            sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
            _text("kind", nullable=False),
            _text("name", nullable=False),
            _text("task"),
            _text("state", nullable=False),
            _text("path"),
            _counter("attempt"),
            _counter("retries"),
            _counter("lost"),
            _text("token"),
            _text("owner"),
            _text("args"),
            _text("result"),
            _text("error"),
            _text("undo"),
            sa.Column("compensates", sa.Integer),
            _text("queue"),
            sa.Column("priority", sa.Integer),
            _time("due_at"),
            _time("expires_at"),
            sa.Column("time_limit", sa.Float),
            _time("deadline_at"),
            _time("published_at"),
            _counter("publishes"),
            _time("scheduled_at", nullable=False),
            _time("started_at"),
            _time("finished_at"),
            sa.Column("resolved_seq", sa.Integer),
            _time("resolved_at"),
            sa.Column("abandoned", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("tainted", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("replay", sa.Boolean, nullable=False, server_default=sa.false()),
            _text("progress"),
            sa.CheckConstraint(f"kind IN ({quoted(Kind)})", name="kind"),
            sa.CheckConstraint(f"state IN ({quoted(StepState)})", name="state"),
            sa.CheckConstraint("attempt >= 0 AND retries >= 0 AND lost >= 0", name="counters"),
            sa.CheckConstraint(
                "state <> 'running' OR (owner IS NOT NULL AND token IS NOT NULL)", name="running"
            ),
            # Whatever waits for a worker can be claimed, and was sent or has a time at which it will be.
            sa.CheckConstraint(
                f"NOT ({CLAIMABLE})"
                " OR (token IS NOT NULL AND task IS NOT NULL AND (publishes > 0 OR due_at IS NOT NULL))",
                name="claimable",
            ),
            sa.CheckConstraint(
                f"resolved_seq IS NULL OR state NOT IN ({quoted(OPEN_STEP_STATES)})", name="resolved"
            ),
            _index(name, "seq", "saga_id", "resolved_seq", where="resolved_seq IS NOT NULL", unique=True),
            _index(name, "path", "saga_id", "path", where="path IS NOT NULL", unique=True),
            _index(
                name,
                "compensates",
                "saga_id",
                "compensates",
                "kind",
                where="compensates IS NOT NULL",
                unique=True,
            ),
            _index(name, "due", "due_at", where=f"{CLAIMABLE} AND publishes = 0"),
            _index(name, "published", "published_at", where=f"{CLAIMABLE} AND publishes > 0"),
            _index(name, "expires", "expires_at", where=f"{CLAIMABLE} AND expires_at IS NOT NULL"),
            _index(name, "owner", "owner", where="state = 'running'"),
            _index(name, "unfed", "finished_at", where=UNFED),
        )

    def _worker(self, name: str) -> sa.Table:
        return sa.Table(
            name,
            self.metadata,
            sa.Column("id", sa.Text, primary_key=True),
            _text("hostname", nullable=False),
            sa.Column("pid", sa.Integer, nullable=False),
            _text("queues", nullable=False),
            _text("versions", nullable=False),
            sa.Column("concurrency", sa.Integer, nullable=False),
            _time("started_at", nullable=False),
            _time("renewed_at", nullable=False),
            _time("expires_at", nullable=False),
        )

    def _attempt(self, name: str) -> sa.Table:
        return sa.Table(
            name,
            self.metadata,
            self._saga_id(),
            sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
            _text("error"),
            _text("owner"),
            _time("started_at"),
            _time("finished_at", nullable=False),
            _text("outcome", nullable=False),
            sa.CheckConstraint("outcome IN ('failed', 'lost', 'retried', 'unknown')", name="outcome"),
        )

    def _audit(self, name: str) -> sa.Table:
        # No foreign key: what an operator did stays on record when the saga itself is cleaned away.
        return sa.Table(
            name,
            self.metadata,
            sa.Column("id", sa.Text, primary_key=True),
            _text("saga_id", nullable=False),
            _text("action", nullable=False),
            _text("actor", nullable=False),
            _text("reason"),
            _text("detail", nullable=False),
            _time("at", nullable=False),
            _index(name, "saga", "saga_id"),
        )
