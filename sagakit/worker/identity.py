"""Who this worker is, and its way to wake the sweep: set in the main process, inherited by its children."""

import contextlib
import os
import select
import threading

from sagakit.ids import new_worker_id


class Wakeup:
    """Lets any process of a worker wake its sweep. A pipe, because children are forked and share nothing else."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def poke(self) -> None:
        """Wake the sweep."""
        with contextlib.suppress(OSError):  # full: it has been poked; closed: the worker is going down
            os.write(self._write, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, ``seconds`` at most; say whether it was."""
        try:
            ready, _, _ = select.select([self._read], [], [], max(0.0, seconds))
            if ready:
                os.read(self._read, 65536)
        except OSError:
            return False
        return bool(ready)

    def close(self) -> None:
        """Close both ends."""
        for end in (self._read, self._write):
            with contextlib.suppress(OSError):
                os.close(end)


class Identity:
    """One worker: its id (which its lease bears) and its wake-up.

    A process that is no Celery worker but runs steps (``task_always_eager``) gets an identity when it needs one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker_id: str | None = None
        self.wakeup: Wakeup | None = None

    def become_worker(self) -> str:
        """Take on a fresh identity, in a worker's main process before it forks."""
        self._worker_id = new_worker_id()
        self.wakeup = Wakeup()
        return self._worker_id

    def stand_in(self) -> str:
        """Take on an identity in a process that is no worker and yet runs steps."""
        with self._lock:
            if self._worker_id is None:
                self._worker_id = new_worker_id()
            return self._worker_id

    def resign(self) -> None:
        """Give the identity up, when the worker shuts down."""
        self._worker_id = None
        if self.wakeup is not None:
            self.wakeup.close()
            self.wakeup = None

    @property
    def worker_id(self) -> str | None:
        """The id, or ``None`` in a process that is no worker."""
        return self._worker_id

    def poke(self) -> None:
        """Wake this worker's sweep, from whichever of its processes."""
        if self.wakeup is not None:
            self.wakeup.poke()


identity = Identity()
"""This process's: a process is one worker at most."""
