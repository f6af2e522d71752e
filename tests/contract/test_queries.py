"""What can be asked of a ledger: a saga's record, lists, counts; workers, attempts and the audit trail."""

from dataclasses import replace
from datetime import timedelta

import pytest

from sagakit.errors import ErrorInfo
from sagakit.history import AttemptRecord
from sagakit.states import SagaState, StepState
from sagakit.store import Store, WorkerInfo
from tests.contract.ledgers import COMPENSATION, STEP, TIMER, Ledger, new_saga

SECOND = timedelta(seconds=1)
ERROR = ErrorInfo(type="shop.Declined", message="no", fields={"reason": "funds"}, step="charge")

# --- the record of a saga ---


def test_record(store: Store, ledger: Ledger) -> None:
    """A record has the saga, its rows with decoded data, its failed attempts, and what operators did."""
    with store.begin() as tx:
        tx.sagas.insert([new_saga("s", tags={"order": 42}, priority=2, input='{"a":[1,2]}')])
    ledger.ended(
        StepState.SUCCEEDED, row=replace(STEP, queue="q", path="1:0"), result='{"id":7}', resolved_seq=1
    )
    ledger.ended(StepState.FAILED, row=COMPENSATION, retries=2, lost=1, abandoned=True)
    with store.begin() as tx:
        tx.attempts.record("s", 1, 1, error=ERROR, owner="w", outcome="retried")
        tx.audit.write("s", action="compensate", actor="ann", reason="PSP is back", detail={"n": 1})
        record = tx.queries.record("s")
    assert record is not None
    assert (record.id, record.name, record.version, record.state) == (
        "s",
        "shop.checkout",
        1,
        SagaState.PENDING,
    )
    assert (record.input, record.tags, record.priority) == ({"a": [1, 2]}, {"order": 42}, 2)
    step, compensation = record.steps
    assert (step.args, step.result, step.queue, step.path) == ([1], {"id": 7}, "q", "1:0")
    assert (step.compensatable, step.compensation, step.resolved_seq) == (True, "shop.refund", 1)
    assert (compensation.compensates, compensation.retries, compensation.lost) == (0, 2, 1)
    assert (compensation.compensatable, compensation.compensation, compensation.abandoned) == (
        False,
        None,
        True,
    )
    [attempt] = record.attempts
    assert (attempt.position, attempt.attempt, attempt.outcome, attempt.error) == (1, 1, "retried", ERROR)
    [entry] = record.audit
    assert (entry.action, entry.actor, entry.reason, entry.detail) == (
        "compensate",
        "ann",
        "PSP is back",
        {"n": 1},
    )


def test_record_of_a_missing_saga(store: Store) -> None:
    """There is no record of an id that was never inserted."""
    with store.read() as tx:
        assert tx.queries.record("nobody") is None


# --- lists ---


def ids(store: Store, **filters: object) -> list[str]:
    """Ids of the sagas found."""
    with store.read() as tx:
        return [saga.id for saga in tx.queries.find(**filters)]  # type: ignore[arg-type]


def test_find_is_newest_first(store: Store, ledger: Ledger) -> None:
    """Sagas of all states come in one list, newest first, cut to the limit."""
    now = ledger.now()
    for n, state in enumerate(SagaState):
        ledger.saga(f"s{n}", state, created_at=now + SECOND * n)
    expected = [f"s{n}" for n in reversed(range(len(SagaState)))]
    assert ids(store) == expected
    assert ids(store, limit=3) == expected[:3]
    with store.read() as tx:
        newest = tx.queries.find(limit=1)[0]
    assert (newest.name, newest.version, newest.created_at) == ("shop.checkout", 1, now + SECOND * 7)


def test_find_goes_on_after_a_page(store: Store, ledger: Ledger) -> None:
    """Pages join without gap or overlap, even among sagas of one instant."""
    now = ledger.now()
    for n in range(7):
        ledger.saga(f"s{n}", list(SagaState)[n % 3], created_at=now)
    found, page = [], ids(store, limit=2)
    while page:
        found += page
        page = ids(store, limit=2, after=page[-1])
    assert found == [f"s{n}" for n in reversed(range(7))]


