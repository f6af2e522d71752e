"""Where the current code runs: inside a saga's body, inside a step, or neither."""

import asyncio
from contextvars import ContextVar
from typing import Any

step_context: ContextVar[Any] = ContextVar("sagakit_step_context")
"""The context of the step that runs in this thread or task; what ``current_step`` shows."""


def in_body() -> bool:
    """Whether a saga's body is being advanced right now, in this thread."""
    return getattr(asyncio._get_running_loop(), "is_ledger_loop", False)


def is_shutdown(exc: BaseException) -> bool:
    """Whether the process is being stopped: Celery's and billiard's handlers of signals raise ``SystemExit``.

    One that user code raised with ``sys.exit()`` is a failure like any other.
    """
    if isinstance(exc, KeyboardInterrupt):
        return True
    if not isinstance(exc, SystemExit):
        return False
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    module = str(tb.tb_frame.f_globals.get("__name__", "")) if tb is not None else ""
    return module.partition(".")[0] in ("billiard", "celery")
