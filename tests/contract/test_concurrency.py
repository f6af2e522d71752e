"""Several connections at once, on Postgres: who waits, who passes, and who wins."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
import sqlalchemy as sa

from sagakit.coordinator.ledger import Resolution
from sagakit.states import SagaState, StepState
from sagakit.store import Store, Transaction
from tests.contract.ledgers import STEP, Ledger, new_saga, until, waiting

pytestmark = pytest.mark.postgres

SECOND = timedelta(seconds=1)
T = TypeVar("T")


@pytest.fixture
def ledger(postgres: Store) -> Ledger:
    """Brings rows into the state a test starts from."""
    return Ledger(postgres)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for the other connections."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def in_another(pool: ThreadPoolExecutor, store: Store, work: Callable[[Transaction], T]) -> "Future[T]":
    """Do ``work`` in a transaction of another connection."""

    def run() -> T:
        with store.begin() as tx:
            return work(tx)

    return pool.submit(run)


# --- the saga's lock ---


def test_lock_busy(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """Who does not want to wait is told at once that somebody else holds the saga; other sagas are free."""
    ledger.saga("a")
    ledger.saga("b")
    with postgres.begin() as tx:
        assert tx.sagas.lock("a", wait=True)
        assert in_another(pool, postgres, lambda tx: tx.sagas.lock("a", wait=False)).result(5) is None
        assert in_another(pool, postgres, lambda tx: tx.sagas.lock("b", wait=False)).result(5)
    assert in_another(pool, postgres, lambda tx: tx.sagas.lock("a", wait=False)).result(5)


@pytest.mark.parametrize("changed", [False, True])
def test_lock_time_is_after_the_wait(
    postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor, changed: bool
) -> None:
    """The time that comes with a lock is not before the previous holder's commit, whether or not it wrote the row."""
    ledger.saga("a")
    with postgres.begin() as tx:
        held = tx.sagas.lock("a", wait=True)
        assert held is not None
        other = in_another(pool, postgres, lambda tx: tx.sagas.lock("a", wait=True))
        until(lambda: waiting(postgres))
        if changed:
            assert tx.sagas.wake("a", held.now)
        last = tx.now()
    locked = other.result(5)
    assert locked is not None
    assert locked.now >= last


def test_lock_shows_what_the_previous_holder_wrote(
    postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor
) -> None:
    """After the wait, the saga and its rows are as the previous holder left them."""
    ledger.running("a")

    def lock_and_load(tx: Transaction) -> tuple[int | None, StepState]:
        locked = tx.sagas.lock("a", wait=True)
        return locked and locked.row.last_seq, tx.steps.load("a")[0].state

    decision = ledger.decision(last_seq=5)
    with postgres.begin() as tx:
        held = tx.sagas.lock("a", wait=True)
        assert held is not None
        other = in_another(pool, postgres, lock_and_load)
        until(lambda: waiting(postgres))
        assert tx.sagas.advance(held.row, decision, now=held.now)
        assert tx.steps.finish("a", 0, "t0", state=StepState.SUCCEEDED, result="1", error=None)
    assert other.result(5) == (5, StepState.SUCCEEDED)


