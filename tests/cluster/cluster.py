"""The worker processes of one test, on one broker and one ledger."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pytest_celery import CeleryWorkerCluster

from tests.cluster.nodes import WorkerNode, WorkerProcess
from tests.cluster.process import ROOT, ManagedProcess

# Mingle asks other workers for revoked tasks and waits a second for them; gossip is talk about who leads. Neither
# is used, and a second per worker is much.
_QUICK = ("--without-mingle", "--without-gossip")


class Cluster:
    """Starts workers with the test's own servers in their environment, and ends them with the test.

    Args:
        env: what every worker gets: the broker, the ledger and the effects.
        logs: folder of the log files.
    """

    def __init__(self, *, env: Mapping[str, str], logs: Path) -> None:
        self.env = dict(env)
        self.nodes: list[WorkerNode] = []
        self._logs = logs

    def start(
        self,
        app: str,
        workers: int = 1,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        args: Iterable[str] = (),
        ready: bool = True,
    ) -> list[WorkerNode]:
        """Start workers of ``app`` (``"package.module:app"``) and wait until they are ready.

        Args:
            env: variables beyond ``self.env``; ``None`` takes one away.
            args: further options of ``celery worker``.
            ready: whether to wait; if not, call ``node.ready()``.
        """
        __tracebackhide__ = True
        options = [f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO", *_QUICK]
        if queues is not None:
            options.append(f"--queues={','.join(queues)}")
        started = [self._start_one(app, [*options, *args], env or {}) for _ in range(workers)]
        for node in started:
            if queues:
                node.container.queue = queues[0]
        if ready:
            for node in started:
                node.ready()
        return started

    @property
    def workers(self) -> CeleryWorkerCluster:
        """All nodes so far as pytest-celery's cluster."""
        return CeleryWorkerCluster(*self.nodes)

    def stop_all(self) -> None:
        """Warm shutdown of every worker that runs."""
        for node in self.nodes:
            if node.running:
                node.stop()

    def kill_all(self) -> None:
        """SIGKILL every worker with its children."""
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        """Kill what is left of every worker."""
        for node in self.nodes:
            node.teardown()

    def report(self) -> str:
        """State and end of the log of every worker."""
        return "\n".join(node.container.report() for node in self.nodes)

    def _start_one(self, app: str, options: list[str], env: Mapping[str, str | None]) -> WorkerNode:
        name = f"w{len(self.nodes) + 1}"

        def command(process: ManagedProcess) -> list[str]:
            hostname = f"--hostname={name}@{process.id}"
            return [sys.executable, "-m", "celery", "--app", app, "worker", hostname, *options]

        container = WorkerProcess(
            name,
            command,
            env=worker_environment({**self.env, **env}),
            log=self._logs / f"{name}.log",
            ready=rf"\b{name}@\w+ ready\.",
        )
        node = WorkerNode(container)
        self.nodes.append(node)
        container.start()
        return node


def worker_environment(extra: Mapping[str, str | None]) -> dict[str, str]:
    """Our environment without the developer's own settings for Celery and sagakit, and with ``extra``."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CELERY_", "SAGAKIT_", "SHOP_", "PYTEST_"))
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "NO_COLOR": "1"}
    return inherited | ours | {name: value for name, value in extra.items() if value is not None}
