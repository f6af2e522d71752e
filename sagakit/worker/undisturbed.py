"""Holds Celery's soft time limit back while an outcome is being recorded."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_SOFT_LIMIT = getattr(signal, "SIGUSR1", None)
"""What the prefork pool sends to a child at the soft limit; its handler raises in whatever runs just then."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no soft time limit fire inside the block: raised in the saga's body, it would pass for the body's own error.

    One that comes meanwhile is dropped: what it was to end has ended. The handler is replaced rather than the signal
    masked, because any other thread of the process would take a masked one.
    """
    if _SOFT_LIMIT is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(_SOFT_LIMIT)
    if not callable(handler):
        yield
        return
    signal.signal(_SOFT_LIMIT, _drop)
    try:
        yield
    finally:
        signal.signal(_SOFT_LIMIT, handler)


def _drop(number: int, frame: object) -> None:
    logger.info("a soft time limit fired while the outcome was being recorded, and is ignored")
