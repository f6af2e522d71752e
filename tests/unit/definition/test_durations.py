"""Durations as people write them."""

from datetime import timedelta
from typing import Any

import pytest

from sagakit.clock import duration


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (timedelta(minutes=2), 120),
        (90, 90),
        (0.25, 0.25),
        (0, 0),
        ("48h", 172_800),
        ("90s", 90),
        ("90", 90),
        (" 0.5 ", 0.5),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 1.5 H ", 5400),
        ("250ms", 0.25),
        ("2d", 172_800),
        ("1w", 604_800),
    ],
)
def test_durations(given: Any, seconds: float) -> None:
    """A ``timedelta``, seconds, or text."""
    assert duration(given) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "given", ["", "h", "-90", "1x", "1h!", "h1", "-1h", "1h-", "soon", None, True, b"1h", [1]]
)
def test_what_is_no_duration(given: Any) -> None:
    """The error says what would be one."""
    with pytest.raises(ValueError, match="is not a duration") as caught:
        duration(given)
    assert str(caught.value) == (
        f"{given!r} is not a duration: a duration is a timedelta, a number of seconds, or text such as '48h', '90s' "
        "or '1h30m'"
    )


@pytest.mark.parametrize("given", [-1, -0.5, timedelta(seconds=-1)])
def test_negative_durations(given: Any) -> None:
    """Time does not run backwards."""
    with pytest.raises(ValueError, match="is negative: a duration is"):
        duration(given)


@pytest.mark.parametrize("given", [float("inf"), 1e300, "99999999999w"])
def test_durations_beyond_any_calendar(given: Any) -> None:
    """What Python's own ``timedelta`` cannot hold is refused like any other, not with an ``OverflowError``."""
    with pytest.raises(ValueError, match="is longer than any calendar: a duration is"):
        duration(given)


def test_not_a_number() -> None:
    """Nor is NaN a duration."""
    with pytest.raises(ValueError, match="nan is not a duration"):
        duration(float("nan"))
