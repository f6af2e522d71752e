"""The states of sagas and steps, and the one table of transitions between them.

Every guarded ``UPDATE`` in the store takes the states it may start from out of this module, so
that what the code allows and what the database accepts cannot drift apart.
"""

from collections.abc import Mapping
from enum import StrEnum


class SagaState(StrEnum):
    """Where a saga is in its life."""

    PENDING = "pending"
    """Written by ``start``; the body has not run yet."""
    RUNNING = "running"
    """The body has issued at least one decision and has not ended."""
    COMPENSATING = "compensating"
    """The body failed, or the saga was cancelled; what took effect is being undone."""
    COMPLETED = "completed"
    """Everything done. Terminal."""
    COMPENSATED = "compensated"
    """Everything that took effect was undone. Terminal."""
    COMPENSATION_FAILED = "compensation_failed"
    """Something could not be undone and waits for an operator. Terminal."""
    STUCK = "stuck"
    """The code no longer fits the ledger; nothing is lost and ``resume`` goes on after a fix."""
    PAUSED = "paused"
    """Held by an operator."""


class StepState(StrEnum):
    """Where a ledger row (a step, a compensation, a probe or a timer) is in its life."""

    SCHEDULED = "scheduled"
    """Decided and durable; a message is on its way, or a due time is awaited."""
    RUNNING = "running"
    """Claimed by a worker that holds a lease."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It may or may not have taken effect: its worker was lost, or it timed out."""
    CANCELLED = "cancelled"
    """Withdrawn before any worker claimed it."""
    SKIPPED = "skipped"
    """Deliberately not run; the row says why."""


class Kind(StrEnum):
    """What a ledger row stands for."""

    STEP = "step"
    COMPENSATION = "compensation"
    PROBE = "probe"
    TIMER = "timer"


TASK_KINDS = frozenset({Kind.STEP, Kind.COMPENSATION, Kind.PROBE})
"""Kinds that run as Celery tasks; the others are resolved by the coordinator."""

OPEN_SAGA_STATES = frozenset({SagaState.PENDING, SagaState.RUNNING, SagaState.COMPENSATING})
"""States in which the coordinator still has work to do."""

TERMINAL_SAGA_STATES = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED, SagaState.COMPENSATION_FAILED})
"""States that only an audited operator action leaves."""

OPEN_STEP_STATES = frozenset({StepState.SCHEDULED, StepState.RUNNING})
RESOLVED_STEP_STATES = frozenset(StepState) - OPEN_STEP_STATES

SAGA_TRANSITIONS: Mapping[SagaState, frozenset[SagaState]] = {
    SagaState.PENDING: frozenset(
        {
            SagaState.RUNNING,
            SagaState.COMPENSATING,
            SagaState.COMPLETED,
            SagaState.COMPENSATED,
            SagaState.STUCK,
            SagaState.PAUSED,
        }
    ),
    SagaState.RUNNING: frozenset(
        {
            SagaState.COMPENSATING,
            SagaState.COMPLETED,
            SagaState.COMPENSATED,
            SagaState.COMPENSATION_FAILED,
            SagaState.STUCK,
            SagaState.PAUSED,
        }
    ),
    SagaState.COMPENSATING: frozenset(
        {
            SagaState.COMPLETED,
            SagaState.COMPENSATED,
            SagaState.COMPENSATION_FAILED,
            SagaState.STUCK,
            SagaState.PAUSED,
        }
    ),
    # The rest are operator actions, each audited: replay or extend a compensation, resume.
    SagaState.COMPLETED: frozenset({SagaState.COMPENSATING}),
    SagaState.COMPENSATED: frozenset(),
    SagaState.COMPENSATION_FAILED: frozenset({SagaState.COMPENSATING}),
    SagaState.STUCK: frozenset({SagaState.RUNNING, SagaState.COMPENSATING, SagaState.PENDING}),
    SagaState.PAUSED: frozenset({SagaState.RUNNING, SagaState.COMPENSATING, SagaState.PENDING}),
}

STEP_TRANSITIONS: Mapping[StepState, frozenset[StepState]] = {
    StepState.SCHEDULED: frozenset(
        {
            StepState.RUNNING,
            StepState.SUCCEEDED,  # a timer that is due
            StepState.FAILED,  # never started before it expired
            StepState.UNKNOWN,  # withdrawn while an earlier attempt is unaccounted for
            StepState.CANCELLED,
            StepState.SKIPPED,  # a compensation or probe that was revoked
        }
    ),
    StepState.RUNNING: frozenset(
        {
            StepState.SCHEDULED,  # a retry, or a lost worker
            StepState.SUCCEEDED,
            StepState.FAILED,
            StepState.UNKNOWN,
        }
    ),
    StepState.SUCCEEDED: frozenset(),
    # An operator replays a compensation that failed or was not called.
    StepState.FAILED: frozenset({StepState.SCHEDULED}),
    StepState.UNKNOWN: frozenset({StepState.SCHEDULED}),
    StepState.SKIPPED: frozenset({StepState.SCHEDULED}),
    StepState.CANCELLED: frozenset(),
}


def can_become(source: SagaState, target: SagaState) -> bool:
    """Say whether a saga may go from ``source`` to ``target``."""
    return target in SAGA_TRANSITIONS[source]
