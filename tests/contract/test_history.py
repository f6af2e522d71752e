"""The read models: the account of a saga, and its JSON."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sagakit.errors import ErrorInfo
from sagakit.history import AttemptRecord, AuditRecord, SagaRecord, SagaSummary, StepRecord
from sagakit.states import Kind, SagaState, StepState

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ERROR = ErrorInfo(type="shop.Declined", message="no")


def step(position: int, name: str, state: StepState, *, compensatable: bool = True) -> StepRecord:
    """A step's row."""
    return StepRecord(
        position=position,
        kind=Kind.STEP,
        name=name,
        state=state,
        scheduled_at=AT,
        compensatable=compensatable,
    )


def undo(position: int, of: int, state: StepState, seq: int | None = None) -> StepRecord:
    """A compensation's row."""
    return StepRecord(
        position=position,
        kind=Kind.COMPENSATION,
        name="undo",
        state=state,
        scheduled_at=AT,
        compensates=of,
        resolved_seq=seq,
    )


def probe(position: int, of: int, happened: bool) -> StepRecord:
    """An answered probe's row."""
    return StepRecord(
        position=position,
        kind=Kind.PROBE,
        name="probe",
        state=StepState.SUCCEEDED,
        scheduled_at=AT,
        compensates=of,
        result={"happened": happened},
    )


def record(state: SagaState, steps: Sequence[StepRecord] = (), error: ErrorInfo | None = ERROR) -> SagaRecord:
    """A saga's record."""
    return SagaRecord(
        id="s", name="shop.checkout", version=1, state=state, created_at=AT, error=error, steps=tuple(steps)
    )


def test_compensated_in_the_order_of_undoing() -> None:
    """Names are those of the steps, in the order in which the compensations were done."""
    saga = record(
        SagaState.COMPENSATED,
        [
            step(0, "reserve", StepState.SUCCEEDED),
            step(1, "charge", StepState.SUCCEEDED),
            undo(2, 1, StepState.SUCCEEDED, seq=5),
            undo(3, 0, StepState.SUCCEEDED, seq=6),
        ],
    )
    assert (saga.compensated, saga.not_compensated, saga.unknown) == (("charge", "reserve"), (), ())


@pytest.mark.parametrize("state", [StepState.FAILED, StepState.UNKNOWN, StepState.CANCELLED])
def test_not_compensated(state: StepState) -> None:
    """A step that took effect and whose compensation did not succeed, or is missing, is told."""
    saga = record(
        SagaState.COMPENSATION_FAILED,
        [
            step(0, "reserve", StepState.SUCCEEDED),
            step(1, "charge", StepState.SUCCEEDED),
            step(2, "mail", StepState.SUCCEEDED, compensatable=False),
            step(3, "ship", StepState.FAILED),
            undo(4, 1, state),
        ],
    )
    assert (saga.compensated, saga.not_compensated, saga.unknown) == ((), ("reserve", "charge"), ())


@pytest.mark.parametrize("state", [SagaState.RUNNING, SagaState.COMPENSATING, SagaState.STUCK])
def test_nothing_is_not_compensated_before_the_end(state: SagaState) -> None:
    """What may yet be undone is not called otherwise."""
    assert record(state, [step(0, "charge", StepState.SUCCEEDED)]).not_compensated == ()


def test_nothing_is_not_compensated_in_a_completed_saga() -> None:
    """A saga that did everything has nothing to undo."""
    assert record(SagaState.COMPLETED, [step(0, "charge", StepState.SUCCEEDED)], None).not_compensated == ()


def test_unknown() -> None:
    """A step nobody knows about is told unless it was undone, or a probe has settled the question."""
    saga = record(
        SagaState.COMPENSATION_FAILED,
        [
            step(0, "open", StepState.UNKNOWN),
            step(1, "plain", StepState.UNKNOWN, compensatable=False),
            step(2, "undone", StepState.UNKNOWN),
            undo(3, 2, StepState.SUCCEEDED, seq=1),
            step(4, "did not", StepState.UNKNOWN),
            probe(5, 4, happened=False),
            step(6, "did", StepState.UNKNOWN),
            probe(7, 6, happened=True),
            undo(8, 6, StepState.FAILED),
        ],
    )
    assert saga.unknown == ("open", "plain")
    assert saga.compensated == ("undone",)
    assert saga.not_compensated == ("did",)


def test_duration() -> None:
    """It is the time from the start to the end, or until now."""
    saga = record(SagaState.RUNNING)
    assert saga.duration > timedelta(0)
    ended = SagaRecord(
        id="s",
        name="n",
        version=1,
        state=SagaState.COMPLETED,
        created_at=AT,
        finished_at=AT + timedelta(seconds=3),
    )
    assert ended.duration == timedelta(seconds=3)


def test_json() -> None:
    """Records and summaries are JSON, times in ISO form, the account included."""
    saga = SagaRecord(
        id="s",
        name="n",
        version=1,
        state=SagaState.COMPENSATED,
        created_at=AT,
        finished_at=AT + timedelta(seconds=3),
        error=ERROR,
        tags={"k": [1]},
        steps=(step(0, "charge", StepState.SUCCEEDED), undo(1, 0, StepState.SUCCEEDED, seq=1)),
        attempts=(AttemptRecord(position=0, attempt=1, outcome="lost", finished_at=AT),),
        audit=(AuditRecord(id="a", action="x", actor="ann", at=AT, detail={"n": 1}),),
    )
    data = json.loads(json.dumps(saga.to_json()))
    assert (data["state"], data["created_at"], data["duration"]) == (
        "compensated",
        "2026-11-20T12:00:00+00:00",
        3.0,
    )
    assert (data["compensated"], data["not_compensated"], data["unknown"]) == (["charge"], [], [])
    assert data["steps"][0]["kind"] == "step"
    assert type(saga.to_json()["state"]) is str
    assert data["error"]["message"] == "no"
    assert (data["attempts"][0]["outcome"], data["audit"][0]["detail"]) == ("lost", {"n": 1})
    summary = SagaSummary(id="s", name="n", version=1, state=SagaState.STUCK, created_at=AT, error=ERROR)
    assert json.loads(json.dumps(summary.to_json()))["state"] == "stuck"
