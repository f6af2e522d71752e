"""The ``saga`` rows: insert, lock, advance, transition, wake, rename, due."""

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest
from sqlalchemy.exc import IntegrityError

from sagakit.errors import ErrorInfo
from sagakit.states import OPEN_SAGA_STATES, SAGA_TRANSITIONS, TERMINAL_SAGA_STATES, SagaState
from sagakit.store import Store
from tests.contract.ledgers import Ledger, new_saga

SECOND = timedelta(seconds=1)
SOON = timedelta(seconds=30)
ERROR = ErrorInfo(type="shop.Declined", message="no \udc80 way\x00")

EARLIER = ErrorInfo(type="shop.Other", message="before")

# --- insert and get ---


def test_insert_reads_back(store: Store, ledger: Ledger) -> None:
    """A saga comes back as it was inserted: pending, counted as published, with a random revision."""
    deadline = ledger.now() + SOON
    saga = new_saga(
        "a", deadline_at=deadline, priority=3, tags={"order": 42, "who": "Zoë"}, wake_at_delay=SOON
    )
    with store.begin() as tx:
        assert tx.sagas.insert([saga]) == {"a"}
        row = tx.sagas.get("a")
    assert row is not None
    assert (row.state, row.name, row.version, row.input) == (SagaState.PENDING, "shop.checkout", 1, "[1]")
    assert (row.deadline_at, row.priority, row.tags) == (deadline, 3, {"order": 42, "who": "Zoë"})
    assert (row.definition_hash, row.body_done, row.last_seq, row.started_at) == ("h", False, 0, None)
    columns = ledger.saga_columns("a")
    assert (columns["publishes"], columns["published_at"] is not None) == (1, True)
    assert abs(columns["wake_at"] - columns["created_at"] - SOON) < SECOND


def test_insert_says_what_is_new(store: Store) -> None:
    """Ids that exist are left alone, within one call as well, and are not among the inserted ones."""
    with store.begin() as tx:
        assert tx.sagas.insert([new_saga("a", input="[1]")]) == {"a"}
    with store.begin() as tx:
        batch = [new_saga("b"), new_saga("a", input="[2]"), new_saga("b")]
        assert tx.sagas.insert(batch) == {"b"}
        row = tx.sagas.get("a")
        assert row is not None
        assert row.input == "[1]"
        assert tx.sagas.insert([]) == frozenset()


def test_insert_many(store: Store, ledger: Ledger) -> None:
    """Thousands go in at once, each with its own delay, and duplicates among them are found."""
    sagas = [new_saga(f"s{n}", wake_at_delay=SECOND * n) for n in range(2500)]
    with store.begin() as tx:
        tx.sagas.insert(sagas[1200:1300])
        assert len(tx.sagas.insert(sagas)) == 2400
    for n in (0, 7, 2499):
        columns = ledger.saga_columns(f"s{n}")
        assert abs(columns["wake_at"] - columns["created_at"] - SECOND * n) < SECOND


def test_revisions_start_at_random(store: Store) -> None:
    """A saga that takes over an id does not start at the revision of its predecessor."""
    with store.begin() as tx:
        tx.sagas.insert([new_saga(f"s{n}") for n in range(20)])
        revisions = {tx.sagas.get(f"s{n}").revision for n in range(20)}  # type: ignore[union-attr]
    assert len(revisions) > 10


def test_get_of_a_missing_saga(store: Store) -> None:
    """There is no row for an id that was never inserted."""
    with store.read() as tx:
        assert tx.sagas.get("nobody") is None


# --- lock ---


@pytest.mark.parametrize("wait", [True, False])
def test_lock_reads_the_row(store: Store, ledger: Ledger, wait: bool) -> None:
    """A lock answers with the row and the database's time; a missing saga with nothing."""
    before = ledger.now()
    ledger.saga("a")
    with store.begin() as tx:
        locked = tx.sagas.lock("a", wait=wait)
        assert locked is not None
        assert locked.row == tx.sagas.get("a")
        assert before <= locked.now <= tx.now()
        assert tx.sagas.lock("nobody", wait=wait) is None


