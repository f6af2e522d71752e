"""The ledger: sagas, their steps, failed attempts, the audit trail, the workers' leases.

Written out and never edited once released: a migration must do tomorrow what it did when it was tested.
"""

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
_OPEN = "state IN ('compensating', 'pending', 'running')"
_CLAIMABLE = "state = 'scheduled' AND kind IN ('compensation', 'probe', 'step')"
_RESOLVED = "state IN ('cancelled', 'failed', 'skipped', 'succeeded', 'unknown')"


def _time(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, _TIME, nullable=nullable)


def _text(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _counter(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default="0")


def upgrade() -> None:
    """Create the tables."""
    options = op.get_context().opts
    schema, prefix = options["sagakit_schema"], options["sagakit_prefix"]
    saga, step, worker, attempt, audit, ledger = (
        f"{prefix}saga{suffix}" for suffix in ("", "_step", "_worker", "_attempt", "_audit", "_ledger")
    )
    _create_saga(saga, schema)
    _create_step(step, saga, schema)
    _create_worker(worker, schema)
    if op.get_bind().dialect.name == "postgresql":
        for name in (saga, step):
            # Rows are updated several times each: room on the page lets most updates leave the indexes alone.
            table = f'"{schema}"."{name}"' if schema else f'"{name}"'
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 85)")
    _create_attempt(attempt, saga, schema)
    _create_audit(audit, schema)
    ledger_table = op.create_table(
        ledger, sa.Column("id", sa.Text(), nullable=False), sa.PrimaryKeyConstraint("id", name=f"pk_{ledger}"),
        schema=schema,
    )  # fmt: skip
    op.bulk_insert(ledger_table, [{"id": str(uuid4())}])


def _index(
    table: str, schema: str | None, name: str, *columns: str, where: str | None = None, unique: bool = False
) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        f"ix_{table}_{name}", table, list(columns), unique=unique, schema=schema,
        postgresql_where=condition, sqlite_where=condition,
    )  # fmt: skip


def _owner(saga: str, schema: str | None, table: str) -> sa.ForeignKeyConstraint:
    target = f"{schema}.{saga}.id" if schema else f"{saga}.id"
    return sa.ForeignKeyConstraint(
        ["saga_id"], [target], name=f"fk_{table}_saga_id", onupdate="CASCADE", ondelete="CASCADE"
    )


