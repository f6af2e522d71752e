"""Sends messages, after the commit that made them necessary; the only caller of ``apply_async``."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery
from celery.app.task import Task

from sagakit import probes
from sagakit.dispatch.envelope import ADVANCE_TASK, HEADER, STAMP, Envelope, StepEnvelope, header_of
from sagakit.dispatch.routing import Routing
from sagakit.ids import step_task_id
from sagakit.states import Kind

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes envelopes through Celery.

    Messages are hints: one that cannot be sent is logged, and the sweep sends it later.

    Args:
        app: the Celery app.
        routing: finds the queue of ``advance`` messages.
    """

    def __init__(self, app: Celery, routing: Routing) -> None:
        self._app = app
        self._routing = routing
        self._eager = _EagerQueue(self._run_eagerly)

    def publish(self, envelopes: Iterable[Envelope]) -> bool:
        """Send messages; say whether all of them were handed to the broker."""
        pending = list(envelopes)
        if not pending:
            return True
        if self._app.conf.task_always_eager:
            self._eager.run(pending)
            return True
        try:
            with self._app.producer_or_acquire() as producer:
                for envelope in pending:
                    probes.point("publish.before")
                    self._send(envelope, producer)
                    probes.point("publish.after")
        except (
            Exception
        ) as exc:  # whatever the broker or its client raise: the rows are the truth and will be swept
            logger.warning(
                "could not publish for saga %s (%s: %s); the sweep will",
                pending[0].saga_id,
                type(exc).__name__,
                exc,
            )
            return False
        return True

    def _send(self, envelope: Envelope, producer: Any) -> None:
        name, options = self._message(envelope)
        task = self._app.tasks.get(name)
        if task is None:
            self._app.send_task(name, producer=producer, **options)
        else:
            # Celery's own method: a step's is for people, and starts no saga.
            Task.apply_async(task, producer=producer, **options)

    def _message(self, envelope: Envelope) -> tuple[str, dict[str, Any]]:
        options: dict[str, Any] = {
            "headers": {HEADER: header_of(envelope)},
            "kwargsrepr": "",
            "ignore_result": True,
        }
        if envelope.priority is not None:
            options["priority"] = envelope.priority
        if isinstance(envelope, StepEnvelope):
            if envelope.kind is Kind.STEP:
                # Workers remember a revoked stamp and drop all that bears it: it must not stop the saga's own
                # bookkeeping, nor the undoing that follows.
                options |= {"stamped_headers": [STAMP], STAMP: envelope.saga_id}
            short = envelope.saga_name.rpartition(".")[2]
            options["argsrepr"] = f"{short} {envelope.saga_id} {envelope.name}"
            options["task_id"] = step_task_id(envelope.saga_id, envelope.position, envelope.run)
            if envelope.queue is not None:
                options["queue"] = envelope.queue
            return envelope.task, options
        options["argsrepr"] = f"{envelope.saga_name.rpartition('.')[2]} {envelope.saga_id}"
        options["queue"] = envelope.queue or self._routing.coordinator_queue
        return ADVANCE_TASK, options

    def _run_eagerly(self, envelope: Envelope) -> None:
        name, options = self._message(envelope)
        kept = {
            key: options[key] for key in ("headers", "task_id", "stamped_headers", STAMP) if key in options
        }
        self._app.tasks[name].apply(throw=False, **kept)


class _EagerQueue:
    """Runs messages in the caller, one after the other: what a message's task publishes waits for its turn."""

    def __init__(self, run: Callable[[Envelope], None]) -> None:
        self._run = run
        self._local = threading.local()

    def run(self, envelopes: Iterable[Envelope]) -> None:
        waiting: deque[Envelope] | None = getattr(self._local, "waiting", None)
        if waiting is not None:
            waiting.extend(envelopes)
            return
        self._local.waiting = waiting = deque(envelopes)
        try:
            while waiting:
                self._run(waiting.popleft())
        finally:
            self._local.waiting = None