# --- advance ---


def test_advance_writes_the_decision(store: Store, ledger: Ledger) -> None:
    """Everything a decision says is on the row afterwards, and the revision has moved on by one."""
    ledger.saga("a", SagaState.PENDING)
    now = ledger.now()
    decision = ledger.decision(
        SagaState.COMPENSATING,
        last_seq=3,
        error=ERROR,
        failed_step="charge",
        body_done=True,
        wake_at=now + SOON,
    )
    with store.begin() as tx:
        row = tx.sagas.get("a")
        assert row is not None
        assert tx.sagas.advance(row, decision, now=now, python="3.11", definition_hash="other")
        new = tx.sagas.get("a")
    assert new == replace(
        row,
        state=SagaState.COMPENSATING,
        last_seq=3,
        error=ERROR,
        failed_step="charge",
        body_done=True,
        revision=row.revision + 1,
        ledger_at=decision.ledger_at,
        started_at=decision.started_at,
        python="3.11",
    )
    columns = ledger.saga_columns("a")
    assert (columns["wake_at"], columns["publishes"], columns["published_at"]) == (now + SOON, 0, None)


def test_advance_keeps_what_a_decision_leaves_out(store: Store, ledger: Ledger) -> None:
    """Result, error, failed step, the end of the body, the first start and the Python version stay once written."""
    ledger.saga("a")
    first = ledger.decision(
        SagaState.COMPENSATING, error=ERROR, failed_step="charge", result="1", body_done=True
    )
    later = ledger.decision(SagaState.COMPENSATING, started_at=first.started_at + SOON)
    with store.begin() as tx:
        row = tx.sagas.get("a")
        assert row is not None
        assert tx.sagas.advance(row, first, now=first.ledger_at, python="3.11")
        row = tx.sagas.get("a")
        assert row is not None
        assert tx.sagas.advance(row, later, now=later.ledger_at, python="3.13")
        row = tx.sagas.get("a")
    assert row is not None
    assert (row.result, row.error, row.failed_step, row.body_done) == ("1", ERROR, "charge", True)
    assert (row.started_at, row.python) == (first.started_at, "3.11")


def test_advance_to_the_end_stamps_it(store: Store, ledger: Ledger) -> None:
    """A terminal state comes with the time of the end, any other without."""
    ledger.saga("a")
    decision = ledger.decision(SagaState.COMPLETED)
    with store.begin() as tx:
        row = tx.sagas.get("a")
        assert row is not None
        assert tx.sagas.advance(row, decision, now=decision.ledger_at)
        row = tx.sagas.get("a")
    assert row is not None
    assert (row.state, row.finished_at) == (SagaState.COMPLETED, decision.ledger_at)


def test_advance_is_refused_on_another_revision(store: Store, ledger: Ledger) -> None:
    """A decision made for a revision that is no longer current changes nothing."""
    ledger.saga("a")
    decision = ledger.decision(last_seq=9)
    with store.begin() as tx:
        row = tx.sagas.get("a")
        assert row is not None
        for stale in (row.revision - 1, row.revision + 1):
            assert not tx.sagas.advance(replace(row, revision=stale), decision, now=decision.ledger_at)
        assert tx.sagas.get("a") == row


def test_advance_touches_one_saga(store: Store, ledger: Ledger) -> None:
    """A decision is written to the saga it was made for, whatever revision others have."""
    ledger.saga("a", revision=7)
    ledger.saga("b", revision=7)
    decision = ledger.decision(last_seq=9)
    with store.begin() as tx:
        row = tx.sagas.get("a")
        assert row is not None
        assert tx.sagas.advance(row, decision, now=decision.ledger_at)
        other = tx.sagas.get("b")
    assert other is not None
    assert other.last_seq == 0


