"""Worker processes of the demo's own: started, killed as a crash would, and stopped with everything they started."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import workers

_STOP_TIMEOUT = 20.0
_PR_SET_PDEATHSIG = 1
# Loaded before the fork: between fork and exec the child must not take the time, or the locks, of loading it.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class WorkerProcess:
    """One ``celery -A workers.app worker`` with prefork children, in a process group of its own.

    Args:
        name: its node name.
        concurrency: how many children.
        environment: variables beyond those of this process.
        log: file that its output is appended to.
    """

    def __init__(self, name: str, *, concurrency: int, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = [
            *(sys.executable, "-m", "celery", "-A", "workers.app", "worker"),
            *("--pool", "prefork", "--concurrency", str(concurrency), "--hostname", f"{name}@localhost"),
            *("--loglevel", "WARNING", "--without-gossip", "--without-mingle"),
        ]
        package_parent = str(Path(workers.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, **environment, "PYTHONPATH": path}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its main process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; it is ready a second or two later."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: killed as one, and out of reach of our Ctrl-C
                preexec_fn=_die_with_parent if _libc is not None else None,
            )

    def kill(self) -> None:
        """``kill -9``: its main process and its children, at once. Nothing else is in its group."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Let it finish what it is doing; kill it if that takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


def _die_with_parent() -> None:
    # Should the demo itself be killed, the kernel ends the worker too; its children then see their pipe close.
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
