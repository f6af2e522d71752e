"""Sagas made up by hand, as the ledger would tell of them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sagakit.errors import ErrorInfo
from sagakit.history import AttemptRecord, AuditRecord, SagaRecord, SagaSummary, StepRecord
from sagakit.states import Kind, SagaState, StepState

START = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
NAME = "shop.sagas.checkout"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


RESET = ErrorInfo(
    type="builtins.ConnectionError",
    message="reset by peer",
    traceback='Traceback (most recent call last):\n  File "psp.py", line 7, in charge\nConnectionError: reset\n',
)
NO_TRUCKS = ErrorInfo(type="shop.carrier.NoTrucks", message="depot='Oslo'", step="create_shipment")


def row(
    position: int,
    name: str,
    state: StepState = StepState.SUCCEEDED,
    *,
    times: tuple[float, float | None, float | None] = (0, None, None),
    **more: Any,
) -> StepRecord:
    """A ledger row: scheduled, started and finished so many seconds after the saga's start."""
    scheduled, started, finished = times
    attempt = more.pop("attempt", 0 if started is None else 1)
    return StepRecord(
        position=position,
        kind=more.pop("kind", Kind.STEP),
        name=name,
        state=state,
        scheduled_at=at(scheduled),
        started_at=None if started is None else at(started),
        finished_at=None if finished is None else at(finished),
        attempt=attempt,
        **more,
    )


def undo(
    position: int, name: str, compensates: int, state: StepState = StepState.SUCCEEDED, **more: Any
) -> StepRecord:
    return row(
        position, name, state, kind=Kind.COMPENSATION, compensates=compensates, resolved_seq=position, **more
    )


def attempt(
    position: int, number: int, started: float, finished: float, outcome: str = "retried"
) -> AttemptRecord:
    return AttemptRecord(
        position=position,
        attempt=number,
        outcome=outcome,
        started_at=at(started),
        finished_at=at(finished),
        error=RESET,
    )


def saga(state: SagaState, *steps: StepRecord, **more: Any) -> SagaRecord:
    return SagaRecord(
        id=more.pop("id", "order-42"),
        name=more.pop("name", NAME),
        version=more.pop("version", 1),
        state=state,
        created_at=START,
        started_at=START,
        steps=steps,
        **more,
    )


def failed_saga(**more: Any) -> SagaRecord:
    """Five rows of work, of which one could not be undone: retries, parallel steps, everything that is drawn."""
    steps = (
        row(0, "reserve_inventory", times=(0.05, 0.1, 0.5), compensatable=True, compensation="shop.release"),
        row(1, "charge_payment", times=(0.5, 2.2, 2.7), attempt=3, retries=2, compensatable=True),
        row(2, "create_shipment", StepState.FAILED, times=(2.7, 2.75, 3.4), error=NO_TRUCKS),
        row(
            3,
            "create_invoice",
            times=(2.7, 2.8, 3.1),
            compensatable=True,
            result={"number": 7},
            args={"order": 42},
        ),
        undo(4, "void_invoice", 3, times=(3.4, 3.45, 3.8)),
        undo(
            5, "refund_payment", 1, StepState.FAILED, times=(3.8, 4.2, 4.4), attempt=2, retries=1, error=RESET
        ),
        undo(6, "release_inventory", 0, times=(4.4, 4.45, 4.9)),
    )
    return saga(
        SagaState.COMPENSATION_FAILED,
        *steps,
        attempts=(attempt(1, 1, 0.55, 0.9), attempt(1, 2, 1.3, 1.5), attempt(5, 1, 3.85, 4.0)),
        failed_step="create_shipment",
        error=NO_TRUCKS,
        finished_at=at(4.95),
        priority=3,
        tags={"region": "eu", "customer": 7},
        input={"id": 42},
        **more,
    )


def operator(action: str, reason: str | None, seconds: float) -> AuditRecord:
    return AuditRecord(id=f"a{seconds}", action=action, actor="ann", at=at(seconds), detail={}, reason=reason)


def summary(number: int, state: SagaState, **more: Any) -> SagaSummary:
    return SagaSummary(
        id=more.pop("id", f"order-{number}"),
        name=more.pop("name", NAME),
        version=1,
        state=state,
        created_at=at(-60 * number),
        **more,
    )


@dataclass(frozen=True)
class Undoing:
    """A planned undo, as the kit gives it."""

    position: int
    step: str
    compensation: str | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """A replay's plan, as the kit gives it."""

    saga_id: str
    state: SagaState
    undo: tuple[Undoing, ...] = ()
    left: tuple[Undoing, ...] = ()
