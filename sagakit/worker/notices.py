"""What a worker's main process learns about steps and leaves to the sweep: a child died, a task was revoked."""

import queue
from dataclasses import dataclass
from enum import StrEnum

from sagakit.dispatch.envelope import Delivery


class NoticeKind(StrEnum):
    """What happened to the process or message of a step."""

    LOST = "lost"
    """The process that ran it died."""
    TIMED_OUT = "timed_out"
    """Celery killed it at its hard time limit."""
    REVOKED = "revoked"
    """An operator revoked its task before it ran."""
    TERMINATED = "terminated"
    """An operator revoked its task while it ran, and Celery killed it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One such event. It comes from Celery's event loop, which must not wait for a database."""

    kind: NoticeKind
    delivery: Delivery


class NoticeBoard:
    """Where notices wait for the sweep, with what the main process has seen of the queues."""

    def __init__(self) -> None:
        self._notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._newest: dict[str, float] = {}

    def post(self, notice: Notice) -> None:
        """Leave a notice; never blocks."""
        self._notices.put(notice)

    def take(self) -> list[Notice]:
        """Take all notices there are."""
        taken = []
        while True:
            try:
                taken.append(self._notices.get_nowait())
            except queue.Empty:
                return taken

    def received(self, queue_name: str, sent_at: float) -> None:
        """Note that a message sent at this time (the database's, in seconds) has come out of a queue."""
        if sent_at > self._newest.get(queue_name, 0.0):
            self._newest[queue_name] = sent_at

    @property
    def newest(self) -> dict[str, float]:
        """By queue, when the newest message received from it was sent."""
        return dict(self._newest)


board = NoticeBoard()
"""One a process: Celery constructs requests itself and hands them nothing of ours."""
