"""Named points in the code where a test may crash, pause or observe a process; no-ops in production.

``point("finish.committed")`` marks the instant right after (or before) something that matters: a commit, a
publish, a claim, a user's effect. Tests install a handler; a process under test reads it from
``SAGAKIT_PROBES``, e.g. ``finish.committed=kill`` or ``claim.committed=kill:3`` (at the third passing).
"""

import os
import signal
from collections.abc import Callable

Handler = Callable[[str], None]

_handler: Handler | None = None


def point(name: str) -> None:
    """Pass the point ``name``."""
    if _handler is not None:
        _handler(name)


def install(handler: Handler | None) -> None:
    """Send every point to ``handler``; ``None`` makes points no-ops again."""
    global _handler
    _handler = handler


def install_from_environment() -> None:
    """Install the handler that ``SAGAKIT_PROBES`` describes, if it is set.

    Raises:
        ValueError: the variable names an action other than ``kill``.
    """
    text = os.environ.get("SAGAKIT_PROBES")
    if text:
        install(_Script(text))


class _Script:
    """Kills the process at the n-th passing of a point, as ``kill -9`` would."""

    def __init__(self, text: str) -> None:
        self._left: dict[str, int] = {}
        for entry in text.split(","):
            name, _, action = entry.partition("=")
            verb, _, count = action.partition(":")
            if verb != "kill":
                raise ValueError(f"SAGAKIT_PROBES: {entry!r} is not 'point=kill' or 'point=kill:N'")
            self._left[name.strip()] = int(count or 1)

    def __call__(self, name: str) -> None:
        if name in self._left:
            self._left[name] -= 1
            if self._left[name] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
