"""Where the current code runs: inside a saga's body, inside a step, or neither."""

import asyncio
from contextvars import ContextVar
from typing import Any

step_context: ContextVar[Any] = ContextVar("sagakit_step_context")
"""The context of the step that runs in this thread or task; what ``current_step`` shows."""


def in_body() -> bool:
    """Whether a saga's body is being advanced right now, in this thread."""
    return getattr(asyncio._get_running_loop(), "is_ledger_loop", False)
