"""The time axis of a timeline: seconds to columns, with long idle times cut out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from sagakit.cli.wording import span

CUT_WIDTH = 7
CUT_LEAST = 10.0
"""Seconds of idle time that are always shown: waiting for a worker or a short retry is part of the picture."""
_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of the axis: seconds ``[start, end]`` on columns ``[left, right)``."""

    start: float
    end: float
    left: int
    right: int
    cut: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Where on the axis a second falls."""

    pieces: tuple[Piece, ...]

    @property
    def width(self) -> int:
        """Columns in all."""
        return self.pieces[-1].right

    def column(self, second: float) -> int:
        """The column of a second since the start; what lies outside is moved to the nearest end."""
        for piece in self.pieces:
            if second < piece.end or piece is self.pieces[-1]:
                return self._within(piece, second)
        raise AssertionError("a scale has at least one piece")

    @staticmethod
    def _within(piece: Piece, second: float) -> int:
        length = piece.end - piece.start
        share = (second - piece.start) / length if length > 0 else 0.0
        columns = piece.right - piece.left
        return piece.left + min(max(int(share * columns), 0), columns - 1)

    def labels(self) -> list[tuple[int, str]]:
        """The ticks: column and text, none overlapping the one before, and the end always among them."""
        last = self.pieces[-1]
        end_text = span(timedelta(seconds=last.end))
        end = (last.right - len(end_text), end_text)
        placed: list[tuple[int, str]] = []
        free = 0
        for column, second in self._ticks():
            text = _tick(second)
            repeated = text == end_text or (placed and placed[-1][1] == text)
            if not repeated and column >= free and column + len(text) + 2 <= end[0]:
                placed.append((column, text))
                free = column + len(text) + 2
        return [*placed, end]

    def _ticks(self) -> Iterator[tuple[int, float]]:
        for piece in self.pieces:
            if piece.cut:
                continue
            yield piece.left, piece.start
            step = nice_step((piece.end - piece.start) / max((piece.right - piece.left) / 8, 1))
            number = int(piece.start / step) + 1
            while step > 0 and number * step < piece.end:
                yield self._within(piece, number * step), number * step
                number += 1


def _tick(second: float) -> str:
    """A tick's text, round where the second is: ``3s``, ``0.5s``, ``2m``."""
    if second and second < 60:
        return (
            span(timedelta(seconds=second)) if second < 0.1 else f"{second:.2f}".rstrip("0").rstrip(".") + "s"
        )
    return span(timedelta(seconds=second)).removesuffix("00s").removesuffix("00m") if second else "0s"


def nice_step(least: float) -> float:
    """The smallest step of a time axis that people count in and that is not under ``least`` seconds."""
    for step in (60.0, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400) if least > 30 else ():
        if step >= least:
            return step
    power = 1e-3
    while True:
        for factor in _STEPS:
            if factor * power >= least:
                return factor * power
        power *= 10


def scale(busy: Sequence[tuple[float, float]], end: float, width: int) -> Scale:
    """Lay the seconds ``[0, end]`` on ``width`` columns.

    Args:
        busy: when something ran, in seconds. An idle time between that would leave hardly any column for what
            ran is cut to a few columns: an operator's replay hours later must not flatten the saga to one dot.
        end: the last second shown.
        width: columns there are.
    """
    end = max(end, 1e-3)
    # Each cut must leave more columns than it takes.
    cuts = _cuts(_merged(busy), end, most=min(3, width // (3 * CUT_WIDTH)))
    bounds = [0.0, *(edge for cut in cuts for edge in cut), end]
    stretches = list(zip(bounds[::2], bounds[1::2], strict=True))
    shown = sum(stop - start for start, stop in stretches) or 1e-3
    free = width - CUT_WIDTH * len(cuts)
    pieces: list[Piece] = []
    left, before = 0, 0.0
    for index, (start, stop) in enumerate(stretches):
        before += stop - start
        rest = len(stretches) - 1 - index
        # Every stretch keeps a column of its own, the last one ends exactly at the edge.
        right = max(
            left + 1, min(round(before / shown * free) + CUT_WIDTH * index, width - rest * (CUT_WIDTH + 1))
        )
        pieces.append(Piece(start=start, end=stop, left=left, right=right if rest else width, cut=False))
        if rest:
            left = right + CUT_WIDTH
            pieces.append(Piece(start=stop, end=cuts[index][1], left=right, right=left, cut=True))
    return Scale(tuple(pieces))


def _merged(busy: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(busy):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _cuts(busy: list[tuple[float, float]], end: float, *, most: int) -> list[tuple[float, float]]:
    """The idle times to leave out: the longest first, until what ran fills a fair part of the rest."""
    ran = sum(stop - start for start, stop in busy)
    edges = [(0.0, 0.0), *busy, (end, end)]
    gaps = sorted(
        ((left[1], right[0]) for left, right in pairwise(edges)),
        key=lambda gap: gap[0] - gap[1],
    )
    chosen: list[tuple[float, float]] = []
    shown = end
    for start, stop in gaps[:most]:
        length = stop - start
        if ran <= 0 or ran / shown > 0.15 or length < max(3 * ran, CUT_LEAST):
            break
        # A little of the idle time stays on either side, so that the bars beside it do not touch the cut.
        margin = min(ran * 0.1, length * 0.1)
        chosen.append((start + margin if start > 0 else start, stop - margin if stop < end else stop))
        shown -= length
    return sorted(chosen)
