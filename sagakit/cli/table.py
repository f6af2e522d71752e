"""Many sagas, one a line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from sagakit.cli.signs import SAGA_STYLES, Signs, signs
from sagakit.cli.wording import age, first_line, printable, short_names, span
from sagakit.cli.wording import tags as tag_words
from sagakit.clock import utcnow
from sagakit.history import SagaSummary


def table(
    summaries: Iterable[SagaSummary], *, now: datetime | None = None, whole: bool = False
) -> RenderableType:
    """Many sagas, one a line, in the order given.

    Args:
        summaries: the sagas, from ``kit.find()``.
        now: the time ages are counted to; by default this machine's.
        whole: cut nothing, however wide the lines become (for pipes).
    """
    return SagaTable(tuple(summaries), now or utcnow(), whole)


@dataclass(frozen=True, slots=True)
class SagaTable:
    """Many sagas, one a line."""

    summaries: tuple[SagaSummary, ...]
    now: datetime
    whole: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = signs(options)
        names = short_names(summary.name for summary in self.summaries)
        rows = [self._cells(summary, names, drawn) for summary in self.summaries]
        heads = tuple(
            Text(head, style="dim") for head in ("id", "saga", "state", "age", "took", "tags", "why")
        )
        widths = [max(row[index].cell_len for row in (heads, *rows)) for index in range(len(heads))]
        filled = [index for index in range(len(heads)) if any(row[index] for row in rows)]
        width = sum(widths) * 2 if self.whole else options.max_width
        kept = _fitting(filled, widths, width)
        for row in (heads, *rows):
            line = Text("  ").join([_padded(row[index], widths[index]) for index in kept])
            yield self._finished(line, width, options)
            if _WHY in filled and _WHY not in kept and row is not heads and row[_WHY]:
                yield self._finished(Text("  ") + row[_WHY], width, options)

    @staticmethod
    def _finished(line: Text, width: int, options: ConsoleOptions) -> Text:
        line.rstrip()
        line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
        line.no_wrap, line.overflow = True, "ignore"
        return line

    def _cells(self, summary: SagaSummary, names: Mapping[str, str], signs: Signs) -> tuple[Text, ...]:
        took = span(summary.finished_at - summary.created_at) if summary.finished_at else ""
        state = Text(f"{signs.saga[summary.state]} {summary.state.value}", style=SAGA_STYLES[summary.state])
        return (
            Text(printable(summary.id), style="bold"),
            Text(printable(names[summary.name])),
            state,
            Text(age(self.now - summary.created_at)),
            Text(took),
            Text(tag_words(summary.tags), style="dim"),
            Text(_why(summary)),
        )


def _why(summary: SagaSummary) -> str:
    trouble = summary.trouble or summary.error
    error = first_line(str(trouble)) if trouble else ""
    step = printable(summary.failed_step) if summary.failed_step else ""
    return ": ".join(part for part in (step, error) if part)


_TOOK, _TAGS, _WHY = 4, 5, 6
_WHY_LEAST = 24


def _fitting(filled: list[int], widths: list[int], width: int) -> list[int]:
    """Columns to show: tags and then the time taken make room for the reason, or it goes on a line of its own."""
    fixed = [index for index in filled if index != _WHY]
    reason = [_WHY] if _WHY in filled else []
    room = min(widths[_WHY], _WHY_LEAST) if reason else 0
    fits = [[index for index in fixed if index not in gone] for gone in ((), (_TAGS,), (_TAGS, _TOOK))]
    for kept in fits:
        if sum(widths[index] + 2 for index in kept) + room <= width:
            return kept + reason
    return next((kept for kept in fits if sum(widths[index] + 2 for index in kept) - 2 <= width), fits[-1])


def _padded(text: Text, width: int) -> Text:
    padded = text.copy()
    padded.pad_right(max(width - text.cell_len, 0))
    return padded
