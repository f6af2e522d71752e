"""What a worker's main process learns about steps and leaves to the sweep: a child died, a task was revoked."""

import os
import queue
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sagakit.dispatch.envelope import Delivery
from sagakit.ids import new_token


def claim_token(delivery: Delivery) -> str:
    """The token under which this process claims what a message offers: it tells which message, and which process."""
    return f"{_claims_of(delivery, os.getpid())}{new_token()}"


def _claims_of(delivery: Delivery, pid: int | None) -> str:
    return f"{delivery.token}." if pid is None else f"{delivery.token}.{pid:x}."


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
    """One such event. It comes from Celery's event loop, which must not wait for a database.

    Attributes:
        pid: the process that ran the message's task, if one has begun to.
    """

    kind: NoticeKind
    delivery: Delivery
    pid: int | None = None

    def is_about(self, token: str) -> bool:
        """Whether the run that holds this token is the one that the notice tells of.

        Its row may have gone on meanwhile: a process that dies right after it committed a retry takes nothing with it,
        and neither does one that was looking at a duplicate.
        """
        return token.startswith(_claims_of(self.delivery, self.pid))


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

    def put_back(self, notices: Iterable[Notice]) -> None:
        """Return notices that could not be dealt with: the database was away."""
        for notice in notices:
            self.post(notice)

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
