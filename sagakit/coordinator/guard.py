"""Refuses real I/O, threads, processes and blocking sleeps while a saga's body is being advanced.

A body runs again at every replay, so whatever it does to the world would be done again. Python's audit events
(PEP 578) tell of such attempts before they happen, whichever library makes them.
"""

import concurrent.futures
import sys
import threading
from functools import wraps
from types import FrameType
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
    "os.chmod": "changed a file",
    "os.chown": "changed a file",
    "os.link": "changed a directory",
    "os.listdir": "read a directory",
    "os.mkdir": "changed a directory",
    "os.remove": "removed a file",
    "os.rename": "renamed a file",
    "os.rmdir": "removed a directory",
    "os.scandir": "read a directory",
    "os.symlink": "changed a directory",
    "os.truncate": "changed a file",
    "os.kill": "sent a signal",
    "sqlite3.connect": "opened a database",
    "sagakit.submit": "used an executor",
}

_ALLOWED = (
    "frozen_importlib",
    "importlib",
    "zipimport",
    "linecache",
    "traceback",
    "zoneinfo",
    "logging",
    "bdb",
    "pdb",
)
"""Modules under which nothing is refused: a lazy import, a traceback, a time zone, a log record, a debugger."""

_THE_LOOP = "sagakit.coordinator.loop"

_installed = False


def install() -> None:
    """Start watching. Audit hooks cannot be removed; outside a body this one costs a dictionary look-up."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_refuse)
        if sys.version_info < (3, 12):  # Python tells of threads from then on
            _watch(threading, "_start_new_thread", "_thread.start_new_thread")
        # An executor whose threads or processes run already does its work without a word.
        for module, executor in (("thread", "ThreadPoolExecutor"), ("process", "ProcessPoolExecutor")):
            if f"concurrent.futures.{module}" in sys.modules:
                _watch(getattr(concurrent.futures, executor), "submit", "sagakit.submit")


def _watch(owner: Any, name: str, event: str) -> None:
    """Tell of a function's calls as Python tells of others."""
    function = getattr(owner, name)

    @wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        _refuse(event, args)
        return function(*args, **kwargs)

    setattr(owner, name, watched)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    deed = _FORBIDDEN.get(event)
    if deed is None or not in_body():
        return
    if _is_allowed() or (event == "open" and _is_time_zone(args[0])):
        return
    instead = (
        "use `await asyncio.sleep(...)`, which is durable" if event == "time.sleep" else "do this in a step"
    )
    raise UseAStep(f"the saga's body {deed}; a body runs again at every replay: {instead}")


def _is_allowed() -> bool:
    """Whether the attempt is one that a replay does not repeat (a module runs once), or that changes nothing."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "")
        if module == _THE_LOOP:
            return False  # from here on down it is the worker's own code
        if module.lstrip("_").partition(".")[0] in _ALLOWED:
            return True
        frame = frame.f_back
    return False


def _is_time_zone(path: Any) -> bool:
    """Whether ``zoneinfo`` reads a time zone; its own code for that is in C, and not on the stack."""
    return "zoneinfo" in sys.modules and str(path).startswith(tuple(sys.modules["zoneinfo"].TZPATH))
