"""Sagas keep the types of their input and their result."""

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from celery import Celery

from sagakit import (
    Compensated,
    CompensationFailed,
    Completed,
    Saga,
    SagaFailed,
    SagaHandle,
    SagaKit,
    Stuck,
    shared_saga,
)


@dataclass
class Order:
    id: str


@dataclass
class Receipt:
    id: str


kit = SagaKit(Celery("shop"))
order = Order("1")


@kit.saga
async def checkout(saga: Saga, order: Order) -> Receipt:
    assert_type(saga.id, str)
    return Receipt(order.id)


@kit.saga(name="shop.refill", version=2)
async def refill(saga: Saga, amount: int) -> None: ...


@kit.saga
async def tidy(saga: Saga) -> int:
    return 1


@shared_saga
async def shared(saga: Saga, order: Order) -> Receipt:
    return Receipt(order.id)


@kit.saga  # E
async def no_saga(order: Order) -> Receipt:
    return Receipt(order.id)


@kit.saga  # E
def not_async(saga: Saga, order: Order) -> Receipt:
    return Receipt(order.id)


@kit.saga(vesion=2)  # E
async def misspelt(saga: Saga) -> None: ...


handle = checkout.start(order, saga_id="order-1", deadline=timedelta(hours=1), tags={"customer": "ada"})
assert_type(handle, SagaHandle[Receipt])
assert_type(handle.result(timeout=30), Receipt)
assert_type(shared.start(order).result(), Receipt)
assert_type(tidy.start().result(), int)
checkout.start("order-1")  # E
checkout.start(order, saga="order-1")  # E
checkout.start(order, if_exists="ignore")  # E
refill.start(5)
refill.start("5")  # E


async def in_async_code() -> None:
    handle = await checkout.astart(order, saga_id="order-1")
    assert_type(handle, SagaHandle[Receipt])
    assert_type(await handle.aresult(), Receipt)


def tell(handle: SagaHandle[Receipt]) -> str:
    match handle.outcome(timeout=30):
        case Completed(result):
            assert_type(result, Receipt)
            return result.id
        case Compensated(failed_step, error, compensated):
            assert_type(failed_step, str | None)
            assert_type(compensated, tuple[str, ...])
            return f"{error}"
        case CompensationFailed(not_compensated=names):
            assert_type(names, tuple[str, ...])
            return ", ".join(names)
        case Stuck(error):
            return f"{error}"


def on_failure() -> None:
    try:
        handle.result()
    except SagaFailed as exc:
        print(exc.outcome.compensated, exc.outcome.failed_step)
