"""Keeps a worker alive in the ledger and its sweep going: two threads of the worker's main process."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from typing import Protocol

from celery.worker import state as worker_state
from sqlalchemy.exc import SQLAlchemyError

from sagakit import probes
from sagakit.settings import Settings
from sagakit.store import Store, WorkerInfo, is_outage
from sagakit.worker.identity import Identity
from sagakit.worker.notices import Notice, board

logger = logging.getLogger(__name__)

_SLICE = 1.0
"""Seconds between two looks at whether the worker is idle."""
_LEAST_PAUSE = 0.05
"""Seconds between two sweeps at least, however often it is woken."""


class RunSweep(Protocol):
    """Sweeps once; returns how long it is until something is due."""

    def __call__(
        self,
        *,
        idle: bool,
        queues: Collection[str],
        leases_trusted: bool,
        notices: Collection[Notice],
    ) -> timedelta | None: ...


class Keeper:
    """Heartbeat and sweep of one worker.

    The lease is renewed by the main process, in a thread of its own: a step that hogs its child cannot starve it.

    Args:
        store: the ledger.
        settings: intervals.
        identity: this worker.
        sweep: runs one sweep.
        describe: how the worker presents itself.
        queues: the queues it consumes now.
        has_room: whether a message in these queues would reach it now.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        identity: Identity,
        sweep: RunSweep,
        describe: Callable[[], WorkerInfo],
        queues: Callable[[], Iterable[str]],
        has_room: Callable[[], bool],
    ) -> None:
        self._store = store
        self._settings = settings
        self._identity = identity
        self._sweep = sweep
        self._describe = describe
        self._queues = queues
        self._has_room = has_room
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._up_since: float | None = None
        self._idle_since = time.monotonic()
        self._seen = -1

    def start(self) -> None:
        """Take the lease and start both threads."""
        with self._store.begin() as tx:
            tx.workers.purge(self._settings.lease * 100)
            tx.workers.register(self._describe(), self._settings.lease)
        self._up_since = time.monotonic()
        for name, run in (("heartbeat", self._beat), ("sweep", self._sweep_on)):
            thread = threading.Thread(target=run, name=f"sagakit-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, *, give_back: bool = True) -> None:
        """Stop both threads.

        Args:
            give_back: give the lease back, too: no step runs any more. Otherwise it runs out.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._identity.poke()
        for thread in self._threads:
            thread.join(timeout=self._settings.heartbeat.total_seconds())
        worker_id = self._identity.worker_id
        if worker_id is not None and give_back:
            try:
                with self._store.begin() as tx:
                    tx.workers.remove(worker_id)
            except SQLAlchemyError as exc:
                logger.warning("the worker's lease cannot be given back (%s); it will run out", exc)

    def _beat(self) -> None:
        while not self._stopped.wait(self._settings.heartbeat.total_seconds()):
            probes.point("heartbeat")
            try:
                with self._store.begin() as tx:
                    info = self._describe()
                    if not tx.workers.renew(info.id, self._settings.lease):
                        tx.workers.register(info, self._settings.lease)
            except Exception as exc:
                if self._up_since is not None:
                    logger.warning("the worker's lease cannot be renewed: %s", exc)
                self._up_since = None
            else:
                if self._up_since is None:
                    logger.info("the ledger's database is back")
                    self._up_since = time.monotonic()

    def _sweep_on(self) -> None:
        due_in: timedelta | None = None
        while not self._stopped.is_set():
            notices = board.take()
            try:
                due_in = self._sweep(
                    idle=self._is_idle(),
                    queues=frozenset(self._queues()),
                    leases_trusted=self._until_trusted() <= 0,
                    notices=notices,
                )
            except Exception as exc:
                due_in = None
                if isinstance(exc, SQLAlchemyError) and is_outage(exc):
                    # Nobody else would ever speak for their rows: this worker's lease lives.
                    board.put_back(notices)
                log = logger.warning if isinstance(exc, SQLAlchemyError) else logger.exception
                log("the sweep failed and will be repeated: %s", exc)
            self._rest(due_in)

    def _rest(self, due_in: timedelta | None) -> None:
        """Wait until something is due, somebody wakes the sweep, or its interval is over."""
        rest = self._settings.sweep_interval.total_seconds()
        if due_in is not None:
            rest = min(rest, due_in.total_seconds())
        if self._up_since is not None and (until := self._until_trusted()) > 0:
            rest = min(rest, until)
        end = time.monotonic() + max(rest, _LEAST_PAUSE)
        self._stopped.wait(_LEAST_PAUSE)
        while not self._stopped.is_set() and (left := end - time.monotonic()) > 0:
            wakeup = self._identity.wakeup
            if wakeup is None or wakeup.wait(min(left, _SLICE)):
                return
            self._is_idle()

    def _until_trusted(self) -> float:
        """Seconds until leases may be judged: every living worker must have had the time to renew its own.

        After an outage of the database, or at its own start, a worker cannot know whether the others could.
        """
        if self._up_since is None:
            return float("inf")
        return self._up_since + self._settings.lease.total_seconds() - time.monotonic()

    def _is_idle(self) -> bool:
        """Whether the worker has had room for more for a while, and nothing came.

        It need not be without work: one long step must not keep it from noticing that other messages are lost.
        """
        seen = sum(worker_state.total_count.values())
        if seen != self._seen or not self._has_room():
            self._seen = seen
            self._idle_since = time.monotonic()
        return time.monotonic() - self._idle_since >= self._settings.republish_after.total_seconds()
