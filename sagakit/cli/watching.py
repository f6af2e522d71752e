"""Following one saga until it ends: live on a terminal, a line for each change elsewhere."""

import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from sagakit.cli import draw
from sagakit.cli.failures import Failure
from sagakit.cli.invocation import Invocation
from sagakit.cli.signs import SAGA_STYLES, STEP_STYLES
from sagakit.cli.wording import clock, first_line, printable, span
from sagakit.clock import utcnow
from sagakit.history import SagaRecord, StepRecord
from sagakit.states import OPEN_SAGA_STATES, StepState

if TYPE_CHECKING:
    from sagakit.client.handle import SagaHandle

_SOONEST, _LATEST = 0.05, 0.5


def follow(
    invocation: Invocation, handle: "SagaHandle[Any]", *, timeout: float | None, as_json: bool
) -> SagaRecord:
    """Show a saga's progress until it ends, or needs somebody.

    Args:
        invocation: where to print.
        handle: the saga.
        timeout: seconds to watch at most.
        as_json: print changes as JSON lines.

    Returns:
        The saga as it was last seen.

    Raises:
        Failure: it had not ended in time.
    """
    states = _records(handle, timeout)
    if invocation.console.is_terminal and not as_json:
        return _live(invocation, states)
    seen = _Seen(as_json)
    for record in states:
        for line in seen.news(record):
            if as_json:
                invocation.say_json(line, indent=None)
            else:
                invocation.say(line, wide=True)
    return record


def _records(handle: "SagaHandle[Any]", timeout: float | None) -> Iterator[SagaRecord]:
    """The saga each time it has changed; the last one has ended, or waits for somebody."""
    idle = threading.Event()  # never set: a wait that Ctrl-C interrupts
    started, pause, revision = time.monotonic(), _SOONEST, None
    while True:
        record = handle.history()
        # Claims and attempts do not touch the saga's row, so its revision alone does not tell.
        current = (record.revision, record.state, tuple((step.state, step.attempt) for step in record.steps))
        if current != revision:
            revision, pause = current, _SOONEST
            yield record
        if record.state not in OPEN_SAGA_STATES:
            return
        if timeout is not None and time.monotonic() - started > timeout:
            raise Failure(f"{record.id} is still {record.state.value} after {timeout:g} s; it runs on")
        idle.wait(pause)
        pause = min(pause * 1.5, _LATEST)


def _live(invocation: Invocation, records: Iterator[SagaRecord]) -> SagaRecord:
    record = next(records)

    def picture() -> Group:
        return Group(draw.tree(record), Text(), draw.timeline(record, titled=False))

    # While it runs, a picture taller than the screen is cut; the last one is printed whole.
    with Live(console=invocation.console, get_renderable=picture, refresh_per_second=8, transient=True):
        for record in records:  # noqa: B007 - drawn by the thread that refreshes
            pass
    invocation.say(picture())
    return record


class _Seen:
    """What has been told already, so that each change is told once."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.saga: Any = None
        self.steps: dict[int, tuple[StepState, int]] = {}

    def news(self, record: SagaRecord) -> Iterator[Any]:
        # An end comes after what led to it, a beginning before what follows from it.
        ending = record.state not in OPEN_SAGA_STATES
        if not ending:
            yield from self._saga_news(record)
        changed = [
            step for step in record.steps if self.steps.get(step.position) != (step.state, step.attempt)
        ]
        for step in sorted(changed, key=_last_seen):
            self.steps[step.position] = (step.state, step.attempt)
            yield self._step_json(record, step) if self.as_json else self._step_line(record, step)
        if ending:
            yield from self._saga_news(record)

    def _saga_news(self, record: SagaRecord) -> Iterator[Any]:
        if self.saga is not record.state:
            self.saga = record.state
            yield self._saga_json(record) if self.as_json else self._saga_line(record)

    def _saga_json(self, record: SagaRecord) -> dict[str, Any]:
        return {
            "saga": record.id,
            "state": record.state.value,
            "failed_step": record.failed_step,
            "error": str(record.error) if record.error else None,
            "trouble": str(record.trouble) if record.trouble else None,
        }

    def _step_json(self, record: SagaRecord, step: StepRecord) -> dict[str, Any]:
        return {
            "saga": record.id,
            "position": step.position,
            "kind": step.kind.value,
            "step": step.name,
            "state": step.state.value,
            "attempt": step.attempt,
            "error": str(step.error) if step.error else None,
        }

    def _saga_line(self, record: SagaRecord) -> Text:
        line = Text(f"{clock(record.finished_at or utcnow())}  {printable(record.id)}  ")
        line.append(record.state.value, style=SAGA_STYLES[record.state])
        if record.finished_at is not None:
            line.append(f" after {span(record.duration)}")
        if record.error is not None:
            where = f" at {printable(record.failed_step)}" if record.failed_step else ""
            line.append(f"{where}: {first_line(str(record.error))}")
        if record.trouble is not None:
            line.append(f": {first_line(str(record.trouble))}")
        return line

    def _step_line(self, record: SagaRecord, step: StepRecord) -> Text:
        undo = "  undo " if step.compensates is not None else "  "
        line = Text(f"{clock(_last_seen(step))}  {printable(record.id)}{undo}{printable(step.name)} ")
        line.append(step.state.value, style=STEP_STYLES[step.state])
        if step.attempt > 1:
            line.append(f", attempt {step.attempt}")
        if step.state is StepState.SCHEDULED and step.attempt:
            line.append(", to be tried again")
        if step.error is not None:
            line.append(f": {first_line(str(step.error))}")
        return line


def _last_seen(step: StepRecord) -> datetime:
    return step.finished_at or step.started_at or step.scheduled_at
