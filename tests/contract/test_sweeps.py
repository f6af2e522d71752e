"""What the sweep finds among the rows: due, orphaned, overdue, expired, unfed; and when it is next needed."""

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

import pytest

from sagakit.states import OPEN_SAGA_STATES, Kind, SagaState, StepState
from sagakit.store import DueStep, RunningStep, Store
from tests.contract.ledgers import COMPENSATION, PROBE, STEP, TIMER, Ledger

SECOND = timedelta(seconds=1)
SOON = timedelta(seconds=60)

# --- due ---


def due(
    store: Store,
    *,
    after: float = 5,
    maximum: float = 600,
    lost: bool = False,
    queues: Collection[str | None] | None = None,
    limit: int = 10,
) -> list[str]:
    """Ids of the sagas whose row is due now."""
    with store.begin() as tx:
        found = tx.steps.due(
            limit,
            republish_after=timedelta(seconds=after),
            republish_max=timedelta(seconds=maximum),
            queues=queues,
            presume_lost=lost,
        )
    return sorted(step.saga_id for step in found)


def test_due_takes_unsent_rows_once(store: Store, ledger: Ledger) -> None:
    """A row whose due time has come and whose message was never sent is taken, and then counts as sent."""
    now = ledger.now()
    ledger.row("past", replace(STEP, queue="q", priority=3), due_at=now - SECOND, publishes=0, attempt=2)
    ledger.row("future", due_at=now + SOON, publishes=0)
    ledger.row("sent")
    with store.begin() as tx:
        [taken] = tx.steps.due(10, republish_after=SECOND, republish_max=SECOND, presume_lost=False)
    assert taken == DueStep(
        saga_id="past",
        saga_name="shop.checkout",
        position=0,
        kind=Kind.STEP,
        name="charge",
        task="shop.charge",
        token="t0",
        queue="q",
        priority=3,
        publishes=1,
        attempt=2,
    )
    assert due(store) == []
    assert ledger.columns("past")["published_at"] >= now


def test_not_sent_takes_a_publish_back(store: Store, ledger: Ledger) -> None:
    """A row whose message could not be sent counts as never sent; one that has moved on since is left alone."""
    past = ledger.now() - SECOND
    for saga_id in ("waits", "claimed", "anew"):
        ledger.row(saga_id, due_at=past, publishes=0)
    with store.begin() as tx:
        taken = tx.steps.due(10, republish_after=SECOND, republish_max=SECOND, presume_lost=False)
        assert tx.steps.claim("claimed", 0, "t0", new_token="new", owner="w") is not None
    with store.begin() as tx:
        tx.steps.not_sent([step if step.saga_id != "anew" else replace(step, token="old") for step in taken])
    assert due(store) == ["waits"]
    assert ledger.columns("claimed")["publishes"] == 1
    assert ledger.columns("anew")["publishes"] == 1


def test_due_takes_what_workers_run(store: Store, ledger: Ledger) -> None:
    """Steps, compensations and probes are sent; timers are the coordinator's."""
    past = ledger.now() - SECOND
    for row in (STEP, COMPENSATION, PROBE, TIMER):
        ledger.row(row.kind, row, due_at=past, publishes=0)
        ledger.row(f"{row.kind}-sent", row, publishes=1, published_at=past - SOON)
    kinds = ("compensation", "probe", "step")
    assert due(store, lost=True) == sorted([*kinds, *(f"{kind}-sent" for kind in kinds)])


def test_due_takes_scheduled_rows_only(store: Store, ledger: Ledger) -> None:
    """What runs or has ended is not sent again."""
    past = ledger.now() - SOON
    for state in frozenset(StepState) - {StepState.SCHEDULED}:
        ledger.row(f"{state}-new", state=state.value, owner="w", due_at=past, publishes=0)
        ledger.row(f"{state}-sent", state=state.value, owner="w", publishes=1, published_at=past)
    assert due(store, lost=True) == []


