"""Rows put into the state that a test starts from."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from sagakit.coordinator.ledger import Decision, NewRow, Undo
from sagakit.states import TERMINAL_SAGA_STATES, Kind, SagaState, StepState
from sagakit.store import NewSaga, Store, WorkerInfo

UNDO = Undo(compensation="shop.refund", name="refund")
STEP = NewRow(position=0, kind=Kind.STEP, name="charge", task="shop.charge", args="[1]", undo=UNDO)
TIMER = NewRow(position=0, kind=Kind.TIMER, name="sleep")
COMPENSATION = NewRow(position=1, kind=Kind.COMPENSATION, name="refund", task="shop.refund", compensates=0)
PROBE = NewRow(position=2, kind=Kind.PROBE, name="probe charge", task="shop.probe", compensates=0)


class Ledger:
    """A ledger's rows, put into any state, past the guards."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def now(self) -> datetime:
        """The database's time."""
        with self.store.read() as tx:
            return tx.now()

    def saga(self, saga_id: str = "s", state: SagaState = SagaState.RUNNING, **values: Any) -> str:
        """Insert a saga; ``values`` overwrite its columns."""
        with self.store.begin() as tx:
            tx.sagas.insert([new_saga(saga_id)])
        finished = {"finished_at": self.now()} if state in TERMINAL_SAGA_STATES else {}
        self.put_saga(saga_id, state=state.value, **{**finished, **values})
        return saga_id

    def row(self, saga_id: str = "s", row: NewRow = STEP, **values: Any) -> str:
        """Insert a row with the token ``t<position>``, and the saga if it is missing; ``values`` overwrite columns."""
        with self.store.begin() as tx:
            missing = tx.sagas.get(saga_id) is None
        if missing:
            self.saga(saga_id)
        with self.store.begin() as tx:
            tx.steps.insert(saga_id, [row], {row.position: f"t{row.position}"})
        if values:
            self.put_row(saga_id, row.position, **values)
        return f"t{row.position}"

    def running(self, saga_id: str = "s", row: NewRow = STEP, **values: Any) -> str:
        """Insert a row as claimed by the worker ``w``."""
        now = self.now()
        claimed = {"state": "running", "owner": "w", "attempt": 1, "started_at": now}
        return self.row(saga_id, row, **{**claimed, **values})

    def ended(self, state: StepState, saga_id: str = "s", row: NewRow = STEP, **values: Any) -> str:
        """Insert a row that has ended."""
        return self.row(saga_id, row, **{"state": state.value, "finished_at": self.now(), **values})

    def worker(self, worker_id: str = "w", lease: timedelta = timedelta(seconds=9)) -> None:
        """Register a worker."""
        with self.store.begin() as tx:
            tx.workers.register(WorkerInfo(id=worker_id, hostname="h", pid=1), lease)

    def put_saga(self, saga_id: str, **values: Any) -> None:
        """Overwrite columns of a saga."""
        table = self.store.tables.saga
        with self.store.begin() as tx:
            tx.connection.execute(sa.update(table).where(table.c.id == saga_id).values(values))

    def put_row(self, saga_id: str, position: int, **values: Any) -> None:
        """Overwrite columns of a row."""
        table = self.store.tables.step
        with self.store.begin() as tx:
            found = sa.and_(table.c.saga_id == saga_id, table.c.position == position)
            tx.connection.execute(sa.update(table).where(found).values(values))

    def saga_columns(self, saga_id: str = "s") -> Mapping[str, Any]:
        """A saga's columns."""
        table = self.store.tables.saga
        with self.store.read() as tx:
            return tx.connection.execute(sa.select(table).where(table.c.id == saga_id)).mappings().one()

    def columns(self, saga_id: str = "s", position: int = 0) -> Mapping[str, Any]:
        """A row's columns."""
        table = self.store.tables.step
        with self.store.read() as tx:
            found = sa.and_(table.c.saga_id == saga_id, table.c.position == position)
            return tx.connection.execute(sa.select(table).where(found)).mappings().one()

    def decision(self, state: SagaState = SagaState.RUNNING, **values: Any) -> Decision:
        """A decision that changes nothing but the saga's state."""
        now = self.now()
        return replace(Decision(state=state, ledger_at=now, started_at=now, last_seq=0), **values)

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Collect the statements that are executed; BEGIN is not counted."""
        seen: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith("BEGIN"):
                seen.append(statement)

        sa.event.listen(self.store.engine, "before_cursor_execute", note)
        yield seen
        sa.event.remove(self.store.engine, "before_cursor_execute", note)


def new_saga(saga_id: str, **values: Any) -> NewSaga:
    """A saga to insert."""
    given = NewSaga(id=saga_id, name="shop.checkout", version=1, definition_hash="h", input="[1]")
    return replace(given, **values)


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for a condition, looking again and again; fails the test if it does not come true in time."""
    pause, end = threading.Event(), time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        pause.wait(0.005)


def waiting(store: Store) -> int:
    """How many connections of the store's database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with store.read() as tx:
        return tx.connection.execute(sa.text(query)).scalar_one()
