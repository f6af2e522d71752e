"""Steps keep their types: called, run in a saga, with options for one call, bound, async."""

from dataclasses import dataclass
from decimal import Decimal
from typing import assert_type

from celery import Celery

from sagakit import Saga, SagaKit, StepContext, StepFuture, current_step, shared_step


@dataclass
class Order:
    id: str
    total: Decimal


@dataclass
class Payment:
    id: str


@dataclass
class Label:
    text: str


app = Celery("shop")
kit = SagaKit(app, database_url="sqlite://")
order = Order("1", Decimal(1))


@kit.step
def charge(order: Order, currency: str = "EUR") -> Payment:
    return Payment(current_step.idempotency_key)


@kit.step(queue="shipping", max_retries=3)
def ship(order: Order, *, fragile: bool = False) -> Label:
    return Label("")


@kit.step
async def track(label: Label) -> str:
    return label.text


@kit.step(max_retries=3)
async def notify(order: Order) -> int:
    return 1


@kit.step(bind=True, max_retries=3)
def pack(self: StepContext, order: Order) -> Label:
    assert_type(self.attempt, int)
    return Label(self.idempotency_key)


@kit.step(bind=True)
async def fetch(self: StepContext, order: Order) -> Label:
    return Label("")


@shared_step
def weigh(order: Order) -> float:
    return 1.0


@shared_step(queue="eu")
def measure(order: Order) -> float:
    return 1.0


# Called, they are the functions they were.

assert_type(charge(order), Payment)
assert_type(charge(order, "USD"), Payment)
assert_type(charge(order, currency="USD"), Payment)
charge("1")  # E
charge(order, 1)  # E
charge(order, curency="USD")  # E
charge()  # E
assert_type(ship(order, fragile=True), Label)
ship(order, True)  # E
assert_type(pack(order), Label)
pack(order, order)  # E
assert_type(weigh(order), float)
assert_type(measure(order), float)


async def call_async_steps() -> None:
    assert_type(await track(Label("")), str)
    assert_type(await notify(order), int)
    assert_type(await fetch(order), Label)
    await track("label")  # E
    await charge(order)  # E


@kit.step(bind=True)
def wants_something_else(self: int, order: Order) -> None: ...  # E-1


async def body(saga: Saga, order: Order) -> None:
    assert_type(saga.step(charge, order), StepFuture[Payment])
    assert_type(await saga.step(charge, order), Payment)
    assert_type(await saga.step(charge, order, "USD"), Payment)
    assert_type(await saga.step(charge, order, currency="USD"), Payment)
    assert_type(await saga.step(ship, order, fragile=True), Label)
    assert_type(await saga.step(pack, order), Label)
    assert_type(await saga.step(weigh, order), float)

    # The result of an async step is what it returns, not a coroutine.
    assert_type(await saga.step(track, Label("")), str)
    assert_type(await saga.step(notify, order), int)
    assert_type(await saga.step(fetch, order), Label)

    # Options for one call do not change the types.
    assert_type(await saga.step(charge.set(queue="eu", name="again"), order), Payment)
    assert_type(await saga.step(track.set(priority=3), Label("")), str)
    assert_type(charge.set(queue="eu")(order), Payment)

    # Results flow on.
    payment = await saga.step(charge, order)
    label = await saga.step(ship, order)
    await saga.step(track, label)
    await saga.step(track, payment)  # E

    await saga.step(charge, "1")  # E
    await saga.step(charge)  # E
    await saga.step(charge, order, 1)  # E
    await saga.step(charge, order, curency="USD")  # E
    await saga.step(charge, order, "USD", "more")  # E
    await saga.step(charge.set(queue="eu"), "1")  # E
    await saga.step(track, "label")  # E
    await saga.step(pack, saga, order)  # E
    await saga.step(print, order)  # E
