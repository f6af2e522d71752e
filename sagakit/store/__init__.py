"""The ledger in the database: tables, guarded transitions, queries and the schema's versions."""

from sagakit.store.engine import is_outage
from sagakit.store.sagas import DueSaga, Locked, NewSaga
from sagakit.store.step_attempts import Claimed, Target
from sagakit.store.step_sweeps import DueStep, RunningStep
from sagakit.store.store import Store, Transaction
from sagakit.store.workers import WorkerInfo, WorkerRecord

__all__ = [
    "Claimed",
    "DueSaga",
    "DueStep",
    "Locked",
    "NewSaga",
    "RunningStep",
    "Store",
    "Target",
    "Transaction",
    "WorkerInfo",
    "WorkerRecord",
    "is_outage",
]
