"""Refuses real I/O, threads, processes and blocking sleeps while a saga's body is being advanced.

A body runs again at every replay, so whatever it does to the world would be done again. Python's audit events
(PEP 578) tell of such attempts before they happen, whichever library makes them.
"""

import sys
from typing import Any

from sagakit.errors import UseAStep
from sagakit.running import in_body

_FORBIDDEN = {
    "socket.connect": "opened a network connection",
    "socket.bind": "opened a network socket",
    "socket.sendto": "sent to the network",
    "socket.getaddrinfo": "looked up a host name",
    "subprocess.Popen": "started a process",
    "os.system": "started a process",
    "os.exec": "started a process",
    "os.fork": "forked the process",
    "os.posix_spawn": "started a process",
    "_thread.start_new_thread": "started a thread",
    "_thread.start_joinable_thread": "started a thread",
    "time.sleep": "called time.sleep()",  # an audit event from Python 3.13 on
    "open": "opened a file",
    "sqlite3.connect": "opened a database",
}

_READS_SOURCE = ("importlib", "zipimport", "linecache", "tokenize", "traceback", "zoneinfo", "logging")
"""Modules that open files for Python itself: a lazy import, a traceback, a time zone."""

_installed = False


def install() -> None:
    """Start watching. Audit hooks cannot be removed; outside a body this one costs a dictionary look-up."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    deed = _FORBIDDEN.get(event)
    if deed is None or not in_body():
        return
    if event == "open" and _is_python_itself():
        return
    instead = "use `await asyncio.sleep(...)`, which is durable" if event == "time.sleep" else "do this in a step"
    raise UseAStep(f"the saga's body {deed}; a body runs again at every replay: {instead}")


def _is_python_itself() -> bool:
    module: str = sys._getframe(2).f_globals.get("__name__", "")
    return module.lstrip("_").startswith(("frozen_importlib", *_READS_SOURCE))
