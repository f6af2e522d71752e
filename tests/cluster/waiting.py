"""Waiting for a condition, the one place where tests sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_INTERVAL = 0.005
_LONGEST_INTERVAL = 0.1

reporters: list[Callable[[], str]] = []
"""Called when a wait fails; what they return ends the message. (The workers' logs come in a section of the report.)"""


def wait_until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Call ``predicate`` until it is true and return its value; fail, naming ``what``, if that takes too long."""
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    interval = _FIRST_INTERVAL
    while True:
        # Asked before looking: whatever took the time, there is a last look after it.
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            break
        time.sleep(interval)
        interval = min(interval * 1.5, _LONGEST_INTERVAL)
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    reports = "".join(f"\n{report()}" for report in reporters)
    raise AssertionError(f"waited {timeout:g} s in vain: {name} (at last {value!r}){reports}")
