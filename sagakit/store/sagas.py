"""The ``saga`` rows: written by a start, locked and advanced by the coordinator, moved by operators."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from sagakit.coordinator.ledger import Decision, SagaRow
from sagakit.errors import ErrorInfo
from sagakit.states import TERMINAL_SAGA_STATES, SagaState, can_become
from sagakit.store.rows import SAGA_STATES, dump_error, dump_json, saga_row
from sagakit.store.saga_statements import SagaStatements, sources_of
from sagakit.store.statements import Aggregate

_RANDOM_REVISIONS = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSaga:
    """A saga to be inserted.

    Attributes:
        input: the encoded input.
        run: how often a saga of this id was started before, and undone.
        wake_at_delay: after this time the sweep may doubt the message that the caller sends.
    """

    id: str
    name: str
    version: int
    definition_hash: str | None
    input: str | None
    deadline_at: datetime | None = None
    priority: int | None = None
    tags: Mapping[str, Any] | None = None
    wake_at_delay: timedelta = timedelta(0)
    parent_id: str | None = None
    root_id: str | None = None
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A saga that this transaction holds until it ends, and the database's time since it does."""

    row: SagaRow
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSaga:
    """A saga whose ``advance`` message is to be sent (again); ``publishes`` counts this sending."""

    id: str
    name: str
    version: int
    state: SagaState
    priority: int | None
    publishes: int


