"""Sagas without worker processes: ``task_always_eager``, and a worker in a thread of the tests."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery import _state as state
from celery.contrib.testing.worker import start_worker

from sagakit import Compensated, Completed, Saga, SagaKit, StepError, current_step

calls: list[Any] = []


class Declined(StepError):
    """A declared error."""

    reason: str


class Application:
    """Steps and sagas on one kit."""

    def __init__(self, kit: SagaKit) -> None:
        self.kit = kit

        @kit.step
        def reserve(number: int) -> str:
            """Takes effect."""
            calls.append(("reserve", number))
            return f"r{number}"

        @reserve.compensation(max_retries=5)
        def release(result: str, number: int) -> None:
            """Fails once."""
            calls.append(("release", result, number, current_step.attempt))
            if current_step.attempt == 1:
                raise ConnectionError("once")

        @kit.step(max_retries=3, default_retry_delay=3600)
        def flaky(number: int) -> int:
            """Succeeds at the third attempt."""
            calls.append(("flaky", current_step.attempt))
            if current_step.attempt < 3:
                raise ConnectionError("not yet")
            return number

        @kit.step(throws=(Declined,))
        async def charge(number: int) -> int:
            """Declines odd numbers."""
            calls.append(("charge", number))
            if number % 2:
                raise Declined(reason="odd")
            return number * 10

        @kit.saga
        async def checkout(saga: Saga, number: int) -> list[Any]:
            """Steps, retries and timers."""
            first, second = await asyncio.gather(saga.step(reserve, number), saga.step(flaky, number))
            before = saga.now()
            await asyncio.sleep(7200)
            slept = saga.now() - before
            return [first, second, await saga.step(charge, number), slept >= timedelta(hours=2)]

        self.checkout = checkout


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture(params=["sqlite_ledger_url", "ledger_url"])
def eager(request: pytest.FixtureRequest) -> Iterator[Application]:
    """An application that runs everything in its caller, on either store."""
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    kit = SagaKit(app, database_url=request.getfixturevalue(request.param))
    yield Application(kit)
    kit.store.dispose()


class TestEager:
    """``task_always_eager`` runs a saga to its outcome in the caller."""

    def test_to_the_end(self, eager: Application) -> None:
        """Parallel steps, hours of sleep and hours of back-off are over when ``start`` returns."""
        begun = time.monotonic()
        handle = eager.checkout.start(2, saga_id="even")
        assert handle.status() == "completed"
        assert handle.result(0) == ["r2", 2, 20, True]
        assert time.monotonic() - begun < 20
        assert calls == [("reserve", 2), ("flaky", 1), ("flaky", 2), ("flaky", 3), ("charge", 2)]

    def test_compensation(self, eager: Application) -> None:
        """A failure is undone, compensations being retried."""
        outcome = eager.checkout.start(3).outcome(0)
        assert isinstance(outcome, Compensated)
        assert outcome.failed_step == "charge"
        assert outcome.compensated == ("reserve",)
        assert calls[-2:] == [("release", "r3", 3, 1), ("release", "r3", 3, 2)]

    def test_async_code(self, eager: Application) -> None:
        """``astart`` does, too."""

        async def play() -> Any:
            handle = await eager.checkout.astart(4)
            return await handle.aresult(5)

        assert asyncio.run(play())[2] == 40

    def test_a_deadline(self, eager: Application) -> None:
        """A deadline passes while the saga sleeps, in its own time."""
        outcome = eager.checkout.start(2, deadline="1h").outcome(0)
        assert isinstance(outcome, Compensated)
        assert "deadline" in str(outcome.error)

    def test_delay(self, eager: Application) -> None:
        """``delay`` of a saga is a start."""
        assert isinstance(eager.checkout.delay(6).outcome(0), Completed)

    def test_cancel_and_replay(self, eager: Application) -> None:
        """What an operator asks for is done at once, too."""
        handle = eager.checkout.start(8)
        handle.compensate(completed=True, reason="undo")
        assert isinstance(handle.outcome(5), Compensated)


@pytest.fixture
def _current_app_kept() -> Iterator[None]:
    before = state.default_app, state._tls.current_app
    yield
    state.default_app, state._tls.current_app = before


@pytest.mark.usefixtures("_current_app_kept")
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_worker_in_a_thread(ledger_url: str, pool: str) -> None:
    """``start_worker``, which is what ``celery.contrib.pytest``'s ``celery_worker`` uses, runs sagas."""
    app = Celery("inside", broker="memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.02}
    kit = SagaKit(app, database_url=ledger_url)

    @kit.step
    def double(number: int) -> int:
        """Doubles."""
        return number * 2

    @kit.saga
    async def twice(saga: Saga, number: int) -> int:
        """Two steps with a nap between them."""
        number = await saga.step(double, number)
        await asyncio.sleep(0.05)
        return await saga.step(double, number)

    with start_worker(app, pool=pool, concurrency=2, perform_ping_check=False, shutdown_timeout=30):
        assert twice.start(3).result(20) == 12
    kit.store.dispose()