def test_advance_follows_the_table(store: Store, ledger: Ledger) -> None:
    """The coordinator moves open sagas along the table of transitions; what operators hold it leaves alone."""
    for source, target in product(SagaState, SagaState):
        allowed = source in OPEN_SAGA_STATES and (source is target or target in SAGA_TRANSITIONS[source])
        saga_id = ledger.saga(f"{source}-{target}", source)
        decision = ledger.decision(target)
        with store.begin() as tx:
            row = tx.sagas.get(saga_id)
            assert row is not None
            assert tx.sagas.advance(row, decision, now=decision.ledger_at) is allowed, saga_id
            new = tx.sagas.get(saga_id)
        assert new is not None
        assert new.state is (target if allowed else source)


# --- transition ---


def test_transition_follows_the_table(store: Store, ledger: Ledger) -> None:
    """An operator moves a saga along the table of transitions and no other way; an end is stamped."""
    for source, target in product(SagaState, SagaState):
        allowed = target in SAGA_TRANSITIONS[source]
        saga_id = ledger.saga(f"{source}-{target}", source)
        with store.begin() as tx:
            before = tx.sagas.get(saga_id)
            assert tx.sagas.transition(saga_id, target=target) is allowed, saga_id
            row = tx.sagas.get(saga_id)
        assert row is not None
        assert before is not None
        assert row.state is (target if allowed else source)
        assert row.revision == before.revision + (1 if allowed else 0)
        if allowed:
            assert (row.finished_at is not None) is (target in TERMINAL_SAGA_STATES)


def test_transition_from_given_states_only(store: Store, ledger: Ledger) -> None:
    """Sources may be narrowed, but not to what the table of transitions forbids."""
    ledger.saga("a", SagaState.RUNNING)
    with store.begin() as tx:
        assert not tx.sagas.transition("a", target=SagaState.STUCK, sources=frozenset({SagaState.PENDING}))
        assert not tx.sagas.transition("a", target=SagaState.STUCK, sources=frozenset())
        assert tx.sagas.transition("a", target=SagaState.STUCK, sources=frozenset({SagaState.RUNNING}))
        with pytest.raises(ValueError, match="completed cannot become running"):
            tx.sagas.transition("a", target=SagaState.RUNNING, sources=frozenset({SagaState.COMPLETED}))


def test_transition_touches_one_saga(store: Store, ledger: Ledger) -> None:
    """Other sagas stay where they are."""
    ledger.saga("a")
    ledger.saga("b")
    with store.begin() as tx:
        assert tx.sagas.transition("a", target=SagaState.PAUSED)
        other = tx.sagas.get("b")
    assert other is not None
    assert other.state is SagaState.RUNNING


def test_transition_sets_keeps_and_clears_the_error(store: Store, ledger: Ledger) -> None:
    """An error is put on, kept, or taken off; the wake time and the publishing start afresh."""
    ledger.saga("a", publishes=4)
    at = ledger.now() + SOON
    with store.begin() as tx:
        tx.sagas.transition("a", target=SagaState.STUCK, error=ERROR)
        stuck = tx.sagas.get("a")
        tx.sagas.transition("a", target=SagaState.COMPENSATING, wake_at=at)
        kept = tx.sagas.get("a")
        tx.sagas.transition("a", target=SagaState.PAUSED, clear_error=True, finished=True)
        cleared = tx.sagas.get("a")
    assert stuck is not None
    assert kept is not None
    assert cleared is not None
    assert (stuck.error, kept.error, cleared.error) == (ERROR, ERROR, None)
    assert (kept.finished_at, cleared.finished_at is not None) == (None, True)
    columns = ledger.saga_columns("a")
    assert (columns["wake_at"], columns["publishes"], columns["published_at"]) == (None, 0, None)


# --- stick ---


