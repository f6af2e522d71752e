"""A saga over time: each ledger row a bar, in the order they ran, so that undoing reads as steps back down."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sagakit.cli.lanes import Lane, Run, lanes
from sagakit.cli.scale import Scale, scale
from sagakit.cli.signs import SAGA_STYLES, STEP_STYLES, UNICODE, Signs, signs
from sagakit.cli.wording import fit, printable, short_names, span
from sagakit.clock import utcnow
from sagakit.history import SagaRecord
from sagakit.states import Kind, StepState

_RIGHT = 13
_LABEL_MOST = 28
_BARS_LEAST = 20

_STYLES = {Kind.STEP: "cyan", Kind.COMPENSATION: "yellow", Kind.PROBE: "blue", Kind.TIMER: "dim"}


@dataclass(frozen=True, slots=True)
class Timeline:
    """A bar chart of one saga.

    Attributes:
        record: the saga.
        now: the time up to which unfinished bars reach; by default this machine's.
        titled: begin with a line that names the saga and its state.
    """

    record: SagaRecord
    now: datetime | None = None
    titled: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawing = _Drawing(self.record, self.now or utcnow(), options.max_width, signs(options))
        title = [headline(self.record, drawing.signs, drawing.now)] if self.titled else []
        for line in (*title, *drawing.lines()):
            line.no_wrap = True
            line.overflow = "crop"
            yield line


def timeline(record: SagaRecord, *, now: datetime | None = None, titled: bool = True) -> Timeline:
    """A horizontal bar chart of a saga: steps, compensations, retries and waits, over the saga's own time.

    Args:
        record: the saga, from ``handle.history()``.
        now: the time up to which unfinished bars reach; by default this machine's.
        titled: begin with a line that names the saga and its state.
    """
    return Timeline(record, now, titled)


class _Drawing:
    """One timeline at one width."""

    def __init__(self, record: SagaRecord, now: datetime, width: int, signs: Signs) -> None:
        self.record = record
        self.now = now
        self.width = width
        self.signs = signs
        self.lanes = lanes(record, now)
        names = short_names(lane.row.name for lane in self.lanes)
        self.names = {name: printable(short) for name, short in names.items()}
        longest = max((len(name) for name in self.names.values()), default=0)
        self.label = min(longest, _LABEL_MOST, max(width - _RIGHT - _BARS_LEAST - 3, 8))
        self.start = min([record.created_at, *(lane.begin for lane in self.lanes)])
        end = max([record.finished_at or self.start, *(lane.end for lane in self.lanes)])
        busy = [(self._second(run.start), self._second(run.end)) for lane in self.lanes for run in lane.runs]
        bars = max(width - self.label - _RIGHT - 3, 8)
        self.scale: Scale = scale(busy, self._second(end), bars)
        self.used: set[str] = set()

    def _second(self, time: datetime) -> float:
        return max((time - self.start).total_seconds(), 0.0)

    def lines(self) -> Iterator[Text]:
        if not self.lanes:
            yield Text("no step has been decided yet", style="dim")
            return
        yield from self._axis()
        # Drawn before the legend is known: it explains only what the bars use.
        yield from [self._row(lane) for lane in self.lanes]
        yield from self._legend()

    def _axis(self) -> Iterator[Text]:
        width = self.scale.width
        numbers, rule = [" "] * width, [self.signs.rule] * width
        for piece in self.scale.pieces:
            if piece.cut:
                rule[piece.left : piece.right] = self.signs.cut * (piece.right - piece.left)
        labels = self.scale.labels()
        for column, text in labels[:-1]:
            numbers[column : column + len(text)] = text
            rule[column] = self.signs.tick
        column, text = labels[-1]
        numbers[column : column + len(text)] = text
        rule[-1] = self.signs.tick
        margin = " " * (self.label + 3)
        yield Text(f"{margin}{''.join(numbers)}".rstrip(), style="dim")
        yield Text(f"{margin}{''.join(rule)}", style="dim")

    def _row(self, lane: Lane) -> Text:
        row = lane.row
        name = fit(self.names[row.name], self.label, self.signs.ellipsis)
        line = Text(f"{self.signs.kind[row.kind]} {name:<{self.label}} ", style="")
        for style, cells in groupby(self._bar(lane), key=lambda cell: cell[1]):
            line.append("".join(char for char, _ in cells), style=style)
        line.append(" ")
        line.append(self.signs.step[row.state], style=STEP_STYLES[row.state])
        line.append(f" {self._took(lane)}")
        line.rstrip()
        return line

    def _took(self, lane: Lane) -> str:
        if lane.row.kind is Kind.TIMER:
            return span(lane.end - lane.begin)
        if not lane.runs:
            return ""
        took = span(lane.runs[-1].end - lane.runs[-1].start)
        return f"{took} x{len(lane.runs)}" if len(lane.runs) > 1 else took

    def _bar(self, lane: Lane) -> list[tuple[str, str]]:
        cells = [(" ", "")] * self.scale.width
        style = _STYLES[lane.row.kind]
        if lane.row.kind is Kind.TIMER:
            self._fill(cells, lane.begin, lane.end, self.signs.timer, style)
            return cells
        self._fill(cells, lane.begin, lane.end, self.signs.waiting, "dim")
        for run in lane.runs:
            self._paint(cells, lane, run, style)
        if not lane.runs and lane.row.state is not StepState.SCHEDULED:
            column = self.scale.column(self._second(lane.end))
            cells[column] = (self.signs.step[lane.row.state], STEP_STYLES[lane.row.state])
        return cells

    def _paint(self, cells: list[tuple[str, str]], lane: Lane, run: Run, style: str) -> None:
        state = lane.row.state
        if run.spent:
            last = self._fill(cells, run.start, run.end, self.signs.spent, "red")
            cells[last] = (self.signs.retry, "bold red")
            self.used |= {self.signs.spent, self.signs.retry}
            return
        char = self.signs.undo if lane.row.kind is Kind.COMPENSATION else self.signs.work
        self.used.add(char)
        last = self._fill(cells, run.start, run.end, char, style)
        if state is not StepState.SUCCEEDED:
            cells[last] = (self.signs.step[state], STEP_STYLES[state])

    def _fill(
        self, cells: list[tuple[str, str]], start: datetime, end: datetime, char: str, style: str
    ) -> int:
        """Draw a bar of at least one cell; its last column."""
        left = self.scale.column(self._second(start))
        right = max(self.scale.column(self._second(end)), left)
        for column in range(left, right + 1):
            cells[column] = (char, style)
        self.used.add(char)
        return right

    def _legend(self) -> Iterator[Text]:
        states = {lane.row.state for lane in self.lanes}
        known = [
            (self.signs.work, "step", _STYLES[Kind.STEP]),
            (self.signs.undo, "compensation", _STYLES[Kind.COMPENSATION]),
            (self.signs.spent, "failed attempt", "red"),
            (self.signs.retry, "tried again", "bold red"),
            (self.signs.waiting, "waiting", "dim"),
            (self.signs.timer, "timer", "dim"),
        ]
        known = [entry for entry in known if entry[0] in self.used]
        # A tick and a cross need no words; their stand-ins in ASCII do.
        plain = {StepState.SUCCEEDED, StepState.FAILED} if self.signs is UNICODE else set()
        known += [
            (self.signs.step[state], state.value, STEP_STYLES[state])
            for state in StepState
            if state in states - plain
        ]
        line = Text()
        for sign, word, style in known:
            if line and line.cell_len + len(word) + 4 > self.width:
                yield line
                line = Text()
            line.append("  " if line else "")
            line.append(sign, style=style)
            line.append(f" {word}", style="dim")
        yield line


def headline(record: SagaRecord, signs: Signs, now: datetime) -> Text:
    """Id, name, version, state and duration, in one line."""
    (short,) = short_names([record.name]).values()
    line = Text(printable(record.id), style="bold")
    line.append(f"  {printable(short)} v{record.version}  ", style="")
    line.append(f"{signs.saga[record.state]} {record.state.value}", style=SAGA_STYLES[record.state])
    line.append(f"  {span((record.finished_at or now) - record.created_at)}", style="dim")
    return line
