"""The application under the knife: sagas whose steps record what they do, and processes that can be made to die."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterable

from celery import Celery

from sagakit import Saga, SagaKit, current_step
from sagakit.dispatch.envelope import Envelope
from sagakit.dispatch.publisher import Publisher
from tests.cluster import effects
from tests.crash import points

DROP = "CRASH_DROP_MESSAGES"

app = Celery("crash")
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
kit = SagaKit(app)
points.install()


class SweepOnly(Publisher):
    """Loses every message that the sweep did not send."""

    def publish(self, envelopes: Iterable[Envelope]) -> bool:
        """Publish in the sweep's thread; else say so and do not."""
        return super().publish(envelopes) if threading.current_thread().name == "sagakit-sweep" else True


if os.environ.get(DROP):
    kit.publisher = SweepOnly(app, kit.routing)


@kit.step
def reserve(order: str) -> str:
    """The first step."""
    effects.pass_gate("reserve")
    effects.record()
    return f"reservation of {order}"


@reserve.compensation
def release(reservation: str | None, order: str) -> None:
    """Undo the first step."""
    effects.record(detail=reservation)


@kit.step
def charge(order: str) -> str:
    """The second step."""
    effects.pass_gate("charge")
    effects.record()
    effects.pass_gate("charged")
    return f"payment of {order}"


@charge.compensation
def refund(payment: str | None, order: str) -> None:
    """Undo the second step."""
    effects.record(detail=payment)


@kit.step
def ship(order: str) -> None:
    """The third step; fails for the orders that the test names."""
    if order in effects.told("fail", []):
        raise ValueError("told to")
    effects.record()


@kit.step(max_retries=3, default_retry_delay=0)
def flaky(order: str) -> None:
    """Fails at the first attempt."""
    effects.record()
    if current_step.attempt == 1:
        raise ConnectionError("the first time")


@kit.step
def poison(order: str) -> None:
    """Takes its worker down, every time."""
    effects.record()
    os.kill(os.getpid(), signal.SIGKILL)


@poison.compensation
def antidote(result: None, order: str) -> None:
    """Undo whatever the poison has done."""
    effects.record()


@kit.step(acks_late=False)
def at_most_once(order: str) -> None:
    """Not to be run again, whatever becomes of it."""
    effects.record()
    effects.pass_gate("once")


@at_most_once.compensation
def undo_once(result: None, order: str) -> None:
    """Undo what may have happened."""
    effects.record()


@kit.saga
async def checkout(saga: Saga, order: str) -> str:
    """Three steps, one after the other; with the third told to fail, two to undo."""
    await saga.step(reserve, order)
    payment = await saga.step(charge, order)
    await saga.step(ship, order)
    return payment


@kit.saga
async def retrying(saga: Saga, order: str) -> None:
    """A step that is retried."""
    await saga.step(reserve, order)
    await saga.step(flaky, order)


@kit.saga
async def napping(saga: Saga, order: str) -> None:
    """A timer between two steps."""
    await saga.step(reserve, order)
    await asyncio.sleep(0.2)
    await saga.step(ship, order)


@kit.saga
async def poisoned(saga: Saga, order: str) -> None:
    """A step that kills whoever runs it."""
    await saga.step(reserve, order)
    await saga.step(poison, order)


@kit.saga
async def cautious(saga: Saga, order: str) -> None:
    """A step that must not run twice."""
    await saga.step(reserve, order)
    await saga.step(at_most_once, order)