def test_find_filters(store: Store, ledger: Ledger) -> None:
    """State, name and age narrow the list down, alone and together."""
    now = ledger.now()
    ledger.saga("old", SagaState.COMPLETED, created_at=now - SECOND * 100)
    ledger.saga("new", SagaState.RUNNING, name="other", failed_step="charge")
    assert ids(store, states=[SagaState.RUNNING, SagaState.STUCK]) == ["new"]
    assert ids(store, states=[]) == []
    assert ids(store, name="other") == ["new"]
    assert ids(store, older_than=SECOND * 50) == ["old"]
    assert ids(store, newer_than=SECOND * 50) == ["new"]
    assert ids(store, newer_than=SECOND * 50, states=[SagaState.COMPLETED]) == []
    assert ids(store, newer_than=SECOND * 500, older_than=SECOND * 50, name="shop.checkout") == ["old"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"order": 42}, ["a"]),
        ({"order": "42"}, ["b"]),
        ({"order": 42, "who": "ann"}, ["a"]),
        ({"order": 42, "who": "bob"}, []),
        ({"order": None}, []),
        ({"it's": '"; drop'}, ["c"]),
        ({"vip": True}, ["c"]),
        ({"vip": 1}, []),
        ({}, ["a", "b", "c", "d"]),
    ],
)
def test_find_by_tags(store: Store, wanted: dict[str, object], found: list[str]) -> None:
    """A saga is found by some of its tags, each with its very value and type."""
    with store.begin() as tx:
        tx.sagas.insert(
            [
                new_saga("a", tags={"order": 42, "who": "ann", "x": "y"}),
                new_saga("b", tags={"order": "42"}),
                new_saga("c", tags={"it's": '"; drop', "vip": True}),
                new_saga("d"),
            ]
        )
    assert sorted(ids(store, tags=wanted)) == found


# --- counts and states ---


def test_count_by_state(store: Store, ledger: Ledger) -> None:
    """Sagas are counted by state, all or of one name; states without any are left out."""
    ledger.saga("a")
    ledger.saga("b")
    ledger.saga("c", SagaState.STUCK, name="other")
    with store.read() as tx:
        assert tx.queries.count_by_state() == {SagaState.RUNNING: 2, SagaState.STUCK: 1}
        assert tx.queries.count_by_state("other") == {SagaState.STUCK: 1}
        assert tx.queries.count_by_state("nobody") == {}


def test_ended(store: Store, ledger: Ledger) -> None:
    """Of the ids asked for, those that are terminal or stuck are answered, however many are asked for."""
    for state in SagaState:
        ledger.saga(state, state)
    ended = {"completed", "compensated", "compensation_failed", "stuck"}
    with store.read() as tx:
        assert tx.queries.ended(SagaState) == {name: SagaState(name) for name in ended}
        assert tx.queries.ended([f"x{n}" for n in range(2500)] + ["stuck"]) == {"stuck": SagaState.STUCK}
        assert tx.queries.ended([]) == {}


def test_ledger_id(store: Store) -> None:
    """A ledger is recognised by its id, which stays."""
    with store.read() as tx:
        first = tx.queries.ledger_id()
    with store.read() as tx:
        assert tx.queries.ledger_id() == first
    assert len(first) == 36


def test_oldest_unclaimed(store: Store, ledger: Ledger) -> None:
    """Sent and unclaimed rows are counted by queue, with the time of the oldest, which comes first."""
    now = ledger.now()
    ledger.row("a", replace(STEP, queue="q"), published_at=now - SECOND)
    ledger.row("b", replace(STEP, queue="q"), published_at=now - SECOND * 9)
    ledger.row("c", published_at=now - SECOND * 5)
    ledger.row("unsent", publishes=0, due_at=now)
    ledger.running("running", published_at=now - SECOND * 60)
    ledger.row("timer", TIMER, publishes=1, published_at=now)
    with store.read() as tx:
        assert tx.queries.oldest_unclaimed() == [("q", 2, now - SECOND * 9), (None, 1, now - SECOND * 5)]


