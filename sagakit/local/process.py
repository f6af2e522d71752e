"""One local server process: started under its account, dying with us, stopped or killed on request."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from sagakit.local.account import Account
from sagakit.local.directory import ServerDirectory
from sagakit.local.failures import LocalServerError

if TYPE_CHECKING:
    import psutil

START_TIMEOUT = 30.0
"""Seconds a server may take until it answers."""

_STOP_TIMEOUT = 15.0
_POLL_INTERVAL = 0.02
_LOG_TAIL = 4_000

# Below the range from which Linux (32768 up) and macOS (49152 up) take the local ports of outgoing connections: else
# such a connection may sit on a server's port while the server restarts, and a client that keeps dialling the port
# of a stopped server may even end up connected to itself.
_PORTS = range(15_000, 32_000)

_PR_SET_PDEATHSIG = 1
# Loaded here because the child, between fork and exec, must not take the time or the locks of loading it.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerProcess:
    """A server's process. Its output goes to ``server.log`` in the server's folder.

    Args:
        name: what to call the server in messages.
        directory: where it lives; also its working directory.
        account: who it runs as.
        death_signal: what the kernel sends it when this process dies (Linux only).
    """

    def __init__(
        self, name: str, directory: ServerDirectory, account: Account, *, death_signal: signal.Signals
    ) -> None:
        self._name = name
        self._directory = directory
        self._account = account
        self._death_signal = death_signal
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Id of the running process.

        Raises:
            LocalServerError: it is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise LocalServerError(self._name, "is not running: start() brings it back")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def run(self, command: Sequence[str]) -> None:
        """Run a program of the server's to its end.

        Raises:
            LocalServerError: it failed; the message quotes what it said.
        """
        process = self._spawn(command)
        try:
            status = process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            process.wait()
            problem = f"could not be set up: {Path(command[0]).name} took more than {START_TIMEOUT:g} s"
            raise LocalServerError(self._name, problem, log=self.log_tail()) from exc
        if status != 0:
            problem = f"could not be set up: {Path(command[0]).name} exited with status {status}"
            raise LocalServerError(self._name, problem, log=self.log_tail())

    def start(self, command: Sequence[str], answers: Callable[[int], Exception | None]) -> None:
        """Start the server and return when it answers.

        Args:
            command: the server's program and arguments.
            answers: tries once to use the server that runs as the given process id; returns what is in the way,
                or ``None``.

        Raises:
            LocalServerError: it ended, or did not answer in time; the message quotes its log.
        """
        process = self._process = self._spawn(command)
        deadline = time.monotonic() + START_TIMEOUT
        while (obstacle := answers(process.pid)) is not None:
            try:
                status = process.wait(_POLL_INTERVAL)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self.kill()
                problem = f"did not answer within {START_TIMEOUT:g} s ({obstacle})"
                raise LocalServerError(self._name, problem, log=self.log_tail()) from obstacle
            problem = f"ended with status {status} while starting"
            raise LocalServerError(self._name, problem, log=self.log_tail()) from obstacle

    def stop(self, how: signal.Signals) -> None:
        """Ask the server to end and wait until it has; kill it if it does not. Nothing if it is not running."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the server and the processes it started (SIGKILL), as a machine that dies would."""
        if self._process is None or self._process.poll() is not None:
            return
        import psutil  # comes with the extra that brings the servers; this module must be importable without

        # Stopped, so that it starts no further process while we look at those it has.
        self._process.send_signal(signal.SIGSTOP)
        # Held as (pid, start time): a stranger that happens to get a freed pid is never hit.
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait()
        deadline = time.monotonic() + _STOP_TIMEOUT
        # Orphans are for init to reap, and some inits take their time: a zombie holds nothing any more.
        while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)

    def log_tail(self) -> str:
        """The end of what the server has written since its last start."""
        log = self._directory.log_fd
        end = os.fstat(log).st_size
        text = os.pread(log, _LOG_TAIL, max(self._log_start, end - _LOG_TAIL))
        return text.decode(errors="replace").strip()

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        account, parent = self._account, os.getpid()
        self._log_start = os.fstat(self._directory.log_fd).st_size

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                list(command),
                cwd=self._directory.path,
                # Nothing of ours: PGDATA, LD_LIBRARY_PATH and the like would change the server under us.
                env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=self._directory.log_fd,
                stderr=subprocess.STDOUT,
                pass_fds=[self._directory.lock_fd],
                # Ctrl-C in a terminal goes to the whole group; we want to end first, and the server after us.
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent, self._death_signal),
                user=account.uid if account.switch else None,
                group=account.gid if account.switch else None,
                extra_groups=[] if account.switch else None,
                umask=0o077,
            )

        try:
            return _in_lasting_thread(spawn)
        except OSError as exc:
            problem = f"could not be started as user id {account.uid}: {exc}"
            if account.switch and isinstance(exc, PermissionError):
                problem += ". This root may not become another user; run as an ordinary user instead"
            raise LocalServerError(self._name, problem) from exc


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    for _ in range(200):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LocalServerError("a local server", f"found no free port from {_PORTS.start} to {_PORTS.stop - 1}")


def _die_with(parent: int, death_signal: signal.Signals) -> None:
    # Runs in the child, between fork and exec, under the server's account already: a change of account would undo it.
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)


def _is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_Job = tuple[Callable[[], "subprocess.Popen[bytes]"], "Future[subprocess.Popen[bytes]]"]
_jobs: SimpleQueue[_Job] | None = None
_jobs_lock = threading.Lock()


def _in_lasting_thread(spawn: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    """Spawn from a thread that ends only with the process.

    The kernel sends the death signal when the *thread* that forked ends: a server started in an executor's thread
    would die with that thread.
    """
    global _jobs
    with _jobs_lock:
        if _jobs is None:
            _jobs = SimpleQueue()
            threading.Thread(target=_work, args=(_jobs,), name="sagakit-local-servers", daemon=True).start()
    done: Future[subprocess.Popen[bytes]] = Future()
    _jobs.put((spawn, done))
    return done.result()


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        spawn, done = jobs.get()
        try:
            done.set_result(spawn())
        except BaseException as exc:
            done.set_exception(exc)


def _forget_thread() -> None:
    # Threads do not survive a fork; a forked child that starts servers of its own gets its own thread.
    global _jobs, _jobs_lock
    _jobs, _jobs_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_thread)
