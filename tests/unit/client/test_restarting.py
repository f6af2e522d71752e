"""A saga that was undone begins another life, or is undone further: what is new then, and what is kept."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery

from sagakit import Saga, SagaKit, current_step
from sagakit.clock import utcnow
from sagakit.dispatch.envelope import Envelope
from sagakit.states import SagaState, StepState
from sagakit.store import Transaction
from sagakit.worker.identity import identity
from tests.contract.ledgers import until


class Shop:
    """A saga that is undone as long as it is told to fail.

    Attributes:
        seen: what each call says of itself: step, idempotency key, Celery task id.
        broken: names of steps and compensations that fail.
    """

    def __init__(self, url: str, *, eager: bool) -> None:
        app = Celery("restarting", broker="memory://", set_as_current=False)
        app.conf.task_always_eager = eager
        self.kit = SagaKit(app, database_url=url)
        self.seen: list[tuple[str, str, str]] = []
        self.broken: set[str] = set()

        @self.kit.step(name="shop.reserve", max_retries=1)
        def reserve(number: int) -> int:
            self.note("reserve")
            self.meanwhile()
            return number

        @reserve.compensation(max_retries=0)
        def release(result: int) -> None:
            self.note("release")

        @self.kit.step(name="shop.charge")
        def charge(number: int) -> int:
            self.note("charge")
            return number

        @self.kit.step(name="shop.keep")
        def keep() -> int:
            return 0

        @keep.compensation
        def drop(result: int) -> None:
            self.note("drop")

        @self.kit.saga(name="shop.checkout")
        async def checkout(saga: Saga, number: int) -> int:
            return await saga.step(charge, await saga.step(reserve, number))

        @self.kit.saga(name="shop.hasty")
        async def hasty(saga: Saga) -> str:
            await saga.step(keep)
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await saga.step(reserve, 1)
            return "done"

        self.checkout, self.hasty = checkout, hasty
        app.finalize()

    def note(self, name: str) -> None:
        """One call."""
        self.seen.append((name, current_step.idempotency_key, current_step.request.id))
        if name in self.broken:
            raise OSError(f"no {name} today")

    def meanwhile(self) -> None:
        """What happens while a step runs."""

    def again(self, number: int, **options: Any) -> Any:
        """Start the order anew."""
        return self.checkout.start(number, saga_id="order", if_exists="restart_if_compensated", **options)


@pytest.fixture
def shop(request: pytest.FixtureRequest, sqlite_ledger_url: str) -> Iterator[Shop]:
    """One that runs eagerly, unless the test says otherwise."""
    before = (identity.worker_id, identity.wakeup)
    found = Shop(sqlite_ledger_url, eager=getattr(request, "param", True))
    yield found
    found.kit.store.dispose()
    found.kit.app.close()
    identity._worker_id, identity.wakeup = before


def test_each_life_has_keys_of_its_own(shop: Shop) -> None:
    """A service that remembers the first life's keys does not answer the second with what has been undone."""
    monkey: Any = shop
    monkey.meanwhile = lambda: current_step.attempt == 1 and current_step.retry()
    shop.broken = {"charge"}
    assert shop.again(1).status() == SagaState.COMPENSATED
    assert shop.again(2).status() == SagaState.COMPENSATED
    shop.broken = set()
    assert shop.again(3).result(0) == 3
    lives = [shop.seen[:4], shop.seen[4:8], shop.seen[8:]]
    for number, life in enumerate(lives):
        name = f"order~{number}" if number else "order"
        expected = [
            ("reserve", f"{name}:0", f"{name}.0"),
            ("reserve", f"{name}:0", f"{name}.0"),
            ("charge", f"{name}:1", f"{name}.1"),
            ("release", f"{name}:2", f"{name}.2"),
        ]
        assert life == (expected if number < 2 else expected[:3])


def test_earlier_lives_are_kept(shop: Shop) -> None:
    """The old ledger stays, under an id of its own."""
    shop.broken = {"charge"}
    shop.again(1)
    before = shop.kit.get("order").history()
    shop.broken = set()
    shop.again(2)
    old = [summary for summary in shop.kit.find() if summary.id != "order"]
    assert [summary.id.startswith("order~") for summary in old] == [True]
    kept = shop.kit.get(old[0].id).history()
    assert (kept.state, kept.steps) == (SagaState.COMPENSATED, before.steps)
    assert shop.kit.get("order").status() == SagaState.COMPLETED


def test_replay_of_what_a_completed_body_abandoned(shop: Shop) -> None:
    """A body that succeeded left a step behind whose compensation failed: replayed, the saga is completed."""
    monkey: Any = shop
    monkey.meanwhile = lambda: shop.kit.advancer.advance("order", not_before=utcnow() + timedelta(minutes=1))
    shop.broken = {"release"}
    handle = shop.hasty.start(saga_id="order")
    assert handle.status() == SagaState.COMPENSATION_FAILED
    plan = handle.compensate(reason="still broken")
    assert [undo.step for undo in plan.undo] == ["reserve"]
    assert handle.status() == SagaState.COMPENSATION_FAILED
    shop.broken = set()
    handle.compensate(reason="fixed")
    assert handle.status() == SagaState.COMPLETED
    assert handle.result(0) == "done"
    assert [name for name, *_ in shop.seen] == ["reserve", "release", "release", "release"]
    assert [row.state for row in handle.history().steps if row.name == "release"] == [StepState.SUCCEEDED]


@pytest.mark.parametrize("shop", [False], indirect=True)
def test_a_restart_is_published_after_its_commit(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id was there before: what shows that the commit is through is the new life, not any row of this name."""
    sent: list[Envelope] = []
    outbox: Any = type("Outbox", (), {"publish": staticmethod(lambda envelopes: _keep(sent, envelopes))})()
    shop.kit.publisher = outbox
    handle = shop.again(1)
    handle.cancel(reason="to be started anew")
    shop.kit.advance("order")
    assert handle.status() == SagaState.COMPENSATED
    sent.clear()
    looks: list[int] = []
    early: list[Envelope] = []
    read: Callable[[], AbstractContextManager[Transaction]] = shop.kit.store.read

    def counted() -> AbstractContextManager[Transaction]:
        looks.append(1)
        return read()

    def hold_up(_: sa.Connection) -> None:
        until(lambda: len(looks) >= 3 or sent)
        early.extend(sent)

    with shop.kit.store.engine.connect() as connection:
        shop.again(2, session=connection)
        monkeypatch.setattr(shop.kit.store, "read", counted)
        sa.event.listen(connection, "commit", hold_up)
        connection.commit()
    until(lambda: sent)
    assert early == []
    assert [envelope.saga_id for envelope in sent] == ["order"]
    assert handle.status() == SagaState.PENDING


def _keep(sent: list[Envelope], envelopes: Iterable[Envelope]) -> bool:
    sent.extend(envelopes)
    return True