def _create_saga(name: str, schema: str | None) -> None:
    op.create_table(
        name,
        _text("id", nullable=False),
        _text("name", nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        _text("definition_hash"),
        _text("python"),
        _text("state", nullable=False),
        _text("input"),
        _text("result"),
        _text("error"),
        _text("failed_step"),
        _text("trouble"),
        sa.Column("body_done", sa.Boolean(), nullable=False, server_default=sa.false()),
        _time("deadline_at"),
        _text("parent_id"),
        _text("root_id"),
        sa.Column("priority", sa.Integer()),
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
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        sa.CheckConstraint(
            "state IN ('compensated', 'compensating', 'compensation_failed', 'completed', 'paused', 'pending',"
            " 'running', 'stuck')",
            name=op.f(f"ck_{name}_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('compensated', 'compensation_failed', 'completed') OR finished_at IS NOT NULL",
            name=op.f(f"ck_{name}_finished"),
        ),
        schema=schema,
    )
    _index(name, schema, "wake", "wake_at", where=f"{_OPEN} AND wake_at IS NOT NULL AND publishes = 0")
    _index(
        name, schema, "published", "published_at",
        where=f"{_OPEN} AND wake_at IS NOT NULL AND publishes > 0",
    )  # fmt: skip
    _index(name, schema, "state", "state", "created_at")


def _create_step(name: str, saga: str, schema: str | None) -> None:
    op.create_table(
        name,
        _text("saga_id", nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
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
        sa.Column("compensates", sa.Integer()),
        _text("queue"),
        sa.Column("priority", sa.Integer()),
        _time("due_at"),
        _time("expires_at"),
        sa.Column("time_limit", sa.Float()),
        _time("deadline_at"),
        _time("published_at"),
        _counter("publishes"),
        _time("scheduled_at", nullable=False),
        _time("started_at"),
        _time("finished_at"),
        sa.Column("resolved_seq", sa.Integer()),
        _time("resolved_at"),
        sa.Column("abandoned", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("tainted", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("replay", sa.Boolean(), nullable=False, server_default=sa.false()),
        _text("progress"),
        sa.PrimaryKeyConstraint("saga_id", "position", name=f"pk_{name}"),
        _owner(saga, schema, name),
        sa.CheckConstraint(
            "kind IN ('compensation', 'probe', 'step', 'timer')", name=op.f(f"ck_{name}_kind")
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'running', 'scheduled', 'skipped', 'succeeded', 'unknown')",
            name=op.f(f"ck_{name}_state"),
        ),
        sa.CheckConstraint("attempt >= 0 AND retries >= 0 AND lost >= 0", name=op.f(f"ck_{name}_counters")),
        sa.CheckConstraint(
            "state <> 'running' OR (owner IS NOT NULL AND token IS NOT NULL)", name=op.f(f"ck_{name}_running")
        ),
        sa.CheckConstraint(
            f"NOT ({_CLAIMABLE})"
            " OR (token IS NOT NULL AND task IS NOT NULL AND (publishes > 0 OR due_at IS NOT NULL))",
            name=op.f(f"ck_{name}_claimable"),
        ),
        sa.CheckConstraint(
            "resolved_seq IS NULL OR state NOT IN ('running', 'scheduled')", name=op.f(f"ck_{name}_resolved")
        ),
        schema=schema,
    )
    _index(name, schema, "seq", "saga_id", "resolved_seq", where="resolved_seq IS NOT NULL", unique=True)
    _index(name, schema, "path", "saga_id", "path", where="path IS NOT NULL", unique=True)
    _index(
        name, schema, "compensates", "saga_id", "compensates", "kind",
        where="compensates IS NOT NULL", unique=True,
    )  # fmt: skip
    _index(name, schema, "due", "due_at", where=f"{_CLAIMABLE} AND publishes = 0")
    _index(name, schema, "published", "published_at", where=f"{_CLAIMABLE} AND publishes > 0")
    _index(name, schema, "expires", "expires_at", where=f"{_CLAIMABLE} AND expires_at IS NOT NULL")
    _index(name, schema, "owner", "owner", where="state = 'running'")
    _index(name, schema, "unfed", "finished_at", where=f"{_RESOLVED} AND resolved_seq IS NULL")


def _create_worker(name: str, schema: str | None) -> None:
    op.create_table(
        name,
        _text("id", nullable=False),
        _text("hostname", nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        _text("queues", nullable=False),
        _text("versions", nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        _time("started_at", nullable=False),
        _time("renewed_at", nullable=False),
        _time("expires_at", nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        schema=schema,
    )


def _create_attempt(name: str, saga: str, schema: str | None) -> None:
    op.create_table(
        name,
        _text("saga_id", nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("attempt", sa.Integer(), nullable=False, autoincrement=False),
        _text("error"),
        _text("owner"),
        _time("started_at"),
        _time("finished_at", nullable=False),
        _text("outcome", nullable=False),
        sa.PrimaryKeyConstraint("saga_id", "position", "attempt", name=f"pk_{name}"),
        _owner(saga, schema, name),
        sa.CheckConstraint(
            "outcome IN ('failed', 'lost', 'retried', 'unknown')", name=op.f(f"ck_{name}_outcome")
        ),
        schema=schema,
    )


def _create_audit(name: str, schema: str | None) -> None:
    op.create_table(
        name,
        _text("id", nullable=False),
        _text("saga_id", nullable=False),
        _text("action", nullable=False),
        _text("actor", nullable=False),
        _text("reason"),
        _text("detail", nullable=False),
        _time("at", nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        schema=schema,
    )
    _index(name, schema, "saga", "saga_id")