def test_lock_lets_rows_in(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """A row that refers to the saga can be inserted, and an outcome recorded, while somebody holds the lock."""
    ledger.running("a")

    def write(tx: Transaction) -> bool:
        tx.connection.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
        tx.attempts.record("a", 0, 1, error=None, owner="w", outcome="failed")
        return tx.steps.finish("a", 0, "t0", state=StepState.FAILED, result=None, error=None)

    with postgres.begin() as tx:
        assert tx.sagas.lock("a", wait=True)
        assert in_another(pool, postgres, write).result(10)


# --- claims ---


def test_claims_race(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """Of any number of claims of one row, exactly one lands."""
    ledger.saga("a")
    rows = [replace(STEP, position=n) for n in range(25)]
    with postgres.begin() as tx:
        tx.steps.insert("a", rows, dict.fromkeys(range(25), "t"))
    barrier = threading.Barrier(4)

    def claim_all(worker: str) -> list[int]:
        barrier.wait(10)
        claimed = []
        for row in rows:
            with postgres.begin() as tx:
                if tx.steps.claim("a", row.position, "t", new_token=worker, owner=worker):
                    claimed.append(row.position)
        return claimed

    claimed = [position for found in pool.map(claim_all, "wxyz") for position in found]
    assert sorted(claimed) == list(range(25))


@pytest.mark.parametrize("commit", [True, False])
def test_claim_waits_for_another(
    postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor, commit: bool
) -> None:
    """A claim that meets an uncommitted one lands only if that one is rolled back."""
    ledger.row("a")
    with postgres.engine.connect() as connection:
        tx = postgres.join(connection)
        assert tx.steps.claim("a", 0, "t0", new_token="x", owner="x")
        other = in_another(pool, postgres, lambda tx: tx.steps.claim("a", 0, "t0", new_token="y", owner="y"))
        until(lambda: waiting(postgres))
        if commit:
            connection.commit()
        else:
            connection.rollback()
    assert (other.result(5) is None) is commit


def test_claim_against_withdrawal(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """A claim that meets a withdrawal does not land; a withdrawal that meets a claim leaves the row to it."""
    ledger.row("a")
    ledger.row("b")
    with postgres.begin() as tx:
        now = tx.now()
        assert tx.steps.withdraw("a", [0], ledger_at=now, first_seq=1)
        late = in_another(pool, postgres, lambda tx: tx.steps.claim("a", 0, "t0", new_token="y", owner="y"))
        until(lambda: waiting(postgres))
    assert late.result(5) is None
    with postgres.begin() as tx:
        assert tx.steps.claim("b", 0, "t0", new_token="y", owner="y")
        drained = in_another(
            pool, postgres, lambda tx: tx.steps.withdraw("b", [0], ledger_at=now, first_seq=1)
        )
        until(lambda: waiting(postgres))
    assert drained.result(5) == {}


def test_finish_against_loss(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """Of an outcome and a loss, the first to be committed counts; the other does not land."""
    ledger.running("a")
    with postgres.begin() as tx:
        assert tx.steps.lose("a", 0, "t0", new_token="x", rerun=True, max_lost=3, error=None)
        late = in_another(
            pool,
            postgres,
            lambda tx: tx.steps.finish("a", 0, "t0", state=StepState.SUCCEEDED, result="1", error=None),
        )
        until(lambda: waiting(postgres))
    assert late.result(5) is False
    assert ledger.columns("a")["state"] == "scheduled"


# --- sweeps ---


def prepare_sagas(ledger: Ledger, name: str) -> None:
    """A saga that is due."""
    ledger.saga(name, wake_at=ledger.now() - SECOND, publishes=0)


def prepare_doubtful_sagas(ledger: Ledger, name: str) -> None:
    """A saga whose message may be lost."""
    past = ledger.now() - SECOND * 60
    ledger.saga(name, wake_at=past, publishes=1, published_at=past)


def prepare_unsent(ledger: Ledger, name: str) -> None:
    """A row that was never sent."""
    ledger.row(name, publishes=0, due_at=ledger.now() - SECOND)


def prepare_doubtful(ledger: Ledger, name: str) -> None:
    """A row whose message may be lost."""
    ledger.row(name, published_at=ledger.now() - SECOND * 60)


def prepare_orphan(ledger: Ledger, name: str) -> None:
    """A row whose worker is gone."""
    ledger.running(name, owner="gone")


def prepare_overdue(ledger: Ledger, name: str) -> None:
    """A row past its deadline."""
    ledger.running(name, deadline_at=ledger.now() - SECOND)


def prepare_expired(ledger: Ledger, name: str) -> None:
    """A row that was not claimed in time."""
    ledger.row(name, expires_at=ledger.now() - SECOND)


def prepare_unfed(ledger: Ledger, name: str) -> None:
    """An outcome that waits to be fed."""
    ledger.ended(StepState.SUCCEEDED, name, finished_at=ledger.now() - SECOND * 60)
    ledger.put_saga(name, wake_at=None)


def sweep_sagas(tx: Transaction, limit: int) -> list[str]:
    """Due sagas."""
    return [
        saga.id
        for saga in tx.sagas.due(limit, republish_after=SECOND, republish_max=SECOND, presume_lost=True)
    ]


def sweep_steps(tx: Transaction, limit: int) -> list[str]:
    """Due rows."""
    found = tx.steps.due(limit, republish_after=SECOND, republish_max=SECOND, presume_lost=True)
    return [step.saga_id for step in found]


SWEEPS = {
    "sagas": (prepare_sagas, sweep_sagas),
    "doubtful sagas": (prepare_doubtful_sagas, sweep_sagas),
    "rows": (prepare_unsent, sweep_steps),
    "doubtful rows": (prepare_doubtful, sweep_steps),
    "orphans": (prepare_orphan, lambda tx, limit: [step.saga_id for step in tx.steps.orphaned(limit)]),
    "overdue": (prepare_overdue, lambda tx, limit: [step.saga_id for step in tx.steps.overdue(limit)]),
    "expired": (prepare_expired, lambda tx, limit: [step.saga_id for step in tx.steps.expired(limit)]),
    "unfed": (prepare_unfed, lambda tx, limit: tx.steps.unfed(limit, SECOND)),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_share(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor, name: str) -> None:
    """Two sweeps at once get different rows, all in all every row once, and neither waits for the other."""
    prepare, sweep = SWEEPS[name]
    for n in range(6):
        prepare(ledger, f"s{n}")
    with postgres.begin() as tx:
        first = sweep(tx, 3)
        second = in_another(pool, postgres, lambda tx: sweep(tx, 10)).result(10)
        assert len(first) == 3
        assert sorted(first + second) == [f"s{n}" for n in range(6)]


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_pass_over_what_is_held(
    postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor, name: str
) -> None:
    """What somebody is changing right now is not the sweep's business, and is not waited for."""
    prepare, sweep = SWEEPS[name]
    prepare(ledger, "free")
    prepare(ledger, "held")
    tables = postgres.tables
    with postgres.begin() as tx:
        key, table = (
            ("saga_id", tables.step) if tables.step.name in _held(name, postgres) else ("id", tables.saga)
        )
        tx.connection.execute(
            sa.select(table.c[key]).where(table.c[key] == "held").with_for_update(key_share=True)
        )
        assert in_another(pool, postgres, lambda tx: sweep(tx, 10)).result(10) == ["free"]


def _held(name: str, store: Store) -> str:
    """The table whose rows the sweep takes."""
    return (store.tables.saga if name in ("sagas", "doubtful sagas", "unfed") else store.tables.step).name


def test_sweep_sees_a_claim_that_was_committed_meanwhile(postgres: Store, ledger: Ledger) -> None:
    """A row that was claimed after the sweep began is not taken: the condition is checked on the locked row."""
    prepare_doubtful(ledger, "a")
    with postgres.begin() as tx:
        assert tx.steps.claim("a", 0, "t0", new_token="x", owner="x")
    with postgres.begin() as tx:
        assert sweep_steps(tx, 10) == []


# --- starts ---


@pytest.mark.parametrize("commit", [True, False])
def test_insert_waits_for_its_twin(
    postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor, commit: bool
) -> None:
    """A start of an id that another transaction has inserted waits for its end: one of them starts the saga."""
    with postgres.engine.connect() as connection:
        assert postgres.join(connection).sagas.insert([new_saga("a", input='"first"')]) == {"a"}
        twin = in_another(pool, postgres, lambda tx: tx.sagas.insert([new_saga("a", input='"second"')]))
        until(lambda: waiting(postgres))
        if commit:
            connection.commit()
        else:
            connection.rollback()
    assert twin.result(5) == (frozenset() if commit else {"a"})
    with postgres.read() as tx:
        row = tx.sagas.get("a")
    assert row is not None
    assert row.input == ('"first"' if commit else '"second"')


def test_bulk_inserts_do_not_deadlock(postgres: Store, pool: ThreadPoolExecutor) -> None:
    """Bulk starts over the same ids in opposite orders wait for each other; every id is inserted by one of them."""
    sagas = [new_saga(saga_id) for saga_id in "amz"]
    with postgres.engine.connect() as connection:
        # Both are held up in the middle, so that each would have what the other needs next.
        postgres.join(connection).sagas.insert([new_saga("m")])
        first = in_another(pool, postgres, lambda tx: tx.sagas.insert(sagas))
        until(lambda: waiting(postgres) == 1)
        second = in_another(pool, postgres, lambda tx: tx.sagas.insert(sagas[::-1]))
        until(lambda: waiting(postgres) == 2)
        connection.rollback()
    assert (first.result(10), second.result(10)) == (frozenset("amz"), frozenset())


# --- the ledger as a whole ---


def test_resolved_numbers_are_unique(postgres: Store, ledger: Ledger) -> None:
    """Two advances that both believed to hold the lock cannot both commit."""
    ledger.ended(StepState.SUCCEEDED, "a")
    ledger.ended(StepState.SUCCEEDED, "a", row=replace(STEP, position=1))
    with postgres.begin() as tx:
        tx.steps.resolve("a", [Resolution(position=0, seq=1)], ledger_at=tx.now())
    with pytest.raises(sa.exc.IntegrityError), postgres.begin() as tx:
        tx.steps.resolve("a", [Resolution(position=1, seq=1)], ledger_at=tx.now())


def test_wake_while_the_saga_is_held(postgres: Store, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
    """A wake-up that arrives during an advance is not overwritten by it: it waits and comes after."""
    ledger.saga("a", wake_at=None)
    now = ledger.now()
    with postgres.begin() as tx:
        held = tx.sagas.lock("a", wait=True)
        assert held is not None
        waking = in_another(pool, postgres, lambda tx: tx.sagas.wake("a", now))
        until(lambda: waiting(postgres))
        assert tx.sagas.advance(held.row, ledger.decision(SagaState.RUNNING), now=held.now)
    assert waking.result(5)
    assert ledger.saga_columns("a")["wake_at"] == now