def test_due_takes_rows_of_open_sagas_only(store: Store, ledger: Ledger) -> None:
    """Nothing is sent for a saga that has ended, is stuck or is paused."""
    past = ledger.now() - SOON
    for state in SagaState:
        ledger.saga(f"{state}-new", state)
        ledger.row(f"{state}-new", due_at=past, publishes=0)
        ledger.saga(f"{state}-sent", state)
        ledger.row(f"{state}-sent", publishes=1, published_at=past)
    expected = sorted(f"{state}-{kind}" for state in OPEN_SAGA_STATES for kind in ("new", "sent"))
    assert due(store, lost=True, limit=100) == expected


def test_due_doubts_messages_only_when_told(store: Store, ledger: Ledger) -> None:
    """A message that was sent is sent again, token kept, only if messages are presumed lost and its time is up."""
    now = ledger.now()
    ledger.row("a", published_at=now - SECOND * 10)
    ledger.row("later", published_at=now - SECOND * 10, due_at=now + SOON)
    assert due(store, after=5) == []
    assert due(store, after=15, lost=True) == []
    assert due(store, after=5, lost=True) == ["a"]
    assert due(store, after=5, lost=True) == []
    assert (ledger.columns("a")["token"], ledger.columns("a")["publishes"]) == ("t0", 2)


def test_due_backs_off(store: Store, ledger: Ledger) -> None:
    """The interval between sendings doubles each time, up to its ceiling."""
    ledger.row("a")
    for publishes, interval in ((1, 4), (2, 8), (3, 16), (4, 20), (60, 20)):
        now = ledger.now()
        ledger.put_row("a", 0, publishes=publishes, published_at=now - SECOND * (interval - 2))
        assert due(store, after=4, maximum=20, lost=True) == [], publishes
        ledger.put_row("a", 0, publishes=publishes, published_at=now - SECOND * interval)
        assert due(store, after=4, maximum=20, lost=True) == ["a"], publishes


def test_due_by_queue(store: Store, ledger: Ledger) -> None:
    """Doubtful rows are taken for the queues named, `None` for no queue; what was never sent is taken for any."""
    past = ledger.now() - SOON
    for queue in ("x", "y", None):
        ledger.row(f"sent-{queue}", replace(STEP, queue=queue), published_at=past)
        ledger.row(f"new-{queue}", replace(STEP, queue=queue), publishes=0, due_at=past)
    assert due(store, lost=True, queues=[]) == ["new-None", "new-x", "new-y"]
    assert due(store, lost=True, queues=["x", "z"]) == ["sent-x"]
    assert due(store, lost=True, queues=[None]) == ["sent-None"]
    assert due(store, lost=True) == ["sent-y"]


def test_due_is_bounded(store: Store, ledger: Ledger) -> None:
    """The limit holds over both kinds together; what was never sent goes first."""
    past = ledger.now() - SOON
    for n in range(3):
        ledger.row(f"new{n}", due_at=past, publishes=0)
        ledger.row(f"old{n}", published_at=past)
    assert due(store, lost=True, limit=4)[:3] == ["new0", "new1", "new2"]
    assert len(due(store, lost=True, limit=10)) == 2


# --- orphaned, overdue, expired ---


def found(steps: list[RunningStep]) -> list[str]:
    """Their sagas."""
    return sorted(step.saga_id for step in steps)


def test_orphaned(store: Store, ledger: Ledger) -> None:
    """Rows that run under a worker without a lease, or with one that ran out, are orphans; no others are."""
    ledger.worker("alive")
    ledger.worker("late", timedelta(seconds=-1))
    for owner in ("alive", "late", "gone"):
        ledger.running(owner, replace(STEP, queue="q"), owner=owner, lost=1)
    ledger.row("waiting", owner="gone")
    ledger.ended(StepState.SUCCEEDED, "ended", owner="gone")
    with store.begin() as tx:
        orphans = tx.steps.orphaned(10)
        assert len(tx.steps.orphaned(1)) == 1
    assert found(orphans) == ["gone", "late"]
    assert orphans[found(orphans).index("gone")] in orphans
    assert next(step for step in orphans if step.saga_id == "gone") == RunningStep(
        saga_id="gone",
        position=0,
        kind=Kind.STEP,
        name="charge",
        task="shop.charge",
        token="t0",
        owner="gone",
        attempt=1,
        lost=1,
        queue="q",
    )


