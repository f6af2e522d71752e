"""What the steps of a test did, kept apart from the ledger; gates that hold steps up; values that tests tell them.

The test has an ``Effects``; steps, in the worker processes, call ``record()``, ``pass_gate()`` and ``told()``, which
find the same database through ``EFFECTS_URL``. It is an SQLite file, so it stays up when a test takes the ledger's
server down, and each call commits on a connection of its own, so a record outlives the process that made it.
"""

import json
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.cluster.waiting import wait_until

VARIABLE = "EFFECTS_URL"

_SCHEME = "sqlite:///"
_GATE_TIMEOUT = 60.0
_GATE_INTERVAL = 0.01
_SCHEMA = """
CREATE TABLE effect (
    id INTEGER PRIMARY KEY, saga_id TEXT, step TEXT NOT NULL, kind TEXT NOT NULL, attempt INTEGER, key TEXT,
    detail TEXT NOT NULL, pid INTEGER NOT NULL, at REAL NOT NULL
);
CREATE INDEX effect_by_saga ON effect (saga_id, step);
CREATE TABLE gate (name TEXT PRIMARY KEY, open INTEGER NOT NULL);
CREATE TABLE arrival (
    id INTEGER PRIMARY KEY, gate TEXT NOT NULL, saga_id TEXT, step TEXT, attempt INTEGER, pid INTEGER NOT NULL
);
CREATE TABLE told (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One thing that a step or compensation did; ``pid`` is the process that did it, ``at`` the machine's clock."""

    id: int
    saga_id: str | None
    step: str
    kind: str
    attempt: int | None
    key: str | None
    detail: Any
    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A step that came to a gate."""

    gate: str
    saga_id: str | None
    step: str | None
    attempt: int | None
    pid: int


class GateStayedShut(Exception):
    """No test opened the gate in time; the step fails with this rather than hang."""


# --- for the steps --------------------------------------------------------------------------------------------


def record(
    saga_id: str | None = None,
    step: str | None = None,
    kind: str | None = None,
    attempt: int | None = None,
    key: str | None = None,
    detail: Any = None,
) -> None:
    """Record an effect, committed on return; inside a step, what is not given comes from ``current_step``."""
    context = _current_step()
    if context is not None:
        saga_id = saga_id if saga_id is not None else context.saga_id
        step = step if step is not None else context.step_name
        kind = kind if kind is not None else ("step" if context.outcome is None else "compensation")
        attempt = attempt if attempt is not None else context.attempt
        key = key if key is not None else context.idempotency_key
    _ours().execute(
        "INSERT INTO effect (saga_id, step, kind, attempt, key, detail, pid, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (saga_id, step or "?", kind or "step", attempt, key, _dump(detail), os.getpid(), time.time()),
    )


def pass_gate(name: str, timeout: float = _GATE_TIMEOUT) -> None:
    """Wait while the test keeps the gate shut; a gate that no test has shut is open.

    Raises:
        GateStayedShut: after ``timeout`` seconds.
    """
    database = _ours()
    context = _current_step()
    where = (
        (context.saga_id, context.step_name, context.attempt) if context is not None else (None, None, None)
    )
    database.execute(
        "INSERT INTO arrival (gate, saga_id, step, attempt, pid) VALUES (?, ?, ?, ?, ?)",
        (name, *where, os.getpid()),
    )
    deadline = time.monotonic() + timeout
    while database.execute("SELECT 1 FROM gate WHERE name = ? AND NOT open", (name,)).fetchone():
        if time.monotonic() > deadline:
            raise GateStayedShut(f"nobody opened gate {name!r} within {timeout:g} s")
        time.sleep(_GATE_INTERVAL)


def told(name: str, default: Any = None) -> Any:
    """What the test told by this name."""
    row = _ours().execute("SELECT value FROM told WHERE name = ?", (name,)).fetchone()
    return json.loads(row[0]) if row else default


# --- for the test ---------------------------------------------------------------------------------------------


class Effects:
    """The test's side of the record.

    Attributes:
        url: what ``EFFECTS_URL`` must be for the steps to find it.
    """

    def __init__(self, path: Path) -> None:
        self.url = f"{_SCHEME}{path}"
        self._database = _connect(self.url)
        self._database.executescript(_SCHEMA)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Record an effect from the test's process, as ``effects.record()`` does from a step."""
        assert os.environ.get(VARIABLE) == self.url, f"the fixture `effects` sets {VARIABLE}: use that"
        record(*args, **kwargs)

    def all(self, **criteria: Any) -> list[Effect]:
        """The effects in the order they were recorded, those that fit, e.g. ``all(saga_id="s", kind="step")``."""
        where, values = _where(criteria)
        rows = self._database.execute(f"SELECT * FROM effect{where} ORDER BY id", values).fetchall()
        return [Effect(**{**dict(row), "detail": json.loads(row["detail"])}) for row in rows]

    def names(self, saga_id: str | None = None, **criteria: Any) -> list[str]:
        """The names of steps and compensations in the order they took effect."""
        if saga_id is not None:
            criteria["saga_id"] = saga_id
        return [effect.step for effect in self.all(**criteria)]

    def count(self, **criteria: Any) -> int:
        """How many effects fit, e.g. ``count(step="charge")``."""
        where, values = _where(criteria)
        row = self._database.execute(f"SELECT count(*) FROM effect{where}", values).fetchone()
        return int(row[0])

    def wait_for(self, n: int = 1, timeout: float = 30.0, **criteria: Any) -> list[Effect]:
        """Wait until at least ``n`` effects fit; return them."""
        __tracebackhide__ = True
        what = f"{n} effects with {criteria}" if criteria else f"{n} effects"
        wait_until(lambda: self.count(**criteria) >= n, timeout, what)
        return self.all(**criteria)

    def gate(self, name: str) -> "Gate":
        """Shut the gate of this name: steps that call ``pass_gate(name)`` wait until the test opens it."""
        return Gate(self._database, name)

    def open_gates(self) -> None:
        """Open every gate."""
        self._database.execute("UPDATE gate SET open = 1")

    def tell(self, name: str, value: Any) -> None:
        """Set what steps get from ``told(name)``."""
        self._database.execute(
            "INSERT OR REPLACE INTO told (name, value) VALUES (?, ?)", (name, _dump(value))
        )

    def close(self) -> None:
        """Close the test's connection."""
        self._database.close()


