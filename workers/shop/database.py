"""The shop's own database: its tables, and one engine per process.

It is not the ledger's database and never shares a transaction with it. A service commits inside the call, so an
effect can exist although the caller died before it could write that down, which is the case sagas are for.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

metadata = MetaData()

_OPENING = 7_262_484_115
"""Key of the advisory lock under which a shop is opened."""

stock = Table(
    "stock",
    metadata,
    Column("sku", String, primary_key=True),
    Column("delivered", BigInteger, nullable=False),
    Column("on_hand", BigInteger, CheckConstraint("on_hand >= 0"), nullable=False),
)
"""Each article: how many were ever delivered to the shop, and how many lie on the shelf."""

effect = Table(
    "effect",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("action", String, nullable=False),
    Column("order_id", String, nullable=False),
    Column("idempotency_key", String, nullable=False),
    Column("reference", String, nullable=False),
    Column("cents", BigInteger, nullable=False),
    Column("answer", Text, nullable=False),
    # An effect is undone once at most, whatever keys the callers come with.
    Column("undoes", ForeignKey("effect.id"), unique=True),
    UniqueConstraint("action", "idempotency_key"),
    Index("effect_by_order", "order_id", "action"),
)
"""Everything that happened, one row each, appended and never changed: what the books are recomputed from."""

call = Table(
    "call",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("action", String, nullable=False),
    Column("order_id", String, nullable=False),
    Column("idempotency_key", String, nullable=False),
    # done | repeated (the first call's answer was returned) | refused | failed
    Column("outcome", String, nullable=False),
    Index("call_by_order", "order_id", "action"),
)
"""Every call that reached a service, with what became of it."""

complaint = Table(
    "complaint",
    metadata,
    Column("order_id", String, primary_key=True),
    Column("reason", Text, nullable=False),
)
"""Orders that a plain chain gave up on, for somebody to repair by hand."""


class ShopDatabase:
    """Connections to the shop's database, SQLite or Postgres. Safe to use from threads and after a fork.

    Args:
        url: SQLAlchemy URL.
        latency: how long a call to a service is under way, there and back.
    """

    def __init__(self, url: str, *, latency: timedelta = timedelta(0)) -> None:
        self.url = url
        self._one_way = latency.total_seconds() / 2
        self._engine: Engine | None = None
        self._pid = 0
        self._guard = threading.Lock()

    @property
    def engine(self) -> Engine:
        """This process's engine. A forked child makes its own and leaves its parent's connections alone."""
        with self._guard:
            if self._engine is None or self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)
                self._engine, self._pid = _engine(self.url), os.getpid()
            return self._engine

    def open(self, deliveries: Mapping[str, int], *, only_if_empty: bool = False) -> None:
        """Create the tables if they are missing, and put ``deliveries`` (article to quantity) on the shelf.

        Args:
            deliveries: what is delivered, beside whatever is there.
            only_if_empty: deliver nothing to a shop that was ever delivered to.
        """
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                # Two workers that start at once would both find no table and both create it.
                connection.execute(select(func.pg_advisory_xact_lock(_OPENING)))
            metadata.create_all(connection)
            if only_if_empty and connection.execute(select(stock).limit(1)).first():
                return
            for sku, quantity in sorted(deliveries.items()):
                _deliver(connection, sku, quantity)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits when the block is left, and rolls back on an exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def call(self) -> Iterator[Connection]:
        """One call to a service: a transaction, with the way there before it and the way back after its commit.

        A caller that dies on the way back has had its effect and does not know it.
        """
        time.sleep(self._one_way)
        with self.transaction() as connection:
            yield connection
        time.sleep(self._one_way)

    def effects(self, action: str | None = None) -> int:
        """How many effects there are, or how many of one kind; those that were undone count too."""
        query = select(func.count()).select_from(effect)
        if action is not None:
            query = query.where(effect.c.action == action)
        with self.transaction() as connection:
            return connection.execute(query).scalar_one()

    def close(self) -> None:
        """Close this process's connections."""
        with self._guard:
            if self._engine is not None and self._pid == os.getpid():
                self._engine.dispose()
            self._engine = None


def _deliver(connection: Connection, sku: str, quantity: int) -> None:
    more = {"delivered": stock.c.delivered + quantity, "on_hand": stock.c.on_hand + quantity}
    statement = insert(connection, stock).values(sku=sku, delivered=quantity, on_hand=quantity)
    connection.execute(statement.on_conflict_do_update(index_elements=[stock.c.sku], set_=more))


def insert(connection: Connection, table: Table) -> Any:
    """The dialect's ``INSERT``, which knows ``ON CONFLICT``. Both dialects' bear the same methods."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _engine(url: str) -> Engine:
    backend = make_url(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"SHOP_DATABASE_URL: the shop runs on sqlite or postgresql, not on {backend}")
    engine = create_engine(url)
    if backend == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see below
    for pragma in ("journal_mode=WAL", "busy_timeout=30000", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # A read that later turns into a write cannot wait for its turn in WAL mode (SQLITE_BUSY at once, whatever the
    # busy timeout); taking the write lock first can.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
