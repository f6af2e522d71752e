"""The servers to measure on: those that SAGAKIT_TEST_*_URL name, else our own, with commits that reach the disk."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa

from sagakit.local import local_postgres, local_valkey
from sagakit.store import Store, schema
from tests.cluster.postgres import NamedPostgres, fresh_name
from tests.cluster.redis import RedisServer

_COMMITS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where to measure.

    Attributes:
        ledger_url: an empty ledger.
        broker_urls: an empty broker for each contestant.
        done_url: an empty Redis database, where last steps report.
        own: which of the servers are our own.
    """

    ledger_url: str
    saga_broker_url: str
    chain_broker_url: str
    done_url: str
    own: tuple[str, ...]

    def setting(self, name: str) -> str:
        """A setting of the database server."""
        with psycopg.connect(_plain(self.ledger_url)) as connection:
            row = connection.execute(f"SHOW {name}").fetchone()
        assert row is not None
        return str(row[0])

    def commit_ms(self) -> float:
        """What one durable commit takes: the floor under everything that is durable."""
        times = []
        with psycopg.connect(_plain(self.ledger_url)) as connection:
            connection.execute("CREATE TABLE bench_commit (n int)")
            connection.commit()
            for number in range(_COMMITS):
                connection.execute("INSERT INTO bench_commit VALUES (%s)", (number,))
                begun = time.perf_counter()
                connection.commit()
                times.append(time.perf_counter() - begun)
            connection.execute("DROP TABLE bench_commit")
        return statistics.median(times) * 1000


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """The servers, with databases of our own that are gone afterwards."""
    with contextlib.ExitStack() as stack:
        own = []
        postgres_url = os.environ.get("SAGAKIT_TEST_POSTGRES_URL")
        if postgres_url:
            postgres = stack.enter_context(contextlib.closing(NamedPostgres(postgres_url)))
        else:
            postgres = stack.enter_context(local_postgres(fsync=True))
            own.append("postgres")
        redis_url = os.environ.get("SAGAKIT_TEST_REDIS_URL")
        if redis_url:
            broker = RedisServer(redis_url)
        else:
            broker = RedisServer(stack.enter_context(local_valkey()).url)
            own.append("redis")
        stack.enter_context(contextlib.closing(broker))
        name = fresh_name()
        ledger_url = postgres.create_database(name)
        stack.callback(postgres.drop_database, name)
        store = Store(ledger_url)
        schema.upgrade(store)
        store.dispose()
        saga, chain, done = (broker.database_url(broker.borrow()) for _ in range(3))
        yield Servers(
            ledger_url=ledger_url,
            saga_broker_url=saga,
            chain_broker_url=chain,
            done_url=done,
            own=tuple(own),
        )


def _plain(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
