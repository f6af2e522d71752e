"""Durations, times, names and foreign text as a terminal shows them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagakit.store.schema import SchemaStatus

Say = Callable[..., str]
"""Turns the words of a command into what can be typed."""


def span(value: timedelta) -> str:
    """A duration in at most seven characters: ``35ms``, ``4.52s``, ``3m05s``, ``2h05m``, ``9d04h``."""
    seconds = max(value.total_seconds(), 0.0)
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def age(value: timedelta) -> str:
    """A duration in its largest unit alone: ``12s``, ``5m``, ``3h``, ``9d``."""
    seconds = max(value.total_seconds(), 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def moment(value: datetime) -> str:
    """A time to the second, in the time zone of whoever reads it: ``2026-11-20 13:37:02 +01:00``."""
    local = value.astimezone()
    zone = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M:%S} {zone[:3]}:{zone[3:5]}"


def clock(value: datetime) -> str:
    """The time of day alone, to a tenth of a second."""
    local = value.astimezone()
    return f"{local:%H:%M:%S}.{local.microsecond // 100_000}"


def printable(text: str) -> str:
    """Text from elsewhere, with what could command a terminal made visible; line breaks and tabs stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in printable(text).splitlines() if line.strip()), "")


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """``text``, cut to ``width`` characters if it is longer."""
    if len(text) <= width:
        return text
    return text[: max(width - 1, 0)] + ellipsis


def short_names(names: Iterable[str]) -> Mapping[str, str]:
    """Each dotted name cut to the shortest tail that no other of them has: ``shop.sagas.checkout`` → ``checkout``."""
    distinct = set(names)
    tails = Counter(tail for name in distinct for tail in _tails(name))
    return {
        name: next(tail for tail in _tails(name) if tails[tail] == 1 or tail == name) for name in distinct
    }


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[index:]) for index in range(len(parts) - 1, -1, -1)]


def tags(values: Mapping[str, object] | None) -> str:
    """Tags as they are written on the command line: ``customer=7 region=eu``."""
    return printable(" ".join(f"{key}={value}" for key, value in (values or {}).items()))


def listing(names: Iterable[str], *, most: int = 5) -> str:
    """Some of the names, and how many more there are."""
    words = list(names)
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 saga``, ``3 sagas``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def schema_fault(status: "SchemaStatus", migrate: str) -> tuple[str, str]:
    """What is wrong with a schema that is not usable, and what to do.

    Args:
        status: how the database's schema and this code relate.
        migrate: the command that upgrades it.
    """
    if status.current is None:
        return "the database has no sagakit tables yet", f"run '{migrate}'"
    if status.current < status.head:
        return (
            f"the tables have schema version {status.current}, this code needs {status.head}",
            f"run '{migrate}'",
        )
    return (
        f"the tables have schema version {status.current}, this code knows {status.head}",
        "install a newer sagakit here",
    )
