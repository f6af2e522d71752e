"""Compares what a page shows with what really came out, but for what differs each time."""

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b\d+(\.\d+)?(ms|s|m\d\ds)\b"), "<span>"),
)


def plain(line: str) -> str:
    """A line without colours, with one space for several, and with times and spans made equal."""
    line = _ESCAPES.sub("", line)
    for pattern, word in _VOLATILE:
        line = pattern.sub(word, line)
    return " ".join(line.split())


def missing(expected: str, actual: str) -> str | None:
    """The first expected line that does not follow in the actual text, or ``None`` if all do, in order.

    ``…`` stands for anything, within a line or as a line of its own.
    """
    found = iter([plain(line) for line in actual.splitlines()])
    for line in expected.splitlines():
        wanted = plain(line)
        if wanted in ("", "…", "..."):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("…")))
        if not any(pattern.fullmatch(one) for one in found):
            return line
    return None
