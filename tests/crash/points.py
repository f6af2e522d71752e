"""Crash points that a test arms while the workers run: a file says which process, passing which point, dies or waits.

``SAGAKIT_PROBES`` is read once by a worker and starts anew in every child. Here a point is armed once for all of a
worker's processes, so that the child that takes the dead one's place lives.
"""

import os
import signal
import time
from pathlib import Path

from sqlalchemy.exc import OperationalError

from sagakit import probes

VARIABLE = "CRASH_POINTS"

_HOLD_TIMEOUT = 60.0
_HOLD_INTERVAL = 0.01


class Points:
    """The test's side.

    Args:
        folder: where the files are; ``CRASH_POINTS`` of the processes under test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def kill(self, point: str, nth: int = 1) -> None:
        """Kill, as ``kill -9`` does, whichever process is the n-th to pass the point from now on."""
        for left in range(nth):
            (self.folder / f"{point}@{left:03}").touch()

    def fail(self, point: str) -> None:
        """Break the database connection's answer for the next process that passes the point."""
        (self.folder / f"{point}!fail").touch()

    def hold(self, point: str) -> "Hold":
        """Hold up whoever passes the point."""
        return Hold(self.folder / f"{point}!hold")

    def has_killed(self, point: str) -> bool:
        """Whether a process has died at the point."""
        return (self.folder / f"{point}!killed").exists()

    def disarm(self) -> None:
        """Forget everything that was armed, and what came of it."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


class Hold:
    """A point that holds processes up until the ``with`` block ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reached = path.with_name(f"{path.name}.reached")
        path.touch()

    @property
    def reached(self) -> bool:
        """Whether a process waits at the point, or has waited."""
        return self._reached.exists()

    def release(self) -> None:
        """Let go whoever waits, and whoever comes later."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def install() -> None:
    """Watch the points in this process and its children, if ``CRASH_POINTS`` names a folder."""
    folder = os.environ.get(VARIABLE)
    if folder:
        probes.install(_Watch(Path(folder)))


class _Watch:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, point: str) -> None:
        armed = sorted(name for name in os.listdir(self._folder) if name.startswith(f"{point}@"))
        while armed:
            name = armed.pop()
            if not self._take(name):
                continue  # another process has passed at the same moment
            if name.endswith("@000"):
                (self._folder / f"{point}!killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return
        if self._take(f"{point}!fail"):
            raise OperationalError("COMMIT", {}, ConnectionError("the connection broke"))
        self._wait(self._folder / f"{point}!hold")

    def _take(self, name: str) -> bool:
        try:
            (self._folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    @staticmethod
    def _wait(hold: Path) -> None:
        if hold.exists():
            hold.with_name(f"{hold.name}.reached").touch()
        deadline = time.monotonic() + _HOLD_TIMEOUT
        while hold.exists() and time.monotonic() < deadline:
            time.sleep(_HOLD_INTERVAL)
