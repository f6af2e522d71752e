"""The exact account of a saga: what was undone, what was not, and of what nobody knows whether it happened."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sagakit.codec import to_python
from sagakit.states import Kind, StepState


class LedgerRow(Protocol):
    """What the account needs to know of a row."""

    @property
    def position(self) -> int: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> StepState: ...
    @property
    def result(self) -> Any: ...
    @property
    def compensates(self) -> int | None: ...
    @property
    def resolved_seq(self) -> int | None: ...
    @property
    def compensatable(self) -> bool: ...
    @property
    def abandoned(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Names of steps: ``compensated`` in the order they were undone, the others in the order they were issued."""

    compensated: tuple[str, ...] = ()
    not_compensated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def happened(probe: LedgerRow) -> bool | None:
    """What a probe found: the step took effect, it did not, or (``None``) the probe could not tell."""
    if probe.state is not StepState.SUCCEEDED or probe.result is None:
        return None
    answer = to_python(probe.result) if isinstance(probe.result, str) else probe.result
    return bool(answer["happened"])


def draw_up(rows: Sequence[LedgerRow], *, failed: bool) -> Account:
    """Draw up the account.

    Args:
        rows: all rows of the saga.
        failed: the body failed, so that everything had to be undone; otherwise only what it abandoned.
    """
    undoing = {row.compensates: row for row in rows if row.kind is Kind.COMPENSATION}
    probes = {row.compensates: happened(row) for row in rows if row.kind is Kind.PROBE}
    compensated, not_compensated, unknown = [], [], []
    for step in rows:
        if step.kind is not Kind.STEP or step.state not in (StepState.SUCCEEDED, StepState.UNKNOWN):
            continue
        undo = undoing.get(step.position)
        if undo is not None and undo.state is StepState.SUCCEEDED:
            compensated.append((undo.resolved_seq or undo.position, step.name))
        elif step.state is StepState.UNKNOWN and not probes.get(step.position):
            if probes.get(step.position) is None:
                unknown.append(step.name)
        elif step.compensatable and (failed or step.abandoned):
            not_compensated.append(step.name)
    return Account(
        compensated=tuple(name for _, name in sorted(compensated)),
        not_compensated=tuple(not_compensated),
        unknown=tuple(unknown),
    )