class Sagas(Aggregate):
    """The sagas of a ledger, within one transaction."""

    __slots__ = ("_sql",)

    def __init__(self, connection: sa.Connection, statements: SagaStatements) -> None:
        super().__init__(connection)
        self._sql = statements

    def insert(self, sagas: Sequence[NewSaga]) -> frozenset[str]:
        """Insert pending sagas; ids that exist are left alone.

        Waits for a transaction that has inserted one of the ids and not ended yet: there is one answer to who was
        first. Each row counts as published, for the caller sends its message right after the commit.

        Returns:
            The ids that were inserted.
        """
        if not sagas:
            return frozenset()
        # In order of ids, so that two bulk starts over the same ids wait for each other rather than deadlock.
        rows = [_new_saga(saga) for saga in sorted(sagas, key=lambda saga: saga.id)]
        result = self._connection.execute(self._sql.insert, rows[0] if len(rows) == 1 else rows)
        return frozenset(row[0] for row in result)

    def get(self, saga_id: str) -> SagaRow | None:
        """Read a saga without locking it."""
        row = self._connection.execute(self._sql.get, {"saga_id": saga_id}).first()
        return None if row is None else saga_row(row)

    def lock(self, saga_id: str, *, wait: bool) -> Locked | None:
        """Lock a saga until the transaction ends.

        Read other rows of the saga only after this, in another statement: a statement that waited for the lock
        still sees everything else as it was before the wait.

        Args:
            saga_id: the saga.
            wait: wait for a transaction that holds it.

        Returns:
            The saga, and a time that is not before the commit of the previous holder; ``None`` if there is no such
            saga or, without ``wait``, if it is held by somebody else.
        """
        statement = self._sql.lock if wait else self._sql.lock_or_skip
        row = self._connection.execute(statement, {"saga_id": saga_id}).first()
        return None if row is None else Locked(row=saga_row(row), now=row[-1])

    def advance(
        self,
        row: SagaRow,
        decision: Decision,
        *,
        now: datetime,
        python: str | None = None,
        definition_hash: str | None = None,
    ) -> bool:
        """Write a decision onto the saga it was made for.

        Args:
            row: the saga as it was locked; nothing is written if its revision is no longer current.
            decision: what to write.
            now: the database's time, as :meth:`lock` gave it.
            python: minor version of Python; kept from the first advance on.
            definition_hash: kept unless the start gave one.
        """
        return self._landed(
            self._sql.advance[decision.state],
            {
                "saga_id": row.id,
                "revision": row.revision,
                "state": decision.state.value,
                "ledger_at": decision.ledger_at,
                "started_at": decision.started_at,
                "last_seq": decision.last_seq,
                "result": decision.result,
                "error": dump_error(decision.error),
                "failed_step": decision.failed_step,
                "body_done": decision.body_done,
                "wake_at": decision.wake_at,
                "python": python,
                "definition_hash": definition_hash,
                "now": now,
            },
        )

    def transition(
        self,
        saga_id: str,
        *,
        target: SagaState,
        sources: frozenset[SagaState] | None = None,
        error: ErrorInfo | None = None,
        clear_error: bool = False,
        wake_at: datetime | None = None,
        finished: bool = False,
    ) -> bool:
        """Move a saga outside its normal course: stuck, paused, resumed, opened again.

        Args:
            saga_id: the saga.
            target: the state it gets.
            sources: states it may come from; all that may become ``target`` by default.
            error: put on the saga, if given.
            clear_error: take the error off.
            wake_at: when the sweep looks at it, ``None`` for never.
            finished: stamp the end. A terminal target is stamped in any case.

        Raises:
            ValueError: a source from which the table of transitions does not lead to ``target``.
        """
        if sources is None:
            sources = sources_of(target)
        for source in sources:
            if source is not target and not can_become(source, target):
                raise ValueError(f"a saga that is {source.value} cannot become {target.value}")
        return self._landed(
            self._sql.transition,
            {
                "saga_id": saga_id,
                "state": target.value,
                "sources": [source.value for source in sources],
                "error": dump_error(error),
                "clear_error": clear_error,
                "wake_at": wake_at,
                "finished": finished or target in TERMINAL_SAGA_STATES,
            },
        )

    def stick(self, saga_id: str, trouble: ErrorInfo) -> bool:
        """Hold an open saga whose code does not fit its ledger; ``transition`` lets it go on after a fix."""
        return self._landed(self._sql.stick, {"saga_id": saga_id, "error": dump_error(trouble)})

    def wake(self, saga_id: str, at: datetime) -> bool:
        """Have the sweep look at an open saga at this time, or earlier if it was going to."""
        return self._landed(self._sql.wake, {"saga_id": saga_id, "at": at})

    def rename(self, old_id: str, new_id: str, *, state_in: frozenset[SagaState]) -> bool:
        """Give a saga in one of these states another id: its rows follow (two statements, the second for its audit).

        Raises:
            sqlalchemy.exc.IntegrityError: a saga of the new id exists.
        """
        ids = {"saga_id": old_id, "new_id": new_id}
        if not self._landed(self._sql.rename, {**ids, "sources": [state.value for state in state_in]}):
            return False
        self._connection.execute(self._sql.rename_audit, ids)
        return True

    def due(
        self, limit: int, *, republish_after: timedelta, republish_max: timedelta, presume_lost: bool
    ) -> list[DueSaga]:
        """Take open sagas whose wake time has come, counting a publish on each (one statement, or two).

        Args:
            limit: rows taken at most.
            republish_after: a message is doubted after this; the time doubles with each sending.
            republish_max: ceiling of that time.
            presume_lost: take sagas whose message was sent, too, once it is doubtful.
        """
        parameters: dict[str, Any] = {"limit": limit}
        rows = list(self._connection.execute(self._sql.due, parameters))
        if presume_lost and len(rows) < limit:
            parameters["limit"] = limit - len(rows)
            parameters["republish_after"] = republish_after.total_seconds()
            parameters["republish_max"] = republish_max.total_seconds()
            rows += self._connection.execute(self._sql.due_again, parameters)
        return [
            DueSaga(
                id=row[0],
                name=row[1],
                version=row[2],
                state=SAGA_STATES[row[3]],
                priority=row[4],
                publishes=row[5],
            )
            for row in rows
        ]


def _new_saga(saga: NewSaga) -> dict[str, Any]:
    return {
        "id": saga.id,
        "name": saga.name,
        "version": saga.version,
        "definition_hash": saga.definition_hash,
        "input": saga.input,
        "deadline_at": saga.deadline_at,
        "priority": saga.priority,
        "tags_json": dump_json(saga.tags),
        "parent_id": saga.parent_id,
        "root_id": saga.root_id,
        "run": saga.run,
        # A random start: a saga that takes over a finished one's id must not meet a cached loop of its revision.
        "revision": secrets.randbelow(_RANDOM_REVISIONS),
        "delay": saga.wake_at_delay.total_seconds(),
    }
