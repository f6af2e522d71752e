"""What a timeline shows, before it is drawn: one lane a ledger row, and the runs within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sagakit.history import AttemptRecord, SagaRecord, StepRecord
from sagakit.states import Kind, StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One attempt: from its claim to its end, or to now.

    Attributes:
        spent: it failed and another attempt followed or is due.
    """

    start: datetime
    end: datetime
    spent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One ledger row over time.

    Attributes:
        begin: when the row was decided, or first known of.
        end: when it was over, or now.
        runs: its attempts, oldest first; empty if no worker ever claimed it.
    """

    row: StepRecord
    begin: datetime
    end: datetime
    runs: tuple[Run, ...]


def earlier_attempts(record: SagaRecord, row: StepRecord) -> tuple[AttemptRecord, ...]:
    """The row's attempts before the one its own columns tell of, oldest first."""
    mine = [attempt for attempt in record.attempts if attempt.position == row.position]
    if row.state is not StepState.SCHEDULED:
        mine = [attempt for attempt in mine if not _is_current(attempt, row)]
    return tuple(sorted(mine, key=lambda attempt: (attempt.finished_at, attempt.attempt)))


def _is_current(attempt: AttemptRecord, row: StepRecord) -> bool:
    # Numbers start again when an operator replays a compensation, so the time of the claim decides where it is known.
    if attempt.started_at is not None and row.started_at is not None:
        return attempt.started_at >= row.started_at
    return attempt.attempt >= row.attempt


def lanes(record: SagaRecord, now: datetime) -> Sequence[Lane]:
    """One lane a row, in the order in which the rows became active."""
    found = [_lane(record, row, now) for row in record.steps]
    return sorted(
        found, key=lambda lane: (lane.runs[0].start if lane.runs else lane.begin, lane.row.position)
    )


def _lane(record: SagaRecord, row: StepRecord, now: datetime) -> Lane:
    runs = [
        Run(start=attempt.started_at, end=attempt.finished_at, spent=True)
        for attempt in earlier_attempts(record, row)
        if attempt.started_at is not None
    ]
    if row.started_at is not None and row.state is not StepState.SCHEDULED:
        runs.append(Run(start=row.started_at, end=row.finished_at or now, spent=False))
    begin = row.scheduled_at
    if runs:
        begin = min(begin, runs[0].start)
    end = row.finished_at or now
    if row.kind is Kind.TIMER and row.finished_at is None and row.due_at is not None:
        end = row.due_at
    return Lane(row=row, begin=begin, end=max(end, begin), runs=tuple(runs))
