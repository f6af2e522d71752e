"""Rows of the database turned into the values of the coordinator and of history, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from sagakit.coordinator.ledger import SagaRow, StepRow, Undo
from sagakit.errors import ErrorInfo
from sagakit.states import Kind, SagaState, StepState
from sagakit.store.dialect import Dialect
from sagakit.store.statements import BOOLEAN, INTEGER, TEXT, TIME, Columns

SAGA_STATES: Mapping[str, SagaState] = {state.value: state for state in SagaState}
STEP_STATES: Mapping[str, StepState] = {state.value: state for state in StepState}
KINDS: Mapping[str, Kind] = {kind.value: kind for kind in Kind}

SAGA_COLUMNS: Columns = {
    "id": TEXT,
    "name": TEXT,
    "version": INTEGER,
    "state": TEXT,
    "input": TEXT,
    "created_at": TIME,
    "revision": INTEGER,
    "result": TEXT,
    "error": TEXT,
    "failed_step": TEXT,
    "python": TEXT,
    "definition_hash": TEXT,
    "started_at": TIME,
    "ledger_at": TIME,
    "finished_at": TIME,
    "deadline_at": TIME,
    "last_seq": INTEGER,
    "body_done": BOOLEAN,
    "priority": INTEGER,
    "tags": TEXT,
    "trouble": TEXT,
    "run": INTEGER,
}

STEP_COLUMNS: Columns = {
    "position": INTEGER,
    "kind": TEXT,
    "name": TEXT,
    "state": TEXT,
    "path": TEXT,
    "task": TEXT,
    "attempt": INTEGER,
    "result": TEXT,
    "error": TEXT,
    "due_at": TIME,
    "resolved_seq": INTEGER,
    "resolved_at": TIME,
    "compensates": INTEGER,
    "undo": TEXT,
    "abandoned": BOOLEAN,
    "replay": BOOLEAN,
}


def select_list(columns: Columns, alias: str, dialect: Dialect) -> str:
    """The columns as a ``SELECT`` wants them; ``tags`` always arrives as text."""
    return ", ".join(
        f"{dialect.json_out(f'{alias}.tags')} AS tags" if name == "tags" else f"{alias}.{name}"
        for name in columns
    )


def dump_error(error: ErrorInfo | None) -> str | None:
    """An error as JSON text that any database takes.

    A message may carry lone surrogates (a file name, say), which UTF-8 has no bytes for. As a JSON escape they
    survive: a failure must never be impossible to record.
    """
    if error is None:
        return None
    return error.dumps().encode("utf-8", "backslashreplace").decode("utf-8")


def load_error(text: str | None) -> ErrorInfo | None:
    """Read what :func:`dump_error` wrote."""
    return None if text is None else ErrorInfo.loads(text)


def dump_undo(undo: Undo | None) -> str | None:
    """An undo as JSON text."""
    return None if undo is None else _dump_undo(undo)


@lru_cache(maxsize=1024)
def _dump_undo(undo: Undo) -> str:
    return json.dumps(asdict(undo), separators=(",", ":"))


@lru_cache(maxsize=1024)
def _load_undo(text: str) -> Undo:
    # A saga's steps share a handful of texts, and a long ledger is read often. Keys of a newer sagakit are left out.
    known = Undo.__dataclass_fields__
    return Undo(**{key: value for key, value in json.loads(text).items() if key in known})


def load_undo(text: str | None) -> Undo | None:
    """Read what :func:`dump_undo` wrote."""
    return None if text is None else _load_undo(text)


def dump_json(value: Any) -> str | None:
    """Plain data as JSON text, ``None`` as NULL."""
    return None if value is None else json.dumps(value, separators=(",", ":"))


def load_json(text: str | None) -> Any:
    """Read JSON text, NULL as ``None``."""
    return None if text is None else json.loads(text)


def saga_row(row: Sequence[Any]) -> SagaRow:
    """A row of :data:`SAGA_COLUMNS`."""
    return SagaRow(
        id=row[0],
        name=row[1],
        version=row[2],
        state=SAGA_STATES[row[3]],
        input=row[4],
        created_at=row[5],
        revision=row[6],
        result=row[7],
        error=load_error(row[8]),
        failed_step=row[9],
        python=row[10],
        definition_hash=row[11],
        started_at=row[12],
        ledger_at=row[13],
        finished_at=row[14],
        deadline_at=row[15],
        last_seq=row[16],
        body_done=row[17],
        priority=row[18],
        tags=load_json(row[19]),
        trouble=load_error(row[20]),
        run=row[21],
    )


def step_row(row: Sequence[Any]) -> StepRow:
    """A row of :data:`STEP_COLUMNS`."""
    return StepRow(
        position=row[0],
        kind=KINDS[row[1]],
        name=row[2],
        state=STEP_STATES[row[3]],
        path=row[4],
        task=row[5],
        attempt=row[6],
        result=row[7],
        error=load_error(row[8]),
        due_at=row[9],
        resolved_seq=row[10],
        resolved_at=row[11],
        compensates=row[12],
        undo=load_undo(row[13]),
        abandoned=row[14],
        replay=row[15],
    )