class Gate:
    """A gate that the test has shut; a ``with`` block opens it at its end."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self.name = name
        self._database = database
        self.shut()

    def shut(self) -> None:
        """Shut it (again)."""
        self._set(0)

    def open(self) -> None:
        """Let through whoever waits, and whoever comes later."""
        self._set(1)

    @property
    def arrivals(self) -> list[Arrival]:
        """Who has come to the gate, let through or not, in order."""
        query = "SELECT gate, saga_id, step, attempt, pid FROM arrival WHERE gate = ? ORDER BY id"
        return [Arrival(**dict(row)) for row in self._database.execute(query, (self.name,))]

    def wait_reached(self, n: int = 1, timeout: float = 30.0) -> list[Arrival]:
        """Wait until ``n`` steps have come to the gate; return them."""
        __tracebackhide__ = True
        wait_until(lambda: len(self.arrivals) >= n, timeout, f"{n} steps to reach gate {self.name!r}")
        return self.arrivals

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def _set(self, is_open: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO gate (name, open) VALUES (?, ?)", (self.name, is_open))


# --- the database ---------------------------------------------------------------------------------------------

_local = threading.local()
_inherited: list[sqlite3.Connection] = []


def _ours() -> sqlite3.Connection:
    """This thread's connection to the database that ``EFFECTS_URL`` names."""
    url = os.environ[VARIABLE]
    owner = (os.getpid(), url)
    if getattr(_local, "owner", None) != owner:
        if hasattr(_local, "connection"):
            # A forked child must not even close what it inherited: that would drop the parent's locks.
            _inherited.append(_local.connection)
        _local.connection, _local.owner = _connect(url), owner
    connection: sqlite3.Connection = _local.connection
    return connection


def _connect(url: str) -> sqlite3.Connection:
    path = url.removeprefix(_SCHEME)
    # Autocommit: each statement is a transaction of its own.
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    # It need not survive a power cut, and it does survive a kill -9 with this.
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _where(criteria: dict[str, Any]) -> tuple[str, list[Any]]:
    unknown = set(criteria) - set(Effect.__slots__)
    assert not unknown, f"effects have no {sorted(unknown)}"
    values = [_dump(value) if name == "detail" else value for name, value in criteria.items()]
    return (" WHERE " + " AND ".join(f"{name} IS ?" for name in criteria) if criteria else ""), values


def _dump(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _current_step() -> Any:
    # Not imported above: plain Celery tasks record effects too, where there is no saga.
    from sagakit.running import step_context

    return step_context.get(None)
