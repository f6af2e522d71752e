"""A worker's lease and its sweep: renewed, given back, woken, and honest about what it cannot know."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery.worker import state as worker_state
from sqlalchemy.exc import OperationalError

from sagakit.dispatch.envelope import Delivery
from sagakit.settings import Settings
from sagakit.store import Store, Transaction, WorkerInfo
from sagakit.worker.identity import Identity
from sagakit.worker.keeper import Keeper
from sagakit.worker.notices import Notice, NoticeKind, board
from tests.cluster.waiting import wait_until

OUTAGE = OperationalError("SELECT 1", {}, ConnectionError("the server is gone"))


class FragileStore(Store):
    """A store whose database can be away."""

    down = False

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction, if the database is there."""
        if self.down:
            raise OUTAGE
        with super().begin() as tx:
            yield tx


class Kept:
    """A keeper with a sweep that only writes down how it was called."""

    def __init__(self, store: FragileStore, **settings: float) -> None:
        self.store = store
        self.calls: list[dict[str, Any]] = []
        self.due_in: timedelta | None = None
        self.failure: Exception | None = None
        self.has_room = True
        self.identity = Identity()
        self.id = self.identity.become_worker()
        periods = {"heartbeat": 0.05, "lease": 0.4, "sweep_interval": 30, "republish_after": 0.2, **settings}
        self.keeper = Keeper(
            store,
            Settings(**{name: timedelta(seconds=value) for name, value in periods.items()}),
            self.identity,
            self._sweep,
            describe=lambda: WorkerInfo(id=self.id, hostname="h", pid=1),
            queues=lambda: ["celery"],
            has_room=lambda: self.has_room,
        )

    def _sweep(self, **around: Any) -> timedelta | None:
        self.calls.append(around)
        if self.failure is not None:
            raise self.failure
        return self.due_in

    def live(self) -> list[str]:
        """Workers whose lease runs."""
        with self.store.read() as tx:
            return [worker.id for worker in tx.workers.live()]

    def poked(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Poke until a sweep is called as wanted; its call."""

        def look() -> dict[str, Any] | None:
            self.identity.poke()
            return self.calls[-1] if self.calls and condition(self.calls[-1]) else None

        found = wait_until(look, 10, "a sweep to be called as wanted")
        assert found is not None
        return found


@pytest.fixture
def store(sqlite_ledger_url: str) -> Iterator[FragileStore]:
    """An empty ledger."""
    found = FragileStore(sqlite_ledger_url)
    yield found
    found.dispose()


@pytest.fixture
def make(store: FragileStore) -> Iterator[Callable[..., Kept]]:
    """Starts keepers and stops them."""
    made: list[Kept] = []

    def start(**settings: float) -> Kept:
        kept = Kept(store, **settings)
        made.append(kept)
        kept.keeper.start()
        return kept

    board.take()
    yield start
    for kept in made:
        kept.store.down = False
        kept.keeper.stop()
        kept.identity.resign()


def test_the_lease_lives_until_it_is_given_back(make: Callable[..., Kept], store: FragileStore) -> None:
    """Taken before the first message, renewed well beyond its length, and gone at once when the worker stops."""
    kept = make()
    assert kept.live() == [kept.id]
    with store.read() as tx:
        taken = tx.workers.live()[0]

    def is_renewed() -> bool:
        with store.read() as tx:
            [worker] = tx.workers.live()
            return worker.renewed_at - taken.started_at > timedelta(seconds=0.8)

    wait_until(is_renewed, what="the lease to outlive its first length")
    kept.keeper.stop()
    assert kept.live() == []
    kept.keeper.stop()  # once is enough


def test_a_lease_that_was_swept_away_is_taken_anew(make: Callable[..., Kept], store: FragileStore) -> None:
    """Somebody cleaned the table up."""
    kept = make()
    with store.begin() as tx:
        tx.workers.remove(kept.id)
    wait_until(lambda: kept.live() == [kept.id], what="the worker to register again")


def test_the_sweep_sleeps_until_something_is_due_or_it_is_poked(make: Callable[..., Kept]) -> None:
    """Not to the end of its interval, if it knows better."""
    kept = make(lease=60)
    wait_until(lambda: len(kept.calls) == 1, what="the first sweep")
    kept.due_in = timedelta(milliseconds=150)
    kept.identity.poke()
    wait_until(lambda: len(kept.calls) == 2, what="the sweep that was woken")
    kept.due_in = None
    wait_until(lambda: len(kept.calls) == 3, what="the sweep at the due time")
    assert kept.calls[-1]["queues"] == {"celery"}


def test_a_sweep_that_fails_is_repeated(make: Callable[..., Kept]) -> None:
    """Its thread does not die of it."""
    kept = make(sweep_interval=0.1)
    kept.failure = ValueError("a bug")
    count = len(kept.calls)
    wait_until(lambda: len(kept.calls) > count + 2, what="further sweeps")


def test_notices_survive_an_outage(make: Callable[..., Kept]) -> None:
    """A dead child's step would stay its worker's for ever, were the notice lost with the sweep that had taken it."""
    kept = make(sweep_interval=0.1)
    kept.failure = OUTAGE
    notice = Notice(NoticeKind.LOST, Delivery("s", 0, "t"), 1)
    board.post(notice)
    wait_until(
        lambda: [call["notices"] for call in kept.calls].count([notice]) > 2, what="it to be tried again"
    )
    kept.failure = None
    wait_until(lambda: kept.calls[-1]["notices"] == [], what="the notice to be dealt with")


def test_a_notice_that_breaks_the_sweep_is_not_tried_for_ever(make: Callable[..., Kept]) -> None:
    """Nothing else would ever be swept."""
    kept = make(sweep_interval=0.1)
    kept.failure = ValueError("a bug")
    board.post(Notice(NoticeKind.LOST, Delivery("s", 0, "t"), 1))
    wait_until(lambda: any(call["notices"] for call in kept.calls), what="the notice to be seen")
    wait_until(lambda: not kept.calls[-1]["notices"], what="it to be dropped")


def test_leases_are_trusted_after_a_whole_one(make: Callable[..., Kept]) -> None:
    """Not before: the others may have been cut off from the database, too."""
    kept = make()
    assert wait_until(lambda: kept.calls, what="the first sweep")[0]["leases_trusted"] is False
    # Woken by nobody: the sweep knows when that time is.
    wait_until(lambda: kept.calls[-1]["leases_trusted"], what="leases to be trusted")


def test_leases_are_not_trusted_after_an_outage(make: Callable[..., Kept]) -> None:
    """Until the database has been back for as long as a lease lasts."""
    kept = make()
    kept.poked(lambda call: call["leases_trusted"])
    kept.store.down = True
    kept.poked(lambda call: not call["leases_trusted"])
    kept.store.down = False
    kept.poked(lambda call: call["leases_trusted"])


def test_a_worker_to_which_nothing_comes_is_idle(
    make: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for more and nothing received for a while; a task received, or no room, ends that."""
    monkeypatch.setattr(worker_state, "total_count", counted := {})
    kept = make()
    assert wait_until(lambda: kept.calls, what="the first sweep")[0]["idle"] is False
    kept.poked(lambda call: call["idle"])
    counted["shop.charge"] = 1
    kept.poked(lambda call: not call["idle"])
    kept.poked(lambda call: call["idle"])
    kept.has_room = False
    kept.poked(lambda call: not call["idle"])
    count = len(kept.calls)
    kept.poked(lambda call: len(kept.calls) > count + 3)
    assert not any(call["idle"] for call in kept.calls[count:])


def test_it_leaves_no_thread_behind(make: Callable[..., Kept]) -> None:
    """Stopping ends both."""
    before = threading.active_count()
    kept = make()
    assert threading.active_count() == before + 2
    kept.keeper.stop()
    assert threading.active_count() == before
