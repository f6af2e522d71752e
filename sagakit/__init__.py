"""Durable sagas on Celery: ordinary async Python whose steps and compensations are Celery tasks."""

from sagakit.app import SagaKit
from sagakit.client.handle import SagaHandle
from sagakit.client.operating import PlannedUndo, ReplayPlan
from sagakit.client.startable import StartableSaga
from sagakit.coordinator.context import Saga
from sagakit.coordinator.futures import StepFuture
from sagakit.decorators import shared_saga, shared_step
from sagakit.definition.step import Happened, NotHappened, Step
from sagakit.errors import ErrorInfo, SagakitError, StepCancelled, StepError, StepFailed, StepUnknown
from sagakit.outcomes import Compensated, CompensationFailed, Completed, Outcome, SagaFailed, Stuck
from sagakit.states import SagaState, StepState
from sagakit.store.schema import include_object, include_object_for
from sagakit.worker.context import StepContext, current_step

__all__ = [
    "Compensated",
    "CompensationFailed",
    "Completed",
    "ErrorInfo",
    "Happened",
    "NotHappened",
    "Outcome",
    "PlannedUndo",
    "ReplayPlan",
    "Saga",
    "SagaFailed",
    "SagaHandle",
    "SagaKit",
    "SagaState",
    "SagakitError",
    "StartableSaga",
    "Step",
    "StepCancelled",
    "StepContext",
    "StepError",
    "StepFailed",
    "StepFuture",
    "StepState",
    "StepUnknown",
    "Stuck",
    "current_step",
    "include_object",
    "include_object_for",
    "shared_saga",
    "shared_step",
]