def test_stick_holds_open_sagas(store: Store, ledger: Ledger) -> None:
    """An open saga is held with its trouble told, its own error kept; any other stays as it is."""
    for state in SagaState:
        ledger.saga(state, state)
        ledger.put_saga(state, error=EARLIER.dumps())
        with store.begin() as tx:
            before = tx.sagas.get(state)
            assert tx.sagas.stick(state, ERROR) is (state in OPEN_SAGA_STATES), state
            row = tx.sagas.get(state)
        assert before is not None
        if state not in OPEN_SAGA_STATES:
            assert row == before
            continue
        assert row == replace(before, state=SagaState.STUCK, trouble=ERROR, revision=before.revision + 1)
        assert ledger.saga_columns(state)["wake_at"] is None


def test_transition_ends_the_trouble(store: Store, ledger: Ledger) -> None:
    """A saga that goes on has no trouble any more, and the error that it had."""
    ledger.saga("a", error=EARLIER.dumps())
    with store.begin() as tx:
        tx.sagas.stick("a", ERROR)
        tx.sagas.transition("a", target=SagaState.RUNNING)
        row = tx.sagas.get("a")
    assert row is not None
    assert (row.trouble, row.error) == (None, EARLIER)


# --- wake ---


def test_wake_brings_forward(store: Store, ledger: Ledger) -> None:
    """A wake time is set, or brought forward, never put off; the message counts as unsent."""
    at = ledger.now()
    ledger.saga("a", wake_at=None, publishes=3)
    with store.begin() as tx:
        assert tx.sagas.wake("a", at)
    assert ledger.saga_columns("a")["wake_at"] == at
    assert ledger.saga_columns("a")["publishes"] == 0
    with store.begin() as tx:
        assert tx.sagas.wake("a", at + SOON)
    assert ledger.saga_columns("a")["wake_at"] == at
    with store.begin() as tx:
        assert tx.sagas.wake("a", at - SOON)
    assert ledger.saga_columns("a")["wake_at"] == at - SOON


def test_wake_leaves_closed_sagas_alone(store: Store, ledger: Ledger) -> None:
    """A saga that has ended, is stuck or is paused is not woken."""
    for state in sorted(frozenset(SagaState) - OPEN_SAGA_STATES):
        ledger.saga(state, state, wake_at=None)
        with store.begin() as tx:
            assert not tx.sagas.wake(state, tx.now())
        assert ledger.saga_columns(state)["wake_at"] is None


# --- rename ---


def test_rename_takes_everything_along(store: Store, ledger: Ledger) -> None:
    """Steps, attempts and audit follow a saga to its new id; the old id is free again."""
    ledger.row("a")
    with store.begin() as tx:
        tx.attempts.record("a", 0, 1, error=None, owner=None, outcome="failed")
        tx.audit.write("a", action="cancel", actor="ann")
        tx.sagas.insert([new_saga("b")])
        assert tx.sagas.rename("a", "a~1", state_in=frozenset({SagaState.RUNNING}))
        record = tx.queries.record("a~1")
        assert tx.queries.record("a") is None
        assert tx.audit.of("a") == []
        assert tx.sagas.insert([new_saga("a")]) == {"a"}
    assert record is not None
    assert (len(record.steps), len(record.attempts), len(record.audit)) == (1, 1, 1)


def test_rename_only_in_the_given_states(store: Store, ledger: Ledger) -> None:
    """A saga in another state keeps its id, and so does its audit trail."""
    ledger.saga("a", SagaState.RUNNING)
    with store.begin() as tx:
        tx.audit.write("a", action="cancel", actor="ann")
        assert not tx.sagas.rename("a", "b", state_in=frozenset({SagaState.COMPENSATED}))
        assert len(tx.audit.of("a")) == 1


def test_rename_to_a_taken_id(store: Store, ledger: Ledger) -> None:
    """Two sagas cannot have one id."""
    ledger.saga("a")
    ledger.saga("b")
    with pytest.raises(IntegrityError), store.begin() as tx:
        tx.sagas.rename("a", "b", state_in=frozenset({SagaState.RUNNING}))


