"""pytest-celery's nodes, over processes and servers in place of containers."""

import re
import signal
from typing import Any, Protocol

import celery
from pytest_celery import CeleryTestBroker, CeleryTestWorker

from tests.cluster.process import ManagedProcess
from tests.cluster.waiting import wait_until


class WorkerProcess(ManagedProcess):
    """A ``celery worker`` with all its children; the container of a ``WorkerNode``."""

    queue = "celery"

    def version(self) -> str:
        """Celery's version."""
        return str(celery.__version__)

    def log_level(self) -> str:
        """The log level workers are started with."""
        return "INFO"

    def worker_name(self) -> str:
        """The part of the node name before the ``@``; the process's id comes after it."""
        return self.name

    def worker_queue(self) -> str:
        """The first queue it consumes from."""
        return self.queue


class WorkerNode(CeleryTestWorker):
    """A worker of the cluster: what pytest-celery's nodes can do, and what only processes can."""

    container: WorkerProcess

    def __init__(self, container: WorkerProcess) -> None:
        super().__init__(container, app=None)

    def __repr__(self) -> str:
        return f"<WorkerNode {self.hostname()} {self.container.status}>"

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def pid(self) -> int | None:
        """Process id of the main process."""
        return self.container.pid

    @property
    def pids(self) -> list[int]:
        """Process ids of the living main process and children, the main process first."""
        return self.container.pids

    @property
    def children(self) -> list[int]:
        """Process ids of the living children."""
        return [pid for pid in self.pids if pid != self.pid]

    @property
    def running(self) -> bool:
        """Whether the main process is alive."""
        return self.container.running

    @property
    def exit_status(self) -> int | None:
        """Exit status of the main process, negative for a signal; ``None`` while it runs."""
        return self.container.exit_status

    def kill(self, signal: str | int = signal.SIGKILL, reload_container: bool = True) -> None:
        """Send a signal to the main process; SIGKILL goes to the children too, and all are gone on return."""
        self.container.kill(signal)

    def kill_parent(self) -> None:
        """SIGKILL the main process only."""
        self.container.kill_parent()

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL one child, by default the first, and return its process id."""
        return self.container.kill_child(pid)

    def stop(self, timeout: float = 30.0) -> int:
        """Warm shutdown: SIGTERM, wait until the worker has ended, return its exit status."""
        return self.container.stop(timeout)

    def wait_exit(self, timeout: float = 30.0) -> int:
        """Wait until the main process has ended, by itself or by a probe, and return its exit status."""
        __tracebackhide__ = True
        wait_until(lambda: not self.running, timeout, f"{self.name()} to end")
        status = self.exit_status
        assert status is not None
        return status

    def pause(self) -> None:
        """Freeze the main process and the children."""
        self.container.pause()

    def resume(self) -> None:
        """Let the frozen processes go on."""
        self.container.resume()

    def wait_for_log(self, log: str, timeout: float = 30.0, message: str = "") -> re.Match[str]:
        """Wait until the regular expression ``log`` matches what was logged since the last start; return the match."""
        pattern = re.compile(log, re.MULTILINE)
        what = message or f"{self.name()} to log {log!r}"
        return wait_until(lambda: pattern.search(self.container.recent_logs()), timeout, what)

    def assert_log_exists(self, log: str, message: str = "", timeout: float = 30.0) -> None:
        """Wait until the text ``log`` was logged since the last start."""
        self.wait_for_log(re.escape(log), timeout, message)


class Server(Protocol):
    """A server of our own, as in ``sagakit.local``."""

    @property
    def running(self) -> bool:
        """Whether its main process is alive."""

    def start(self) -> None:
        """Start it; nothing if it runs."""

    def stop(self) -> None:
        """Shut it down."""

    def kill(self) -> None:
        """SIGKILL it."""


class ServerContainer:
    """A server behind a URL; the container of a ``BrokerNode``.

    Args:
        name: how reports call it.
        url: what clients connect to.
        server: the server itself, if it is ours to kill.
    """

    def __init__(self, name: str, url: str, server: Server | None) -> None:
        self.id = self.name = name
        self.celeryconfig: dict[str, Any] = {"url": url, "host_url": url}
        self._server = server

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        return "running" if self._server is None or self._server.running else "exited"

    def ready(self) -> bool:
        """Whether it runs: servers answer from the start."""
        return self.status == "running"

    def logs(self) -> str:
        """Nothing: a server's log is its own affair."""
        return ""

    def kill(self, signal: str | int = signal.SIGKILL) -> None:
        """Kill the server, whatever the signal."""
        self._own().kill()

    def restart(self, timeout: float = 30.0) -> None:
        """Shut the server down, if it runs, and start it again on the same port."""
        self._own().stop()
        self._own().start()

    def reload(self) -> None:
        """Nothing to do, unlike for a container."""

    def teardown(self) -> None:
        """Bring the server back for the tests to come, if this one left it dead."""
        if self._server is not None:
            self._server.start()

    def _own(self) -> Server:
        assert self._server is not None, f"{self.name} is not ours to kill"
        return self._server


class BrokerNode(CeleryTestBroker):
    """The broker of the cluster."""
