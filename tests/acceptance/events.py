"""Celery's own events, as Flower sees them."""

import threading
from types import TracebackType
from typing import Any, Self

from celery import Celery

from tests.cluster.waiting import wait_until


class Events:
    """Records every event of an application's workers while the ``with`` block lasts."""

    def __init__(self, app: Celery) -> None:
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self._take})
        self._all: list[dict[str, Any]] = []
        self._app = app
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(self._hears, what="the workers' events")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._receiver.should_stop = True
        self._thread.join(30)
        self._connection.release()

    def of(self, task_id: str, kind: str) -> list[dict[str, Any]]:
        """The events of one kind of one task until now."""
        return [event for event in list(self._all) if event.get("uuid") == task_id and event["type"] == kind]

    def wait_for(self, task_id: str, kind: str) -> dict[str, Any]:
        """The first event of this kind, waited for."""
        __tracebackhide__ = True
        return wait_until(lambda: self.of(task_id, kind), what=f"{kind} of {task_id}")[0]

    def text(self, saga_id: str) -> str:
        """All events of one saga as text."""
        return "\n".join(
            repr(event) for event in list(self._all) if str(event.get("uuid")).startswith(saga_id)
        )

    def _hears(self) -> bool:
        # A subscription takes effect some time after it was made: ask for heartbeats until one is heard.
        self._app.control.broadcast("heartbeat")
        return bool(self._all)

    def _run(self) -> None:
        for _ in self._receiver.itercapture(limit=None, timeout=None, wakeup=False):
            pass

    def _take(self, event: dict[str, Any]) -> None:
        self._all.append(event)