# --- due ---


def due(
    store: Store, *, after: float = 0, maximum: float = 600, lost: bool = False, limit: int = 10
) -> list[str]:
    """Ids of the sagas that are due now."""
    with store.begin() as tx:
        found = tx.sagas.due(
            limit,
            republish_after=timedelta(seconds=after),
            republish_max=timedelta(seconds=maximum),
            presume_lost=lost,
        )
    return sorted(saga.id for saga in found)


def test_due_takes_unsent_sagas_once(store: Store, ledger: Ledger) -> None:
    """An open saga whose wake time has come and whose message was never sent is taken, and then counts as sent."""
    now = ledger.now()
    ledger.saga("past", SagaState.COMPENSATING, wake_at=now - SECOND, publishes=0, priority=7)
    ledger.saga("future", wake_at=now + SOON, publishes=0)
    ledger.saga("never", wake_at=None, publishes=0)
    with store.begin() as tx:
        [taken] = tx.sagas.due(10, republish_after=SECOND, republish_max=SECOND, presume_lost=False)
    assert (taken.id, taken.name, taken.version) == ("past", "shop.checkout", 1)
    assert (taken.state, taken.priority, taken.publishes) == (SagaState.COMPENSATING, 7, 1)
    assert due(store) == []
    columns = ledger.saga_columns("past")
    assert (columns["wake_at"], columns["published_at"] >= now) == (now - SECOND, True)


def test_due_takes_open_sagas_only(store: Store, ledger: Ledger) -> None:
    """Nothing is sent for a saga that has ended, is stuck or is paused."""
    past = ledger.now() - SOON
    for state in SagaState:
        ledger.saga(f"{state}-new", state, wake_at=past, publishes=0, published_at=None)
        ledger.saga(f"{state}-sent", state, wake_at=past, publishes=1, published_at=past)
    expected = sorted(f"{state}-{kind}" for state in OPEN_SAGA_STATES for kind in ("new", "sent"))
    assert due(store, after=5, lost=True, limit=100) == expected


def test_due_doubts_messages_only_when_told(store: Store, ledger: Ledger) -> None:
    """A message that was sent is sent again only if messages are presumed lost, and its time is up."""
    now = ledger.now()
    ledger.saga("a", wake_at=now - SOON, publishes=1, published_at=now - SECOND * 10)
    ledger.saga("later", wake_at=now + SOON, publishes=1, published_at=now - SECOND * 10)
    assert due(store, after=5) == []
    assert due(store, after=15, lost=True) == []
    assert due(store, after=5, lost=True) == ["a"]
    assert due(store, after=5, lost=True) == []


def test_due_backs_off(store: Store, ledger: Ledger) -> None:
    """The interval between sendings doubles each time, up to its ceiling."""
    ledger.saga("a")
    for publishes, interval in ((1, 4), (2, 8), (3, 16), (4, 20), (60, 20)):
        now = ledger.now()
        sent = {"wake_at": now - SOON, "publishes": publishes}
        ledger.put_saga("a", **sent, published_at=now - SECOND * (interval - 2))
        assert due(store, after=4, maximum=20, lost=True) == [], publishes
        ledger.put_saga("a", **sent, published_at=now - SECOND * interval)
        assert due(store, after=4, maximum=20, lost=True) == ["a"], publishes


def test_due_is_bounded(store: Store, ledger: Ledger) -> None:
    """The limit holds over both kinds together; what was never sent goes first."""
    past = ledger.now() - SOON
    for n in range(3):
        ledger.saga(f"new{n}", wake_at=past, publishes=0)
        ledger.saga(f"old{n}", wake_at=past, publishes=1, published_at=past)
    assert due(store, lost=True, limit=4)[:3] == ["new0", "new1", "new2"]
    assert len(due(store, lost=True, limit=4, after=10)) == 2