def test_open_versions(store: Store, ledger: Ledger) -> None:
    """Versions that still have sagas to finish are counted, those held by operators included."""
    for n, state in enumerate(SagaState):
        ledger.saga(f"s{n}", state, version=1)
    ledger.saga("v2", version=2)
    ledger.saga("other", name="other")
    with store.read() as tx:
        assert tx.queries.open_versions() == [
            ("other", 1, 1),
            ("shop.checkout", 1, 5),
            ("shop.checkout", 2, 1),
        ]


# --- workers ---

WORKER = WorkerInfo(
    id="w", hostname="h", pid=7, queues=["a", "b"], versions=["shop.checkout:1"], concurrency=4
)


def test_worker_lease(store: Store) -> None:
    """A worker is alive for its lease, which it renews; registering again replaces what it said."""
    with store.begin() as tx:
        tx.workers.register(WORKER, SECOND * 9)
        [record] = tx.workers.live()
        assert (record.queues, record.versions, record.concurrency) == (("a", "b"), ("shop.checkout:1",), 4)
        assert (record.hostname, record.pid) == ("h", 7)
        assert abs(record.expires_at - record.renewed_at - SECOND * 9) < SECOND / 10
        assert tx.workers.renew("w", SECOND * 60)
        [renewed] = tx.workers.live()
        assert renewed.expires_at > record.expires_at + SECOND * 30
        assert renewed.started_at == record.started_at
        tx.workers.register(replace(WORKER, queues=["c"]), SECOND)
        [again] = tx.workers.live()
        assert (again.queues, again.started_at) == (("c",), record.started_at)


def test_worker_expires(store: Store) -> None:
    """A worker whose lease ran out is not alive, may renew, and is purged after a while."""
    with store.begin() as tx:
        tx.workers.register(WORKER, -SECOND * 10)
        assert tx.workers.live() == []
        assert tx.workers.purge(SECOND * 20) == 0
        assert tx.workers.renew("w", SECOND)
        assert len(tx.workers.live()) == 1
        assert tx.workers.purge(SECOND * 0) == 0
        tx.workers.register(WORKER, -SECOND * 10)
        assert tx.workers.purge(SECOND * 5) == 1


def test_worker_removed(store: Store) -> None:
    """A worker that is gone cannot renew: it is told to register again. Others are not touched."""
    with store.begin() as tx:
        tx.workers.register(WORKER, SECOND)
        tx.workers.register(replace(WORKER, id="other"), -SECOND)
        assert tx.workers.remove("w")
        assert not tx.workers.remove("w")
        assert not tx.workers.renew("w", SECOND)
        assert tx.workers.live() == []
        assert tx.workers.renew("other", SECOND)


# --- attempts and audit ---


def test_attempts_are_recorded_once(store: Store, ledger: Ledger) -> None:
    """An attempt keeps the first account of it, with the start that its row has."""
    ledger.running("s")
    started = ledger.columns()["started_at"]
    with store.begin() as tx:
        assert tx.attempts.record("s", 0, 1, error=ERROR, owner="w", outcome="lost")
        assert not tx.attempts.record("s", 0, 1, error=None, owner="x", outcome="failed")
        assert tx.attempts.record("s", 0, 2, error=None, owner="x", outcome="unknown")
        record = tx.queries.record("s")
    assert record is not None
    first, second = record.attempts
    assert first == AttemptRecord(
        position=0,
        attempt=1,
        outcome="lost",
        error=ERROR,
        owner="w",
        started_at=started,
        finished_at=first.finished_at,
    )
    assert (second.attempt, second.outcome) == (2, "unknown")


def test_audit_is_kept_in_order(store: Store) -> None:
    """Entries come oldest first, also those of one instant, and need no saga to exist."""
    with store.begin() as tx:
        for n in range(20):
            tx.audit.write("s", action=f"a{n}", actor="ann", reason=None, detail={})
        tx.audit.write("other", action="x", actor="bob")
        assert [entry.action for entry in tx.audit.of("s")] == [f"a{n}" for n in range(20)]
