"""``saga_step`` rows as the coordinator writes them, under the saga's lock: inserted, read, resolved, withdrawn."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sagakit.coordinator.ledger import NewRow, Resolution, StepRow, Undo
from sagakit.errors import ErrorInfo
from sagakit.states import (
    OPEN_STEP_STATES,
    RESOLVED_STEP_STATES,
    STEP_TRANSITIONS,
    TASK_KINDS,
    Kind,
    StepState,
)
from sagakit.store.rows import STEP_COLUMNS, STEP_STATES, dump_error, dump_undo, select_list, step_row
from sagakit.store.statements import INTEGER, TEXT, Aggregate, Sql
from sagakit.store.tables import UNFED, quoted

_RESOLVED = f"state IN ({quoted(RESOLVED_STEP_STATES)})"
_REPLAYABLE = frozenset(s for s in RESOLVED_STEP_STATES if StepState.SCHEDULED in STEP_TRANSITIONS[s])
# A compensation or probe that was withdrawn stays one that an operator can replay.
_NOT_STARTED = (
    "CASE WHEN tainted THEN 'unknown' WHEN kind IN ('compensation', 'probe') THEN 'skipped'"
    " ELSE 'cancelled' END"
)
_ONE_ROW = "WHERE saga_id = :saga_id AND position = :position"


class LedgerStatements:
    """The SQL of :class:`LedgerRows`, built once a store."""

    def __init__(self, sql: Sql) -> None:
        d = sql.dialect
        self.insert = sql.do(
            f"INSERT INTO {sql.step} (saga_id, position, kind, name, task, state, path, attempt, token, owner, args,"
            " error, undo, compensates, queue, priority, due_at, expires_at, time_limit, deadline_at, published_at,"
            " publishes, scheduled_at, started_at, finished_at, resolved_seq, resolved_at, abandoned)"
            " VALUES (:saga_id, :position, :kind, :name, :task, :state, :path, CASE WHEN :running THEN 1 ELSE 0 END,"
            " :token, :owner, :args, :error, :undo, :compensates, :queue, :priority, :due_at, :expires_at,"
            f" :time_limit, CASE WHEN :running THEN {d.after(d.now, ':time_limit')} END,"
            f" CASE WHEN :published THEN {d.now} END, CASE WHEN :published THEN 1 ELSE 0 END, {d.now},"
            f" CASE WHEN :running THEN {d.now} END, CASE WHEN :finished THEN {d.now} END, :resolved_seq,"
            " :ledger_at, :abandoned)"
        )
        self.load = sql.rows(
            f"SELECT {select_list(STEP_COLUMNS, 't', d)} FROM {sql.step} AS t"
            " WHERE t.saga_id = :saga_id ORDER BY t.position",
            STEP_COLUMNS,
        )
        self.resolve = sql.do(
            f"UPDATE {sql.step} SET resolved_seq = :seq, resolved_at = :ledger_at"
            f" {_ONE_ROW} AND {_RESOLVED} AND resolved_seq IS NULL"
        )
        self.settle = sql.do(
            f"UPDATE {sql.step} SET state = :state, finished_at = {d.now}, resolved_seq = :seq,"
            f" resolved_at = :ledger_at {_ONE_ROW} AND state = 'scheduled'"
        )
        self.withdraw = sql.rows(
            f"UPDATE {sql.step} SET state = {_NOT_STARTED}, finished_at = {d.now}"
            " WHERE saga_id = :saga_id AND position IN :positions AND state = 'scheduled' RETURNING position, state",
            {"position": INTEGER, "state": TEXT},
        )
        self.revoke = sql.do(
            f"UPDATE {sql.step} SET state = {_NOT_STARTED}, finished_at = {d.now}, error = :error"
            f" {_ONE_ROW} AND state = 'scheduled' AND token = :token"
        )
        # `attempt` goes on counting: the attempts of the first round stay on record under their numbers.
        self.reopen = sql.do(
            f"UPDATE {sql.step} SET state = 'scheduled', token = :token, retries = 0, lost = 0, tainted = false,"
            " replay = false, owner = NULL,"
            f" error = NULL, result = NULL, due_at = {d.now}, publishes = 0, published_at = NULL, started_at = NULL,"
            " deadline_at = NULL, finished_at = NULL, resolved_seq = NULL, resolved_at = NULL,"
            " task = CASE WHEN :replaced AND :task IS NOT NULL THEN :task ELSE task END,"
            " name = COALESCE(:name, name),"
            " queue = CASE WHEN :replaced THEN :queue ELSE queue END,"
            " priority = CASE WHEN :replaced THEN :priority ELSE priority END"
            f" {_ONE_ROW} AND kind = :kind AND state IN ({quoted(_REPLAYABLE)})"
        )
        self.abandon = sql.do(
            f"UPDATE {sql.step} SET abandoned = true WHERE saga_id = :saga_id AND position IN :positions"
        )
        self.mark_for_replay = sql.do(
            f"UPDATE {sql.step} SET replay = true WHERE saga_id = :saga_id AND position IN :positions"
            f" AND kind <> 'step' AND state IN ({quoted(_REPLAYABLE)})"
        )
        self.set_undo = sql.do(f"UPDATE {sql.step} SET undo = :undo {_ONE_ROW} AND kind = 'step'")
        self.has_unfed = sql.do(
            f"SELECT EXISTS (SELECT 1 FROM {sql.step} WHERE saga_id = :saga_id AND {UNFED})"
        )


class LedgerRows(Aggregate):
    """The coordinator's side of :class:`~sagakit.store.steps.Steps`."""

    __slots__ = ()
    _ledger: LedgerStatements

    def insert(
        self,
        saga_id: str,
        rows: Sequence[NewRow],
        tokens: Mapping[int, str],
        *,
        owner: str | None = None,
        ledger_at: datetime | None = None,
    ) -> None:
        """Insert rows of one saga. The caller publishes those that are due at once, right after the commit.

        Args:
            saga_id: the saga.
            rows: what the coordinator decided. A row in state ``running`` is inserted as claimed by ``owner``.
            tokens: the dispatch token of each row that a worker is to claim, by position.
            owner: the worker that runs the rows inserted as ``running``.
            ledger_at: ledger time of this advance, for rows that are inserted already resolved.
        """
        if rows:
            self._each(
                self._ledger.insert,
                [_new_row(saga_id, row, tokens.get(row.position), owner, ledger_at) for row in rows],
            )

    def load(self, saga_id: str) -> list[StepRow]:
        """All rows of a saga, in order of position."""
        return [step_row(row) for row in self._connection.execute(self._ledger.load, {"saga_id": saga_id})]

    def resolve(self, saga_id: str, resolutions: Sequence[Resolution], *, ledger_at: datetime) -> bool:
        """Note the order in which outcomes were fed (one statement, two if timers are settled).

        Returns:
            Whether every row was there to be resolved. If not, the caller's picture of the ledger is wrong, and the
            transaction must not be committed.
        """
        fed, settled = [], []
        for resolution in resolutions:
            parameters: dict[str, Any] = {
                "saga_id": saga_id,
                "position": resolution.position,
                "seq": resolution.seq,
                "ledger_at": ledger_at,
            }
            if resolution.state is None:
                fed.append(parameters)
            else:
                settled.append({**parameters, "state": resolution.state.value})
        landed = self._each(self._ledger.resolve, fed) if fed else 0
        landed += self._each(self._ledger.settle, settled) if settled else 0
        return landed == len(resolutions)

    def withdraw(
        self, saga_id: str, positions: Sequence[int], *, ledger_at: datetime, first_seq: int
    ) -> dict[int, StepState]:
        """Withdraw rows that no worker has claimed, and resolve those that were (two statements).

        A row whose earlier attempt was lost becomes ``unknown``: that attempt may have taken effect.

        Returns:
            The state each withdrawn row has now. By ascending position they were given ``first_seq`` and the
            numbers after it.
        """
        if not positions:
            return {}
        found = self._connection.execute(
            self._ledger.withdraw, {"saga_id": saga_id, "positions": list(positions)}
        )
        landed = {row[0]: STEP_STATES[row[1]] for row in sorted(found)}
        resolutions = [Resolution(position=position, seq=first_seq + n) for n, position in enumerate(landed)]
        self.resolve(saga_id, resolutions, ledger_at=ledger_at)
        return landed

    def abandon(self, saga_id: str, positions: Sequence[int]) -> None:
        """Note that the body no longer waits for these rows."""
        if positions:
            parameters = {"saga_id": saga_id, "positions": list(positions)}
            self._connection.execute(self._ledger.abandon, parameters)

    def revoke(self, saga_id: str, position: int, *, token: str, error: ErrorInfo | None) -> bool:
        """Withdraw one unclaimed row and leave it to the coordinator to feed that to the body."""
        return self._landed(
            self._ledger.revoke,
            {"saga_id": saga_id, "position": position, "token": token, "error": dump_error(error)},
        )

    def reopen(
        self,
        saga_id: str,
        positions: Sequence[int],
        *,
        tokens: Mapping[int, str],
        undo: Mapping[int, Undo] | None = None,
    ) -> list[int]:
        """Schedule compensations and probes that failed once more, for an operator (at most two statements each).

        Args:
            saga_id: the saga.
            positions: the rows; one that is not a compensation or probe that failed is left out.
            tokens: the new token of each.
            undo: by position, the task to call now if it is not the one on the row.

        Returns:
            The positions that were reopened.
        """
        landed = []
        for position in positions:
            new = (undo or {}).get(position)
            row: dict[str, Any] = {"saga_id": saga_id, "position": position, "token": tokens[position]}
            row |= {"replaced": new is not None, "queue": new and new.queue, "priority": new and new.priority}
            compensation = {
                "kind": Kind.COMPENSATION.value,
                "task": new and new.compensation,
                "name": new and new.name,
            }
            probe = {"kind": Kind.PROBE.value, "task": new and new.probe, "name": None}
            if any(self._landed(self._ledger.reopen, {**row, **kind}) for kind in (compensation, probe)):
                landed.append(position)
        return landed

    def mark_for_replay(self, saga_id: str, positions: Sequence[int]) -> None:
        """Note that an operator wants these compensations and probes run once more; the coordinator reopens them."""
        if positions:
            parameters = {"saga_id": saga_id, "positions": list(positions)}
            self._connection.execute(self._ledger.mark_for_replay, parameters)

    def set_undo(self, saga_id: str, undo: Mapping[int, Undo]) -> None:
        """Replace how steps are undone, by position: a replay uses the compensations of the code as it is now."""
        if undo:
            self._each(
                self._ledger.set_undo,
                [
                    {"saga_id": saga_id, "position": position, "undo": dump_undo(new)}
                    for position, new in undo.items()
                ],
            )

    def has_unfed(self, saga_id: str) -> bool:
        """Whether an outcome waits to be fed to the body."""
        return bool(self._connection.execute(self._ledger.has_unfed, {"saga_id": saga_id}).scalar())


def _new_row(
    saga_id: str, row: NewRow, token: str | None, owner: str | None, ledger_at: datetime | None
) -> dict[str, Any]:
    running = row.state is StepState.RUNNING
    return {
        "saga_id": saga_id,
        "position": row.position,
        "kind": row.kind.value,
        "name": row.name,
        "task": row.task,
        "state": row.state.value,
        "path": row.path,
        "token": token,
        "owner": owner if running else None,
        "args": row.args,
        "error": dump_error(row.error),
        "undo": dump_undo(row.undo),
        "compensates": row.compensates,
        "queue": row.queue,
        "priority": row.priority,
        "due_at": row.due_at,
        "expires_at": row.expires_at,
        "time_limit": row.time_limit,
        "running": running,
        "published": row.state is StepState.SCHEDULED and row.kind in TASK_KINDS and row.due_at is None,
        "finished": row.state not in OPEN_STEP_STATES,
        "resolved_seq": row.resolved_seq,
        "ledger_at": None if row.resolved_seq is None else ledger_at,
        "abandoned": row.abandoned,
    }
