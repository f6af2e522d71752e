"""The Celery request of a step, in the main process: tells the sweep at once when a step is lost or revoked."""

from typing import Any

from billiard.exceptions import WorkerLostError
from celery.app.trace import ExceptionWithTraceback
from celery.worker.request import Request

from sagakit.dispatch.envelope import HEADER, Delivery, read_delivery
from sagakit.worker.identity import identity
from sagakit.worker.notices import Notice, NoticeKind, board


class StepRequest(Request):
    """A request that frees its ledger row when its process dies, instead of leaving that to the lease."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        header = self.request_dict.get(HEADER)
        if isinstance(header, dict) and isinstance(header.get("sent_at"), int | float):
            queue = (self.delivery_info or {}).get("routing_key")
            if queue:
                board.received(queue, float(header["sent_at"]))

    @property
    def _delivery(self) -> Delivery | None:
        return read_delivery(self.request_dict.get(HEADER))

    def _post(self, kind: NoticeKind) -> None:
        delivery = self._delivery
        if delivery is not None:
            board.post(Notice(kind, delivery, self.worker_pid))
            identity.poke()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """As Celery's; a lost child or a termination is told to the sweep."""
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt):
            self._post(NoticeKind.LOST)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """As Celery's; a step killed at its hard limit is told to the sweep."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._post(NoticeKind.TIMED_OUT)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        super()._announce_revoked(reason, terminated, signum, expired)
        self._post(NoticeKind.TERMINATED if terminated else NoticeKind.REVOKED)
