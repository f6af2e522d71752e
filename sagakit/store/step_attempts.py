"""``saga_step`` rows as a worker moves them: claimed, finished, retried, handed back, lost. All fenced by the token."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sagakit.errors import ErrorInfo
from sagakit.states import OPEN_SAGA_STATES, STEP_TRANSITIONS, TASK_KINDS, Kind, StepState
from sagakit.store.rows import KINDS, STEP_STATES, dump_error
from sagakit.store.statements import BOOLEAN, FLOAT, INTEGER, TEXT, Aggregate, Sql
from sagakit.store.tables import quoted

_RUN = "WHERE saga_id = :saga_id AND position = :position AND state = 'running' AND token = :token"
_OUTCOMES = STEP_TRANSITIONS[StepState.RUNNING] - {StepState.SCHEDULED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The step that a compensation undoes or a probe asks about. ``args`` and ``result`` are encoded."""

    position: int
    name: str
    args: str | None
    result: str | None
    state: StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What a worker needs to run the row it has claimed.

    Attributes:
        attempt: how often the row was claimed, this time included.
        tainted: an earlier attempt may have taken effect.
        token: the new token; the outcome is recorded under it.
        time_limit: seconds it may run, or ``None``.
        run: the saga's, see :class:`~sagakit.coordinator.ledger.SagaRow`.
        args: the encoded arguments of a step; ``None`` for a compensation or probe, which look at ``target``.
    """

    saga_id: str
    saga_name: str
    saga_version: int
    position: int
    kind: Kind
    name: str
    task: str
    attempt: int
    retries: int
    lost: int
    tainted: bool
    token: str
    args: str | None
    queue: str | None
    priority: int | None
    compensates: int | None
    time_limit: float | None = None
    run: int = 0
    target: Target | None = None


class AttemptStatements:
    """The SQL of :class:`AttemptRows`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        # A step runs only while the body does; what undoes and probes also runs while the saga compensates.
        saga_open = (
            f"EXISTS (SELECT 1 FROM {sql.saga} AS s WHERE s.id = t.saga_id AND (s.state = 'running'"
            f" OR (t.kind <> 'step' AND s.state IN ({quoted(OPEN_SAGA_STATES)}))))"
        )
        self.claim = sql.rows(
            f"UPDATE {sql.step} AS t SET state = 'running', attempt = attempt + 1, token = :new_token,"
            f" owner = :owner, started_at = {d.now}, deadline_at = {d.after(d.now, 'time_limit')}"
            " WHERE t.saga_id = :saga_id AND t.position = :position AND t.state = 'scheduled'"
            f" AND t.token = :token AND t.kind IN ({quoted(TASK_KINDS)})"
            f" AND (t.due_at IS NULL OR t.due_at <= {d.now})"
            f" AND (t.expires_at IS NULL OR t.expires_at > {d.now}) AND {saga_open}"
            f" RETURNING (SELECT s.name FROM {sql.saga} AS s WHERE s.id = saga_id),"
            f" (SELECT s.version FROM {sql.saga} AS s WHERE s.id = saga_id),"
            " kind, name, task, attempt, retries, lost, args, queue, priority, compensates, tainted, time_limit,"
            f" (SELECT s.run FROM {sql.saga} AS s WHERE s.id = saga_id)",
            {
                "saga_name": TEXT,
                "saga_version": INTEGER,
                "kind": TEXT,
                "name": TEXT,
                "task": TEXT,
                "attempt": INTEGER,
                "retries": INTEGER,
                "lost": INTEGER,
                "args": TEXT,
                "queue": TEXT,
                "priority": INTEGER,
                "compensates": INTEGER,
                "tainted": BOOLEAN,
                "time_limit": FLOAT,
                "run": INTEGER,
            },
        )
        self.target = sql.rows(
            f"SELECT position, name, args, result, state FROM {sql.step}"
            " WHERE saga_id = :saga_id AND position = :position",
            {"position": INTEGER, "name": TEXT, "args": TEXT, "result": TEXT, "state": TEXT},
        )
        self.finish = sql.do(
            f"UPDATE {sql.step} SET state = :state, result = :result, error = :error, finished_at = {d.now} {_RUN}"
        )
        # Back to the queue: unpublished, with a time at which the sweep sends it if nobody did.
        back = (
            "state = 'scheduled', token = :new_token, owner = NULL, publishes = 0, published_at = NULL,"
            " deadline_at = NULL"
        )
        self.retry = sql.do(
            f"UPDATE {sql.step} SET {back}, retries = retries + 1, error = :error,"
            " tainted = tainted OR :tainted,"
            f" due_at = {d.after(d.now, ':delay')} {_RUN}"
        )
        self.hand_back = sql.do(f"UPDATE {sql.step} SET {back}, due_at = {d.now} {_RUN}")
        self.report = sql.do(f"UPDATE {sql.step} SET progress = :progress {_RUN}")
        again = ":rerun AND lost + 1 < :max_lost"
        self.lose = sql.rows(
            f"UPDATE {sql.step} SET state = CASE WHEN {again} THEN 'scheduled' ELSE 'unknown' END,"
            f" lost = lost + 1, tainted = true, token = :new_token, owner = CASE WHEN {again} THEN NULL ELSE owner END,"
            " publishes = 0, published_at = NULL, deadline_at = NULL, error = :error,"
            f" due_at = CASE WHEN {again} THEN {d.now} ELSE due_at END,"
            f" finished_at = CASE WHEN {again} THEN NULL ELSE {d.now} END {_RUN} RETURNING state",
            {"state": TEXT},
        )


