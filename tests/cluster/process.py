"""One process of a test: in a session of its own, with its log; can be killed, frozen and started again.

It has the methods that pytest-celery's nodes expect of a container.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.cluster.waiting import reporters, wait_until

ROOT = Path(__file__).resolve().parents[2]

RUN = uuid.uuid4().hex
"""Marks, in their environment, the processes that this test run has started."""

_RUN = "SAGAKIT_TEST_RUN"
_NODE = "SAGAKIT_TEST_NODE"
_READY_TIMEOUT = 60.0
_GONE_TIMEOUT = 15.0
_TAIL = 4_000
_PR_SET_PDEATHSIG = 1
# Loaded before the fork: between fork and exec the child must not take the time, or the locks, of loading it.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_started: list["ManagedProcess"] = []


class ManagedProcess:
    """A command and the process that runs it at the moment, if any.

    Attributes:
        id: unique; also the host part of a worker's node name.
        name: how reports call it.
    """

    def __init__(
        self,
        name: str,
        command: Callable[["ManagedProcess"], Sequence[str]],
        *,
        env: Mapping[str, str],
        log: Path,
        ready: str,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.name = name
        self.log = log
        self._command = command
        self._env = {**env, _RUN: RUN, _NODE: self.id}
        self._ready = re.compile(ready)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._paused = False

    # --- its life ---

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(self),
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # killed as one, and out of reach of the terminal's Ctrl-C
                preexec_fn=_die_with_parent if _libc is not None else None,
            )
        self._paused = False
        if self not in _started:
            _started.append(self)

    def ready(self) -> bool:
        """Wait until it has logged that it is ready; fail at once if it ends instead."""
        __tracebackhide__ = True

        def is_ready() -> bool:
            if self._ready.search(self.recent_logs()):
                return True
            if not self.running:
                raise AssertionError(f"{self.name} {self.status} instead of getting ready")
            return False

        return wait_until(is_ready, _READY_TIMEOUT, f"{self.name} to get ready")

    def kill(self, signal: str | int = signal.SIGKILL) -> None:
        """Send a signal to its main process; SIGKILL goes to all its processes at once, and they are gone on return."""
        number = _signal(signal)
        if number != _signal("SIGKILL"):
            self._leader().send_signal(number)
            return
        doomed = self.members()
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, number)  # at once: no child sees its parent die
            process.wait(_GONE_TIMEOUT)
        for member in self.members():  # whoever is left of a main process that was dead before
            with suppress(psutil.NoSuchProcess):
                member.kill()
        # Not `members()` again: a process loses its environment, and with it its mark, a moment before it is gone.
        wait_until(
            lambda: not any(_is_alive(member) for member in doomed),
            _GONE_TIMEOUT,
            f"the processes of {self.name} to be gone",
        )

    def kill_parent(self) -> None:
        """SIGKILL its main process only (on Linux, Celery has the kernel kill the children of a dead main process)."""
        leader = self._leader()
        leader.kill()
        leader.wait(_GONE_TIMEOUT)

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL one child, by default the first, and return its process id."""
        children = {child.pid: child for child in self.members() if child.pid != self.pid}
        assert children, f"{self.name} has no child to kill"
        if pid is None:
            pid = min(children)
        assert pid in children, f"{pid} is no child of {self.name}: {sorted(children)}"
        children[pid].kill()
        wait_until(
            lambda: not _is_alive(children[pid]), _GONE_TIMEOUT, f"child {pid} of {self.name} to be gone"
        )
        return pid

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to end after what it is doing (SIGTERM), wait for it, and return its exit status."""
        leader = self._leader()
        leader.terminate()
        wait_until(lambda: not self.running, timeout, f"{self.name} to end after SIGTERM")
        return leader.returncode

    def pause(self) -> None:
        """Freeze all its processes (SIGSTOP), as a machine that hangs would; they stand still on return."""
        os.killpg(self._leader().pid, signal.SIGSTOP)
        self._paused = True
        wait_until(self._stands_still, _GONE_TIMEOUT, f"the processes of {self.name} to stop")

    def resume(self) -> None:
        """Let its frozen processes go on (SIGCONT)."""
        os.killpg(self._leader().pid, signal.SIGCONT)
        self._paused = False

    def restart(self, timeout: float = 30.0) -> None:
        """End it, warmly if it can, start it again under the same name, and wait until it is ready."""
        if self.running and not self._paused:
            self._leader().terminate()
            with suppress(subprocess.TimeoutExpired):
                self._leader().wait(timeout)
        self.kill()
        self.start()
        self.ready()

    def teardown(self) -> None:
        """Kill what is left of it."""
        self.kill()
        if self in _started:
            _started.remove(self)

    # --- what it looks like ---

    @property
    def pid(self) -> int | None:
        """Process id of its main process, also after that has ended; ``None`` before the first start."""
        return self._process.pid if self._process is not None else None

    @property
    def pids(self) -> list[int]:
        """Process ids of all its living processes, the main process first."""
        return sorted((member.pid for member in self.members()), key=lambda pid: (pid != self.pid, pid))

    @property
    def running(self) -> bool:
        """Whether its main process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit status of its main process, negative for a signal; ``None`` while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def status(self) -> str:
        """``created``, ``running``, ``paused`` or ``exited``, as a container's; ``exited`` says with what."""
        if self._process is None:
            return "created"
        if not self.running:
            return f"exited ({self.exit_status})"
        return "paused" if self._paused else "running"

    @property
    def celeryconfig(self) -> dict[str, str]:
        """What Celery has to know of it: nothing; servers say more."""
        return {}

    def reload(self) -> None:
        """Nothing to do: a process is always looked at afresh, unlike a container."""

    def members(self) -> list[psutil.Process]:
        """Its living processes: those of its session that bear its mark."""
        if self.pid is None:
            return []
        return list(_marked(_NODE, self.id, session=self.pid))

    def logs(self) -> str:
        """Everything it has written, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def recent_logs(self) -> str:
        """What it has written since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def summary(self) -> str:
        """Its state in one line."""
        return f"{self.name}: {self.status}, processes {self.pids}"

    def report(self) -> str:
        """Its state and the end of its log."""
        return f"--- {self.summary()} ---\n{self.logs()[-_TAIL:].rstrip()}"

    def _stands_still(self) -> bool:
        return {member.status() for member in self.members()} == {psutil.STATUS_STOPPED}

    def _leader(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was never started"
        assert self.running, f"{self.name} does not run: {self.status}"
        return self._process


def report_all() -> str:
    """State and end of the log of every process that was started and not yet torn down."""
    return "\n".join(process.report() for process in _started)


def _summarize_all() -> str:
    return "\n".join(process.summary() for process in _started)


def kill_leftovers() -> list[int]:
    """SIGKILL every process that this run started and that still lives; return their process ids."""
    killed = []
    for process in _marked(_RUN, RUN):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process.pid)
    return killed


reporters.append(_summarize_all)


def _marked(variable: str, value: str, session: int | None = None) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if session is not None and os.getsid(process.pid) != session:
                continue
            # The mark, because the kernel may have given the id of a dead session to a stranger.
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue  # gone, or not ours to look at


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(name: str | int) -> int:
    return signal.Signals[name].value if isinstance(name, str) else int(name)


def _die_with_parent() -> None:
    # Should the test run itself be killed, the kernel ends this process too; its children then see their pipe close.
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
