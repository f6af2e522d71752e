"""What a client starts: a saga with one typed input, two steps and a compensation."""

from celery import Celery
from pydantic import BaseModel

from sagakit import Saga, SagaKit, StepError
from tests.acceptance.apps import act

app = Celery("orders", set_as_current=False)
kit = SagaKit(app)


class Order(BaseModel):
    """What is ordered."""

    number: int
    note: str = ""
    fails: bool = False


class Refused(StepError):
    """A declared error."""

    number: int


@kit.step
def reserve(order: Order) -> int:
    """Takes effect."""
    act(order.number)
    return order.number


@reserve.compensation
def release(number: int) -> None:
    """Undoes it."""
    act(number)


@kit.step(throws=(Refused,))
def charge(order: Order) -> int:
    """Fails if the order says so."""
    if order.fails:
        raise Refused(number=order.number)
    act()
    return order.number * 10


@kit.saga
async def checkout(saga: Saga, order: Order) -> int:
    """Two steps."""
    await saga.step(reserve, order)
    return await saga.step(charge, order)


@kit.saga
async def nothing(saga: Saga) -> None:
    """Takes no input and does nothing."""
