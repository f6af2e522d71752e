"""Durations, names and foreign text; and the time axis."""

from datetime import timedelta
from itertools import pairwise

import pytest

from sagakit.cli.scale import nice_step, scale
from sagakit.cli.wording import age, count, fit, listing, printable, short_names, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"), (-5, "0ms"), (0.0351, "35ms"), (0.0996, "0.10s"), (4.516, "4.52s"), (9.996, "10.0s"),
        (59.94, "59.9s"), (59.96, "1m00s"), (185, "3m05s"), (3599.6, "1h00m"), (7500, "2h05m"),
        (86_399, "23h59m"), (86_400 * 9 + 4 * 3600, "9d04h"),
    ],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    """Two units at most, and never more than seven characters."""
    assert span(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (61, "1m"), (7199, "1h"), (200_000, "2d")]
)
def test_ages(seconds: float, text: str) -> None:
    """One unit."""
    assert age(timedelta(seconds=seconds)) == text


def test_short_names() -> None:
    """As short as they can be told apart; a name that is the tail of another stays whole."""
    assert short_names(["a.b.c", "a.x.c", "d.e", "e.f.<locals>.g"]) == {
        "a.b.c": "b.c",
        "a.x.c": "x.c",
        "d.e": "e",
        "e.f.<locals>.g": "g",
    }
    assert short_names(["c", "a.c"]) == {"c": "c", "a.c": "a.c"}
    assert short_names([]) == {}


def test_text_from_elsewhere() -> None:
    """What a terminal would obey is spelt out."""
    assert printable("a\x1b[31m\x00\u202e\ud800\x85é\t\n") == "a\\x1b[31m\\x00\\u202e\\ud800\\x85é\t\n"
    assert fit("abcdef", 4) == "abc…"
    assert fit("abcd", 4) == "abcd"
    assert listing(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert count(1, "saga") == "1 saga"
    assert count(1200, "entry", "entries") == "1,200 entries"


@pytest.mark.parametrize(
    ("least", "step"), [(0.0004, 0.001), (0.3, 0.5), (1.2, 2), (31, 60), (100, 120), (90_000, 100_000)]
)
def test_steps_of_the_axis(least: float, step: float) -> None:
    """1, 2 and 5 below half a minute, minutes and hours above."""
    assert nice_step(least) == pytest.approx(step)


@pytest.mark.parametrize("width", [8, 20, 47, 160])
@pytest.mark.parametrize(
    "busy",
    [
        [],
        [(0.0, 0.0)],
        [(0.0, 1.0), (1.0, 2.0)],
        [(0.0, 1.0), (1e5, 1e5 + 1)],
        [(0.0, 0.001), (1e4, 1e4 + 0.001), (5e4, 5e4 + 0.1), (9e4, 9e4 + 1), (2e5, 2e5 + 1)],
    ],
)
def test_the_scale_covers_its_width_in_order(busy: list[tuple[float, float]], width: int) -> None:
    """Pieces follow each other without gaps, later is never further left, and everything stays on the axis."""
    end = max((stop for _, stop in busy), default=0.0)
    axis = scale(busy, end, width)
    assert axis.pieces[0].left == 0
    assert axis.width == width
    for piece, following in pairwise(axis.pieces):
        assert piece.right == following.left
        assert piece.end == following.start
        assert piece.left < piece.right
    columns = [axis.column(second) for start, stop in busy for second in (start, (start + stop) / 2, stop)]
    assert columns == sorted(columns)
    assert all(0 <= column < width for column in [*columns, axis.column(-1), axis.column(end * 2)])
    labels = axis.labels()
    assert all(column >= 0 for column, _ in labels) or width < 10
    assert all(left[0] + len(left[1]) <= right[0] for left, right in pairwise(labels))
