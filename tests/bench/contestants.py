"""Both contestants behind one face: a worker, and ways to give it work."""

import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.bench.servers import Servers
from tests.bench.work import DONE, VARIABLE
from tests.cluster.cluster import Cluster
from tests.cluster.nodes import WorkerNode

CONCURRENCY = 2
_STALLED = 120.0


@dataclass(slots=True)
class Contestant:
    """A worker, frozen unless it has something to do.

    Attributes:
        name: how reports call it.
        module: its application.
    """

    name: str
    module: Any
    node: WorkerNode
    done: redis.Redis

    def fill(self, numbers: Sequence[int]) -> float:
        """Give it work while it is frozen; the seconds that took."""
        begun = time.perf_counter()
        self._submit(numbers)
        return time.perf_counter() - begun

    def drain(self, count: int) -> float:
        """Let it work off what it was given; the seconds until the last of ``count`` has come to its end."""
        self.node.resume()
        begun = time.perf_counter()
        for _ in range(count):
            self._wait()
        return time.perf_counter() - begun

    def freeze(self) -> None:
        """Stop its processes, so that it does not take any of the machine from the other."""
        self.settle()
        self.node.pause()

    def one(self, number: int) -> float:
        """The seconds from giving it one to that one's end."""
        begun = time.perf_counter()
        self._submit([number])
        self._wait()
        return time.perf_counter() - begun

    def settle(self) -> None:
        """Wait until nothing is under way any more."""

    def _submit(self, numbers: Sequence[int]) -> None:
        raise NotImplementedError

    def _wait(self) -> None:
        if self.done.blpop([DONE], timeout=_STALLED) is None:
            raise SystemExit(f"bench: {self.name} stalled\n{self.node.container.report()}")


class Sagas(Contestant):
    """sagakit."""

    def _submit(self, numbers: Sequence[int]) -> None:
        self.module.work.start_many(numbers)

    def settle(self) -> None:
        """Wait until every saga's end is on record: the last step reports before its commit."""
        deadline = time.monotonic() + _STALLED
        while self.module.kit.find(states=["pending", "running", "compensating"], limit=1):
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: sagas do not end\n{self.node.container.report()}")
            time.sleep(0.01)


class Chains(Contestant):
    """Plain Celery."""

    def _submit(self, numbers: Sequence[int]) -> None:
        with self.module.app.producer_or_acquire() as producer:
            for number in numbers:
                self.module.work(number).apply_async(producer=producer)


@contextlib.contextmanager
def contestants(servers: Servers) -> Iterator[tuple[Sagas, Chains]]:
    """Both, each with a prefork worker that is ready and frozen."""
    env = {
        # Not CELERY_BROKER_URL, which would be both applications' in this process.
        "BENCH_SAGA_BROKER_URL": servers.saga_broker_url,
        "BENCH_CHAIN_BROKER_URL": servers.chain_broker_url,
        "SAGAKIT_DATABASE_URL": servers.ledger_url,
        VARIABLE: servers.done_url,
    }
    os.environ.pop("CELERY_BROKER_URL", None)
    os.environ.update(env)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sagakit-bench-")))
        done = stack.enter_context(redis.Redis.from_url(servers.done_url, socket_timeout=None))
        found: list[Any] = []
        for kind, name in ((Sagas, "saga"), (Chains, "chain")):
            folder = logs / name
            folder.mkdir()
            cluster = stack.enter_context(contextlib.closing(Cluster(env=env, logs=folder)))
            app = f"tests.bench.{name}_app"
            [node] = cluster.start(f"{app}:app", concurrency=CONCURRENCY)
            found.append(kind(name, importlib.import_module(app), node, done))
        sagas, chains = found
        yield sagas, chains
