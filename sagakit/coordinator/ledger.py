"""The ledger as the coordinator sees it: rows read from a store, and decisions to be written to one.

Plain frozen values, so that the coordinator stays pure: it is given rows and returns a decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagakit.errors import ErrorInfo
from sagakit.states import Kind, SagaState, StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a saga may write: rows of its ledger, and bytes of JSON in one argument or result."""

    rows: int = 10_000
    payload: int = 2 * 1024 * 1024
    payload_warning: int = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """How a step is undone, kept on its row so that compensation never needs the body's code.

    Attributes:
        compensation: Celery task name of the compensation.
        name: the compensation's short name, shown in the ledger.
        accepts_none: the compensation's first parameter admits ``None``, so it may be called when nobody knows
            whether the step took effect.
        probe: Celery task name of the probe that can find out, if there is one.
        queue: where the compensation and the probe are sent; ``None`` leaves it to Celery's routing.
        priority: message priority of the compensation and the probe.
    """

    compensation: str
    name: str
    accepts_none: bool = False
    probe: str | None = None
    queue: str | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaRow:
    """One saga. Times are the database's; ``ledger_at`` is the saga's own monotonic time.

    Attributes:
        started_at: ledger time of the first advance, or ``None`` before it.
        ledger_at: ledger time of the last advance, or ``None`` before the first.
        last_seq: the last ``resolved_seq`` given out.
        python: minor version of Python the body was started under, e.g. ``"3.11"``.
        revision: changes with every write to the saga; writes are guarded by it.
        body_done: the body has ended (its result or error is on the row) and only undoing is left.
        trouble: why the saga is stuck.
        run: how often the saga was started again under this id after it had been undone.
    """

    id: str
    name: str
    version: int
    state: SagaState
    input: str | None
    created_at: datetime
    revision: int = 0
    result: str | None = None
    error: ErrorInfo | None = None
    failed_step: str | None = None
    trouble: ErrorInfo | None = None
    python: str | None = None
    definition_hash: str | None = None
    started_at: datetime | None = None
    ledger_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    last_seq: int = 0
    body_done: bool = False
    priority: int | None = None
    tags: Mapping[str, Any] | None = None
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One row of a saga's ledger.

    Attributes:
        position: storage order within the saga, from 0.
        path: who issued it: path of the asyncio task, and its number there, e.g. ``"1.2:3"``.
        task: Celery task name, ``None`` for a timer.
        attempt: how often it was claimed.
        result: the encoded result.
        resolved_seq: its place in the order in which outcomes are fed to the body; ``None`` until fed.
        resolved_at: ledger time of the advance that fed it.
        compensates: position of the step this row undoes or probes.
        abandoned: the body no longer waits for it (a timeout, a lost race); if it took effect, it is undone even
            when the body succeeds.
        replay: an operator asked for this compensation or probe to be run once more.
    """

    position: int
    kind: Kind
    name: str
    state: StepState
    path: str | None = None
    task: str | None = None
    attempt: int = 0
    result: str | None = None
    error: ErrorInfo | None = None
    due_at: datetime | None = None
    resolved_seq: int | None = None
    resolved_at: datetime | None = None
    compensates: int | None = None
    undo: Undo | None = None
    abandoned: bool = False
    replay: bool = False

    @property
    def compensatable(self) -> bool:
        """Whether there is a way to undo it."""
        return self.undo is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A row to be inserted. Rows that run as tasks are published right after the commit.

    Attributes:
        args: the encoded arguments; ``None`` for compensations and probes, which read those of the row they concern.
        expires_at: it must be claimed before this time, or it is cancelled.
        time_limit: seconds it may run once claimed, or ``None``.
    """

    position: int
    kind: Kind
    name: str
    state: StepState = StepState.SCHEDULED
    path: str | None = None
    task: str | None = None
    args: str | None = None
    queue: str | None = None
    priority: int | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    time_limit: float | None = None
    compensates: int | None = None
    undo: Undo | None = None
    error: ErrorInfo | None = None
    resolved_seq: int | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A row that was fed to the body (or settled without it) in this advance.

    Attributes:
        state: the state to give a row that the coordinator itself resolves (a timer), or ``None`` to keep it.
    """

    position: int
    seq: int
    state: StepState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Everything one advance writes, in one transaction.

    Attributes:
        state: the saga's state afterwards.
        ledger_at: ledger time of this advance.
        started_at: ledger time of the first advance.
        last_seq: the last sequence number given out.
        resolved: rows fed in this advance.
        inserted: new rows.
        abandoned: rows the body stopped waiting for in this advance.
        reopened: compensations and probes to run once more.
        result: the body's encoded result, once it returned.
        error: why the body failed, once it did.
        failed_step: name of the step whose error ended the body.
        body_done: the body has ended; from here on only rows decide.
        wake_at: when the saga must be looked at again even if no step ends: its next timer or deadline.
    """

    state: SagaState
    ledger_at: datetime
    started_at: datetime
    last_seq: int
    resolved: tuple[Resolution, ...] = ()
    inserted: tuple[NewRow, ...] = ()
    abandoned: tuple[int, ...] = ()
    reopened: tuple[int, ...] = ()
    result: str | None = None
    error: ErrorInfo | None = None
    failed_step: str | None = None
    body_done: bool = False
    wake_at: datetime | None = None
