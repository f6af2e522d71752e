"""Read models: a saga with everything that happened to it, as frozen values for people and programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sagakit.account import Account, draw_up
from sagakit.clock import utcnow
from sagakit.errors import ErrorInfo
from sagakit.states import TERMINAL_SAGA_STATES, Kind, SagaState, StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One row of a saga's ledger.

    Attributes:
        args: the arguments as JSON data.
        result: the result as JSON data.
        resolved_seq: its place in the order in which outcomes were fed to the body.
        compensates: position of the step this row undoes or probes.
        compensatable: the step declares how it is undone.
        compensation: Celery task name of that.
        retries: failed attempts that were retried.
        lost: attempts whose worker was lost.
        abandoned: the body stopped waiting for it.
        progress: what it last said of how far it is.
    """

    position: int
    kind: Kind
    name: str
    state: StepState
    scheduled_at: datetime
    task: str | None = None
    attempt: int = 0
    path: str | None = None
    args: Any = None
    result: Any = None
    error: ErrorInfo | None = None
    queue: str | None = None
    owner: str | None = None
    compensates: int | None = None
    compensatable: bool = False
    compensation: str | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    resolved_seq: int | None = None
    retries: int = 0
    lost: int = 0
    abandoned: bool = False
    progress: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """An attempt that did not succeed; ``outcome`` is ``failed``, ``retried``, ``lost`` or ``unknown``."""

    position: int
    attempt: int
    outcome: str
    finished_at: datetime
    started_at: datetime | None = None
    error: ErrorInfo | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What an operator did, and why."""

    id: str
    action: str
    actor: str
    at: datetime
    detail: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaSummary:
    """A saga in a list."""

    id: str
    name: str
    version: int
    state: SagaState
    created_at: datetime
    finished_at: datetime | None = None
    failed_step: str | None = None
    error: ErrorInfo | None = None
    tags: Mapping[str, Any] | None = None
    trouble: ErrorInfo | None = None

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON data."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaRecord:
    """A saga, its ledger, its failed attempts and what operators did.

    Attributes:
        input: the input as JSON data.
        result: the result as JSON data.
        trouble: why it is stuck.
        steps: the ledger's rows by position: steps, compensations, probes and timers.
    """

    id: str
    name: str
    version: int
    state: SagaState
    created_at: datetime
    input: Any = None
    result: Any = None
    error: ErrorInfo | None = None
    failed_step: str | None = None
    trouble: ErrorInfo | None = None
    priority: int | None = None
    tags: Mapping[str, Any] | None = None
    revision: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    body_done: bool = False
    steps: tuple[StepRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()
    audit: tuple[AuditRecord, ...] = ()

    @property
    def compensated(self) -> tuple[str, ...]:
        """Names of the steps that were undone, in the order they were undone."""
        return self._account.compensated

    @property
    def not_compensated(self) -> tuple[str, ...]:
        """Names of the steps that took effect and were not undone, once the saga has ended; before, it may yet."""
        return self._account.not_compensated if self.state in TERMINAL_SAGA_STATES else ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the steps of which nobody can say whether they took effect, and that were not undone."""
        return self._account.unknown

    @property
    def duration(self) -> timedelta:
        """From the start to the end, or until now."""
        return (self.finished_at or utcnow()) - self.created_at

    def to_json(self) -> dict[str, Any]:
        """The record and its account as JSON data."""
        data: dict[str, Any] = _plain(asdict(self))
        return data | {
            "compensated": list(self.compensated),
            "not_compensated": list(self.not_compensated),
            "unknown": list(self.unknown),
            "duration": self.duration.total_seconds(),
        }

    @property
    def _account(self) -> Account:
        return draw_up(self.steps, failed=self.error is not None)


def _plain(value: Any) -> Any:
    """JSON data out of what ``asdict`` leaves: times as ISO text, tuples as lists, enums as their text."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value