class AttemptRows(Aggregate):
    """The worker's side of :class:`~sagakit.store.steps.Steps`."""

    __slots__ = ()
    _attempt: AttemptStatements

    def claim(self, saga_id: str, position: int, token: str, *, new_token: str, owner: str) -> Claimed | None:
        """Take a scheduled row to run it (one statement; a second one reads the target of a compensation or probe).

        Returns:
            What to run, or ``None``: the message was a duplicate, the row is not due or has expired, or its saga is
            not in a state in which it may run.
        """
        row = self._connection.execute(
            self._attempt.claim,
            {
                "saga_id": saga_id,
                "position": position,
                "token": token,
                "new_token": new_token,
                "owner": owner,
            },
        ).first()
        if row is None:
            return None
        compensates = row[11]
        return Claimed(
            saga_id=saga_id,
            saga_name=row[0],
            saga_version=row[1],
            position=position,
            kind=KINDS[row[2]],
            name=row[3],
            task=row[4],
            attempt=row[5],
            retries=row[6],
            lost=row[7],
            tainted=row[12],
            time_limit=row[13],
            run=row[14],
            token=new_token,
            args=row[8],
            queue=row[9],
            priority=row[10],
            compensates=compensates,
            target=None if compensates is None else self._target(saga_id, compensates),
        )

    def _target(self, saga_id: str, position: int) -> Target | None:
        row = self._connection.execute(
            self._attempt.target, {"saga_id": saga_id, "position": position}
        ).first()
        if row is None:
            return None
        return Target(position=row[0], name=row[1], args=row[2], result=row[3], state=STEP_STATES[row[4]])

    def finish(
        self,
        saga_id: str,
        position: int,
        token: str,
        *,
        state: StepState,
        result: str | None = None,
        error: ErrorInfo | None = None,
    ) -> bool:
        """Record the outcome of a run.

        Returns:
            Whether it landed; if not, the run was given up for lost, and its outcome must not count.

        Raises:
            ValueError: ``state`` is not an outcome of a run.
        """
        if state not in _OUTCOMES:
            raise ValueError(f"a run cannot end {state.value}")
        return self._landed(
            self._attempt.finish,
            {
                "saga_id": saga_id,
                "position": position,
                "token": token,
                "state": state.value,
                "result": result,
                "error": dump_error(error),
            },
        )

    def report(self, saga_id: str, position: int, token: str, *, progress: str) -> bool:
        """Note how far a run is, for people to see."""
        return self._landed(
            self._attempt.report,
            {"saga_id": saga_id, "position": position, "token": token, "progress": progress},
        )

    def retry(
        self,
        saga_id: str,
        position: int,
        token: str,
        *,
        new_token: str,
        delay: timedelta,
        error: ErrorInfo | None,
        tainted: bool = False,
    ) -> bool:
        """Schedule a failed run again, ``delay`` from now; ``tainted``: it may have taken effect."""
        return self._landed(
            self._attempt.retry,
            {
                "saga_id": saga_id,
                "position": position,
                "token": token,
                "new_token": new_token,
                "delay": delay.total_seconds(),
                "error": dump_error(error),
                "tainted": tainted,
            },
        )

    def hand_back(self, saga_id: str, position: int, token: str, *, new_token: str) -> bool:
        """Give a claimed row back at a warm shutdown: due at once, and not counted as lost."""
        return self._landed(
            self._attempt.hand_back,
            {"saga_id": saga_id, "position": position, "token": token, "new_token": new_token},
        )

    def lose(
        self,
        saga_id: str,
        position: int,
        token: str,
        *,
        new_token: str,
        rerun: bool,
        max_lost: int,
        error: ErrorInfo | None,
    ) -> StepState | None:
        """Give a run up for lost. The new token fences whoever may still be running it.

        Args:
            saga_id: the saga.
            position: the row.
            token: its token when it was seen.
            new_token: its token from now on.
            rerun: it may run again (an at-least-once step).
            max_lost: it has had this many chances once it was lost this often.
            error: what to say about it.

        Returns:
            ``scheduled`` or ``unknown``; ``None`` if the row had moved on.
        """
        parameters: dict[str, Any] = {
            "saga_id": saga_id,
            "position": position,
            "token": token,
            "new_token": new_token,
            "rerun": rerun,
            "max_lost": max_lost,
            "error": dump_error(error),
        }
        row = self._connection.execute(self._attempt.lose, parameters).first()
        return None if row is None else STEP_STATES[row[0]]
