"""Durations as people write them, and UTC time."""

import re
from datetime import UTC, datetime, timedelta

_EXPLANATION = "a duration is a timedelta, a number of seconds, or text such as '48h', '90s' or '1h30m'"

Duration = timedelta | float | int | str
"""What every public option that takes a duration accepts."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.IGNORECASE)


def duration(value: Duration) -> timedelta:
    """Read a duration: a ``timedelta``, a number of seconds, or text such as ``"48h"``.

    Raises:
        ValueError: the value is none of these, or negative.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration: {_EXPLANATION}")
    if isinstance(value, timedelta):
        result = value
    elif isinstance(value, int | float | str):
        try:
            result = timedelta(seconds=_seconds(value) if isinstance(value, str) else value)
        except OverflowError:
            raise ValueError(f"{value!r} is longer than any calendar: {_EXPLANATION}") from None
        except ValueError:  # not a number, or text that is none
            raise ValueError(f"{value!r} is not a duration: {_EXPLANATION}") from None
    else:
        raise ValueError(f"{value!r} is not a duration: {_EXPLANATION}")
    if result < timedelta(0):
        raise ValueError(f"{value!r} is negative: {_EXPLANATION}")
    return result


def _seconds(text: str) -> float:
    """Raises a bare ``ValueError`` if the text is no duration."""
    if _NUMBER.fullmatch(text.strip()):  # an environment variable has no other way to say a number
        return float(text)
    total, position = 0.0, 0
    while match := _PART.match(text, position):
        total += float(match[1]) * _UNITS[match[2].lower()]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError
    return total


def utcnow() -> datetime:
    """The wall clock of this process, timezone-aware. Leases and deadlines use the database's instead."""
    return datetime.now(UTC)
