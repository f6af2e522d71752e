"""What is undone next: planned from rows alone, so that a changed or missing body never stands in the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sagakit.account import happened
from sagakit.coordinator.ledger import NewRow, StepRow
from sagakit.errors import ErrorInfo
from sagakit.states import OPEN_STEP_STATES, Kind, StepState

Verdict = Literal["waiting", "undone", "not_undone"]

NOT_CALLED = "sagakit.NotCalled"
"""Error type of a compensation that was not called because nobody knows whether there is anything to undo."""


@dataclass(slots=True)
class UndoPlan:
    """The next move.

    Attributes:
        verdict: ``waiting`` while anything runs or is to run, else whether everything is undone.
        insert: rows to insert now.
        reopen: positions of compensations and probes to run once more, on an operator's word.
    """

    verdict: Verdict = "waiting"
    insert: list[NewRow] = field(default_factory=list)
    reopen: list[int] = field(default_factory=list)


def targets(rows: Sequence[StepRow], *, only_abandoned: bool) -> list[StepRow]:
    """The steps to be undone, in the order to undo them: the one that completed last comes first.

    Args:
        rows: all rows of the saga.
        only_abandoned: the body succeeded, so only what it stopped waiting for is undone.
    """
    chosen = [
        row
        for row in rows
        if row.kind is Kind.STEP
        and row.undo is not None
        and row.state in (StepState.SUCCEEDED, StepState.UNKNOWN)
        and (row.abandoned or not only_abandoned)
    ]
    return sorted(
        chosen, key=lambda row: (row.resolved_seq is None, row.resolved_seq, row.position), reverse=True
    )


def plan_undo(rows: Sequence[StepRow], *, only_abandoned: bool, next_position: int) -> UndoPlan:
    """Say what to run next, one compensation at a time, in reverse order of completion.

    A compensation that has failed does not stop the others. Nothing is planned while a step is in flight: whether it
    takes effect decides what is to be undone.
    """
    if any(row.kind in (Kind.STEP, Kind.PROBE) and row.state in OPEN_STEP_STATES for row in rows):
        return UndoPlan()
    undoing = {row.compensates: row for row in rows if row.kind is Kind.COMPENSATION}
    probes = {row.compensates: row for row in rows if row.kind is Kind.PROBE}
    plan = UndoPlan()
    failed = False
    for target in targets(rows, only_abandoned=only_abandoned):
        row, probe = undoing.get(target.position), probes.get(target.position)
        if row is not None and row.state in OPEN_STEP_STATES:
            return plan
        if row is not None and not row.replay:
            failed = failed or row.state is not StepState.SUCCEEDED
            continue
        if probe is not None and probe.replay and happened(probe) is None:
            plan.reopen.append(probe.position)
            return plan
        if probe is not None and happened(probe) is False:
            continue
        new = _next_row(target, probe, next_position + len(plan.insert))
        if row is not None and new.kind is Kind.COMPENSATION:
            if new.state is StepState.SCHEDULED:
                plan.reopen.append(row.position)
                return plan
            failed = True  # still nobody knows whether there is anything to undo
            continue
        plan.insert.append(new)
        if new.state is StepState.SCHEDULED:
            return plan
        failed = True  # reported, not called: go on with the next
    plan.verdict = "not_undone" if failed else "undone"
    return plan


def _next_row(target: StepRow, probe: StepRow | None, position: int) -> NewRow:
    undo = target.undo
    assert undo is not None
    if target.state is StepState.UNKNOWN and undo.probe is not None and probe is None:
        return NewRow(
            position=position,
            kind=Kind.PROBE,
            name=f"probe {target.name}",
            task=undo.probe,
            queue=undo.queue,
            priority=undo.priority,
            compensates=target.position,
        )
    known = target.state is StepState.SUCCEEDED or (probe is not None and happened(probe))
    callable_ = known or undo.accepts_none
    return NewRow(
        position=position,
        kind=Kind.COMPENSATION,
        name=undo.name,
        task=undo.compensation,
        queue=undo.queue,
        priority=undo.priority,
        compensates=target.position,
        state=StepState.SCHEDULED if callable_ else StepState.SKIPPED,
        error=None if callable_ else _not_called(target, undo.name),
    )


def _not_called(target: StepRow, name: str) -> ErrorInfo:
    return ErrorInfo(
        type=NOT_CALLED,
        message=(
            f"not called: nobody knows whether {target.name} took effect. Give {target.name} a probe, or let the first "
            f"parameter of {name} admit None, then replay it"
        ),
        step=target.name,
    )