def test_orphaned_of_some_tasks(store: Store, ledger: Ledger) -> None:
    """Asked for certain tasks, rows of others do not come, nor fill the limit."""
    for number in range(3):
        ledger.running(f"foreign{number}", replace(STEP, task="other.task"), owner="gone")
    ledger.running("own", owner="gone")
    ledger.running("second", replace(STEP, task="shop.ship"), owner="gone")
    ledger.worker("alive")
    ledger.running("served", owner="alive")
    with store.begin() as tx:
        assert found(tx.steps.orphaned(1, tasks=["shop.charge"])) == ["own"]
        assert found(tx.steps.orphaned(9, tasks=["shop.charge", "shop.ship"])) == ["own", "second"]
        assert tx.steps.orphaned(9, tasks=["nobody.has"]) == []
        assert tx.steps.orphaned(9, tasks=[]) == []
        assert len(tx.steps.orphaned(9)) == 5


def test_overdue(store: Store, ledger: Ledger) -> None:
    """Rows that run past their deadline are found; ones that ended, or have none, are not."""
    now = ledger.now()
    ledger.running("over", deadline_at=now - SECOND)
    ledger.running("under", deadline_at=now + SOON)
    ledger.running("without")
    ledger.ended(StepState.SUCCEEDED, "ended", deadline_at=now - SECOND)
    with store.begin() as tx:
        assert found(tx.steps.overdue(10)) == ["over"]
        assert tx.steps.overdue(0) == []


def test_expired(store: Store, ledger: Ledger) -> None:
    """Rows that were not claimed in time are found; claimed ones, and timers, are not."""
    now = ledger.now()
    ledger.row("expired", expires_at=now - SECOND)
    ledger.row("fresh", expires_at=now + SOON)
    ledger.row("without")
    ledger.running("claimed", expires_at=now - SECOND)
    ledger.row("timer", TIMER, expires_at=now - SECOND)
    with store.begin() as tx:
        assert found(tx.steps.expired(10)) == ["expired"]
        assert tx.steps.expired(0) == []


# --- unfed ---


def test_unfed(store: Store, ledger: Ledger) -> None:
    """Open sagas with an outcome that waits for long enough are found, each once."""
    now = ledger.now()
    ledger.ended(StepState.SUCCEEDED, "waits", finished_at=now - SECOND * 10)
    ledger.ended(StepState.FAILED, "waits", row=replace(STEP, position=1), finished_at=now - SECOND * 10)
    ledger.ended(StepState.SUCCEEDED, "recent", finished_at=now)
    ledger.ended(StepState.SUCCEEDED, "fed", finished_at=now - SECOND * 10, resolved_seq=1)
    ledger.row("open", finished_at=now - SECOND * 10)
    for name in ("waits", "recent", "fed", "open"):
        ledger.put_saga(name, wake_at=None)
    with store.begin() as tx:
        assert tx.steps.unfed(10, SECOND * 5) == ["waits"]
        assert sorted(tx.steps.unfed(10, SECOND * 0)) == ["recent", "waits"]
        assert len(tx.steps.unfed(1, SECOND * 0)) == 1


def test_unfed_of_open_sagas_only(store: Store, ledger: Ledger) -> None:
    """A saga that has ended, is stuck or is paused has nobody to feed."""
    past = ledger.now() - SECOND * 10
    for state in SagaState:
        ledger.saga(state, state, wake_at=None)
        ledger.ended(StepState.SUCCEEDED, state, finished_at=past)
    with store.begin() as tx:
        assert sorted(tx.steps.unfed(100, SECOND)) == sorted(OPEN_SAGA_STATES)


