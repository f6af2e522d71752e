"""Joining a caller's transaction, and publishing once it is really committed."""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sagakit.errors import SessionMismatch
from sagakit.states import TERMINAL_SAGA_STATES
from sagakit.store import Store, Transaction

logger = logging.getLogger(__name__)

_GIVE_UP_AFTER = 10.0
"""Seconds a commit may take before its message is left to the sweep."""
_FAREWELL = 2.0
"""Seconds a process that exits spends on messages of transactions it has just committed."""


class SessionJoiner:
    """Finds the caller's connection and makes sure that it leads to the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledger_id: str | None = None
        self._checked: WeakKeyDictionary[sa.Engine, bool] = WeakKeyDictionary()

    def join(self, session: Any) -> Transaction:
        """The ledger's statements inside the transaction of ``session``.

        Raises:
            SessionMismatch: it is no SQLAlchemy session or connection, or leads to another database.
        """
        connection = self._connection(session)
        transaction = self._store.join(connection)
        if not self._checked.get(connection.engine):
            self._check(transaction)
            self._checked[connection.engine] = True
        return transaction

    @staticmethod
    def _connection(session: Any) -> sa.Connection:
        if isinstance(session, sa.Connection):
            return session
        if hasattr(session, "run_sync"):
            raise SessionMismatch(
                "an async session or connection goes to `await saga.astart(..., session=...)`"
            )
        if isinstance(session, Session) or hasattr(session, "connection"):
            connection = session.connection()
            if isinstance(connection, sa.Connection):
                return connection
        raise SessionMismatch(
            f"session= takes a SQLAlchemy Session or Connection, not {type(session).__name__}"
        )

    def _check(self, transaction: Transaction) -> None:
        if self._ledger_id is None:
            with self._store.read() as own:
                self._ledger_id = own.queries.ledger_id()
        try:
            # In a savepoint: a missing table must not spoil the caller's transaction.
            with transaction.connection.begin_nested():
                found: str | None = transaction.queries.ledger_id()
        except SQLAlchemyError:
            found = None
        if found != self._ledger_id:
            shown = transaction.connection.engine.url.render_as_string(hide_password=True)
            raise SessionMismatch(
                f"the session is connected to {shown}, which is not the ledger's database: the saga could not join its "
                "transaction. Use a session on the ledger's database, or start without session= after your commit"
            )


@dataclass(slots=True)
class _Pending:
    saga_ids: list[str]
    publish: Callable[[], None]
    give_up_at: float = 0.0


class AfterCommit:
    """Publishes after the outermost commit of somebody else's transaction.

    SQLAlchemy tells of a commit before it happens, and a session's own ``after_commit`` comes too early when the
    session joined an outer transaction. So a commit that was told of is waited for where it counts: until another
    connection sees the rows.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._watched: WeakKeyDictionary[sa.Connection, list[_Pending]] = WeakKeyDictionary()
        self._pending: deque[_Pending] = deque()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        atexit.register(self._farewell)

    def watch(self, connection: sa.Connection, saga_ids: list[str], publish: Callable[[], None]) -> None:
        """Call ``publish`` once the transaction of ``connection`` is committed; never if it is rolled back."""
        waiting = self._watched.get(connection)
        if waiting is None:
            self._watched[connection] = waiting = []
            event.listen(connection, "commit", self._on_commit)
            event.listen(connection, "rollback", self._on_rollback)
        waiting.append(_Pending(saga_ids, publish))

    def _on_commit(self, connection: sa.Connection) -> None:
        # Savepoints do not come here: only the outermost transaction's own commit does.
        waiting = self._watched[connection]
        for pending in waiting:
            pending.give_up_at = time.monotonic() + _GIVE_UP_AFTER
            self._add(pending)
        waiting.clear()

    def _on_rollback(self, connection: sa.Connection) -> None:
        self._watched[connection].clear()

    def _add(self, pending: _Pending) -> None:
        with self._lock:
            self._pending.append(pending)
            self._idle.clear()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sagakit-after-commit", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = 0.001
        while True:
            with self._lock:
                if not self._pending:
                    self._thread = None
                    self._idle.set()
                    return
                pending = self._pending.popleft()
            if self._is_committed(pending):
                pause = 0.001
                self._publish(pending)
            elif time.monotonic() < pending.give_up_at:
                with self._lock:
                    self._pending.append(pending)
                time.sleep(pause)
                pause = min(pause * 2, 0.1)

    def _is_committed(self, pending: _Pending) -> bool:
        try:
            with self._store.read() as tx:
                saga = tx.sagas.get(pending.saga_ids[0])
            # One that has ended is the saga that is being restarted, under the same id.
            return saga is not None and saga.state not in TERMINAL_SAGA_STATES
        except SQLAlchemyError as exc:
            logger.warning("cannot see whether saga %s was committed: %s", pending.saga_ids[0], exc)
            return False

    @staticmethod
    def _publish(pending: _Pending) -> None:
        try:
            pending.publish()
        except Exception:
            logger.exception("saga %s was committed but not published; the sweep will", pending.saga_ids[0])

    def _farewell(self) -> None:
        self._idle.wait(_FAREWELL)
