"""Waiting for sagas to end: one poller for all waiters of a process."""

import logging
import threading
from collections import defaultdict
from concurrent.futures import Future

from sqlalchemy.exc import SQLAlchemyError

from sagakit.states import SagaState
from sagakit.store import Store

logger = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 0.005, 0.25
"""Seconds between two polls: short for a saga about to end, long for one that takes its time."""


class OutcomeWaiter:
    """Asks the ledger, in one statement for everybody who waits, which sagas have ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._waiting: dict[str, set[Future[SagaState]]] = defaultdict(set)
        self._thread: threading.Thread | None = None

    def wait(self, saga_id: str) -> "Future[SagaState]":
        """A future of the state in which the saga ends or gets stuck. Cancel it to stop waiting."""
        future: Future[SagaState] = Future()
        with self._lock:
            self._waiting[saga_id].add(future)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._poll, name="sagakit-outcomes", daemon=True)
                self._thread.start()
        self._news.set()
        return future

    def _poll(self) -> None:
        pause = _SHORTEST
        while True:
            if self._news.wait(pause):
                self._news.clear()
                pause = _SHORTEST
            with self._lock:
                ids = self._drop_cancelled()
                if not ids:
                    self._thread = None
                    return
            try:
                with self._store.read() as tx:
                    ended = tx.queries.ended(ids)
            except SQLAlchemyError as exc:
                logger.warning("cannot ask for outcomes: %s", exc)
                ended = {}
            for saga_id, state in ended.items():
                self._tell(saga_id, state)
            pause = _SHORTEST if ended else min(pause * 1.5, _LONGEST)

    def _drop_cancelled(self) -> list[str]:
        for saga_id, futures in list(self._waiting.items()):
            futures -= {future for future in futures if future.cancelled()}
            if not futures:
                del self._waiting[saga_id]
        return list(self._waiting)

    def _tell(self, saga_id: str, state: SagaState) -> None:
        with self._lock:
            futures = self._waiting.pop(saga_id, set())
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_result(state)
