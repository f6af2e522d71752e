"""The measurements: in rounds, both contestants taking turns, so that a busy moment of the machine hits both."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.bench.contestants import Chains, Contestant, Sagas

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    backlog: int
    singles: int


QUICK = Size(rounds=3, backlog=100, singles=30)
FULL = Size(rounds=5, backlog=500, singles=100)


@dataclass(slots=True)
class Series:
    """One figure, measured once a round."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.values), max(self.values)


@dataclass(slots=True)
class Figures:
    """What was measured of one contestant: work items a second, and milliseconds."""

    drain: Series = field(default_factory=Series)
    start: Series = field(default_factory=Series)
    latency: Series = field(default_factory=Series)


def measure(
    sagas: Sagas, chains: Chains, size: Size, progress: Callable[[str], None]
) -> tuple[Figures, Figures]:
    """Measure both, after a round that does not count."""
    both: Sequence[tuple[Contestant, Figures]] = ((sagas, Figures()), (chains, Figures()))
    for contestant, _ in both:
        contestant.freeze()
        _drain(contestant, Figures(), max(10, size.backlog // 5))
    for number in range(1, size.rounds + 1):
        # Whoever goes first in one round goes second in the next.
        for contestant, figures in both if number % 2 else reversed(both):
            _drain(contestant, figures, size.backlog)
            _latency(contestant, figures, size.singles)
            progress(
                f"round {number}/{size.rounds}: {contestant.name:8} {figures.drain.values[-1]:6.0f}/s drained,"
                f" {figures.start.values[-1]:6.0f}/s started, {figures.latency.values[-1]:5.1f} ms each"
            )
    return both[0][1], both[1][1]


def _drain(contestant: Contestant, figures: Figures, count: int) -> None:
    """Fill the queue before a frozen worker, then let it go."""
    figures.start.values.append(count / contestant.fill(list(_take(count))))
    figures.drain.values.append(count / contestant.drain(count))
    contestant.freeze()


def _latency(contestant: Contestant, figures: Figures, count: int) -> None:
    """One at a time, each begun when the one before has come to its end."""
    contestant.node.resume()
    contestant.one(next(_numbers))
    times = []
    for number in _take(count):
        times.append(contestant.one(number))
        contestant.settle()
    figures.latency.values.append(statistics.median(times) * 1000)
    contestant.freeze()


def _take(count: int) -> Iterator[int]:
    return itertools.islice(_numbers, count)