def test_unfed_leaves_out_what_is_woken_anyway(store: Store, ledger: Ledger) -> None:
    """A saga that is due to be woken is not found a second time; one that is woken later is."""
    now = ledger.now()
    for name, wake_at in (("due", now - SECOND), ("later", now + SOON)):
        ledger.saga(name, wake_at=wake_at)
        ledger.ended(StepState.SUCCEEDED, name, finished_at=now - SECOND * 10)
    with store.begin() as tx:
        assert tx.steps.unfed(10, SECOND) == ["later"]


# --- one row, one saga ---


def test_running_looks_at_one_row(store: Store, ledger: Ledger) -> None:
    """A row is answered if it runs, and nothing otherwise."""
    ledger.running()
    ledger.row(row=replace(STEP, position=1))
    with store.read() as tx:
        found = tx.steps.running("s", 0)
        assert found is not None
        assert (found.saga_id, found.position, found.token, found.owner) == ("s", 0, "t0", "w")
        assert tx.steps.running("s", 1) is None
        assert tx.steps.running("other", 0) is None


def test_token_looks_at_one_row(store: Store, ledger: Ledger) -> None:
    """The token that is current, whatever state the row is in."""
    ledger.running()
    ledger.row(row=replace(STEP, position=1))
    with store.read() as tx:
        assert [tx.steps.token("s", position) for position in range(3)] == ["t0", "t1", None]


def test_hurry(store: Store, ledger: Ledger) -> None:
    """Everything of one saga that waits for a time is due now, and taken; what is on its way is not."""
    now = ledger.now()
    ledger.row("s", due_at=now + SOON, publishes=0)
    ledger.row("s", replace(STEP, position=1), due_at=now - SECOND, publishes=0)
    ledger.row("s", replace(STEP, position=2))
    ledger.row("other", due_at=now + SOON, publishes=0)
    with store.begin() as tx:
        taken = tx.steps.hurry("s")
        assert sorted(step.position for step in taken) == [0, 1]
        assert tx.steps.claim("s", 0, "t0", new_token="x", owner="w")
    assert ledger.columns("other")["due_at"] == now + SOON


# --- when the sweep is next needed ---


def next_due(store: Store) -> object:
    """When something is due that was never sent."""
    with store.read() as tx:
        return tx.queries.next_due()


def test_next_due_is_the_earliest(store: Store, ledger: Ledger) -> None:
    """The earliest wake or due time counts, of sagas and rows alike."""
    assert next_due(store) is None
    now = ledger.now()
    ledger.saga("wakes", wake_at=now + SECOND * 30, publishes=0)
    assert next_due(store) == now + SECOND * 30
    ledger.row("row", due_at=now + SECOND * 20, publishes=0)
    assert next_due(store) == now + SECOND * 20
    ledger.row("timer", TIMER, due_at=now + SECOND * 5)
    assert next_due(store) == now + SECOND * 20
    ledger.saga("earlier", wake_at=now + SECOND * 10, publishes=0)
    assert next_due(store) == now + SECOND * 10


def test_next_due_passes_over_what_was_sent(store: Store, ledger: Ledger) -> None:
    """What was sent needs no waking for; a doubtful message is looked for at the sweep's own pace."""
    past = ledger.now() - SECOND
    ledger.saga("saga", wake_at=past, publishes=1)
    ledger.row("row", due_at=past, publishes=1)
    assert next_due(store) is None


@pytest.mark.parametrize("state", sorted(frozenset(SagaState) - OPEN_SAGA_STATES))
def test_next_due_passes_over_closed_sagas(store: Store, ledger: Ledger, state: SagaState) -> None:
    """The sweep does not spin on rows that it would not take."""
    past = ledger.now() - SECOND
    ledger.saga("a", state, wake_at=past, publishes=0)
    ledger.row("a", due_at=past, publishes=0)
    assert next_due(store) is None
