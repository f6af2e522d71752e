"""Workers on a ledger and a broker of their own, with points at which they can be killed, and what came of it."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType

import psycopg
import sqlalchemy as sa

from sagakit import SagaKit
from sagakit.client.handle import SagaHandle
from sagakit.history import SagaRecord, StepRecord
from sagakit.states import TERMINAL_SAGA_STATES
from sagakit.store import WorkerRecord
from tests.cluster.cluster import Cluster
from tests.cluster.effects import Arrival, Effects, Gate
from tests.cluster.nodes import WorkerNode
from tests.cluster.waiting import wait_until
from tests.crash.points import Points

APP = "tests.crash.sagas:app"

QUICK = {
    "SAGAKIT_LEASE": "3s",
    "SAGAKIT_HEARTBEAT": "1s",
    "SAGAKIT_SWEEP_INTERVAL": "1s",
    "SAGAKIT_REPUBLISH_AFTER": "1s",
}
"""Settings with which a test need not wait long for what was lost."""

_numbers = itertools.count(1)


@dataclass(slots=True)
class Rig:
    """What a crash test works with."""

    cluster: Cluster
    effects: Effects
    points: Points
    sagas: ModuleType
    database_url: str

    @property
    def kit(self) -> SagaKit:
        """The kit of the test's own process."""
        kit: SagaKit = self.sagas.kit
        return kit

    def worker(self, *, concurrency: int = 1, env: Mapping[str, str | None] | None = None) -> WorkerNode:
        """A worker that runs: the first one if it does, else started or started again."""
        if not self.cluster.nodes:
            self.cluster.start(APP, concurrency=concurrency, env=env)
        [node, *_] = self.cluster.nodes
        if not node.running:
            node.kill()  # the children that an orphaned pool may have left
            node.container.start()
            node.ready()
        return node

    def start(self, saga: str = "checkout", *, fail: bool = False) -> SagaHandle[object]:
        """Start a saga on an order of its own; ``fail`` has its third step fail."""
        order = f"{saga}-{next(_numbers)}"
        if fail:
            self.effects.tell("fail", [order])
        handle: SagaHandle[object] = getattr(self.sagas, saga).start(order, saga_id=order)
        return handle

    def end(self, handle: SagaHandle[object], timeout: float = 45.0) -> SagaRecord:
        """Wait until the saga has ended; what is on record."""
        __tracebackhide__ = True
        wait_until(lambda: handle.status() in TERMINAL_SAGA_STATES, timeout, f"saga {handle.id} to end")
        return handle.history()

    @staticmethod
    def reach(gate: Gate, handle: SagaHandle[object], n: int = 1) -> list[Arrival]:
        """Wait until the saga has come to the gate ``n`` times; return its arrivals."""
        __tracebackhide__ = True

        def arrived() -> list[Arrival]:
            return [each for each in gate.arrivals if each.saga_id == handle.id]

        wait_until(
            lambda: len(arrived()) >= n, what=f"saga {handle.id} to reach gate {gate.name!r} {n} times"
        )
        return arrived()

    def runs(self, saga_id: str) -> Counter[str]:
        """How often each step's or compensation's body took effect."""
        return Counter(self.effects.names(saga_id))

    def keys(self, saga_id: str) -> list[tuple[str, str | None]]:
        """Each effect once, however often it was repeated under its key, in order."""
        return list(dict.fromkeys((effect.step, effect.key) for effect in self.effects.all(saga_id=saga_id)))

    @staticmethod
    def wait(condition: Callable[[], object], what: str) -> None:
        """Wait until something holds."""
        __tracebackhide__ = True
        wait_until(condition, what=what)

    def workers(self) -> list[WorkerRecord]:
        """Workers whose lease runs."""
        with self.kit.store.read() as tx:
            return tx.workers.live()

    def now(self) -> datetime:
        """The database's time."""
        with self.kit.store.read() as tx:
            return tx.now()

    def cut_connections(self) -> int:
        """Terminate every backend of the ledger's database but our own; say how many there were."""
        url = sa.make_url(self.database_url).set(drivername="postgresql")
        self.kit.store.dispose()
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            cut = connection.execute(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        assert cut is not None
        return int(cut[0])


def step(record: SagaRecord, name: str) -> StepRecord:
    """The ledger's row of this name."""
    [found] = [row for row in record.steps if row.name == name]
    return found


def check(rig: Rig, record: SagaRecord, expected: list[str]) -> None:
    """Check what holds whatever was killed, for a saga whose bodies should have taken effect as ``expected``.

    Every effect there should be is there, in order, under one key each; no body ran more often than it was claimed;
    and the ledger counts its claims truthfully.
    """
    __tracebackhide__ = True
    keys = rig.keys(record.id)
    assert [name for name, _ in keys] == expected
    assert len({key for _, key in keys}) == len(keys)
    runs = rig.runs(record.id)
    for row in record.steps:
        if row.task is None or row.attempt == 0:
            continue
        assert row.attempt == 1 + row.lost + row.retries, row
        assert runs[row.name] <= row.attempt, row
        noted = [each.attempt for each in record.attempts if each.position == row.position]
        assert len(noted) == len(set(noted)), noted
        lost = [each for each in record.attempts if each.position == row.position and each.outcome == "lost"]
        assert len(lost) == row.lost, row
