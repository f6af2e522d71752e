"""Live progress: a bar with counts by state on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_LINES = 5
"""How many lines a run leaves in a log, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is.

    Attributes:
        ended: orders that will not change any more.
        counts: orders by state.
        effects: effects in the shop; they grow long before the first of many orders ends.
    """

    ended: int
    counts: Mapping[str, int]
    effects: int = 0

    def __str__(self) -> str:
        return "  ".join(f"{count} {state}" for state, count in self.counts.items() if count)


class Progress:
    """Shows how a run of ``total`` orders goes, for the length of a ``with`` block."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._next_line = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[counts]}", style="dim"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, counts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Show how far the run is by now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=standing.ended, counts=str(standing))
        elif standing.ended >= self._next_line:
            self._line(f"{standing.ended}/{self._total}  {standing}")
            step = max(1, self._total // _LINES)
            self._next_line = min(self._total, standing.ended - standing.ended % step + step)
            if standing.ended >= self._total:
                self._next_line = self._total + 1

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"[bold]{text}[/]" if self._bar is not None else f"{self._title}: {text}")

    def _line(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}", highlight=False, soft_wrap=True)


def follow(
    progress: Progress,
    look: Callable[[], Standing],
    until: Callable[[Standing], bool],
    *,
    patience: float,
    interval: float,
) -> bool:
    """Show progress until a condition holds.

    Args:
        progress: where to show it.
        look: how far the run is; it raises if the run cannot go on.
        until: whether this is far enough.
        patience: seconds to go on for while nothing changes.
        interval: seconds between two looks.

    Returns:
        Whether the condition came to hold; if not, nothing has changed for that long.
    """
    last, changed_at = None, time.monotonic()
    while True:
        standing = look()
        progress.show(standing)
        if until(standing):
            return True
        if standing != last:
            last, changed_at = standing, time.monotonic()
        elif time.monotonic() - changed_at >= patience:
            return False
        time.sleep(interval)
