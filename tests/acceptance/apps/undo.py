"""Steps with compensations that fail, probes, and outcomes that nobody knows."""

import os
from decimal import Decimal

from celery import Celery
from pydantic import BaseModel

from sagakit import Happened, NotHappened, Saga, SagaKit, StepError, current_step
from tests.acceptance.apps import act, told
from tests.cluster import effects

app = Celery("undo", set_as_current=False)
kit = SagaKit(app)


class Order(BaseModel):
    """What is ordered."""

    item: str
    price: Decimal


class Receipt(BaseModel):
    """What a step returns."""

    number: str
    paid: Decimal


class OutOfStock(StepError):
    """A declared error."""

    item: str


def seen(*values: object) -> list[object]:
    """Values with their types, as a step got them."""
    return [[type(value).__name__, str(value)] for value in values]


@kit.step
def reserve(order: Order) -> Receipt:
    """The first step."""
    act(seen(order, order.price))
    return Receipt(number="r1", paid=Decimal("0.00"))


@reserve.compensation
def release(receipt: Receipt, order: Order) -> None:
    """Takes the result and the argument."""
    act(seen(receipt, receipt.paid, order, order.price))


@kit.step
def charge(order: Order, *, cents: int = 0) -> Receipt:
    """The second step."""
    act()
    return Receipt(number="c2", paid=order.price + cents)


@charge.compensation(max_retries=0)
def refund(receipt: Receipt, cents: int) -> None:
    """Fails for good while the test says so."""
    if told("bank is down"):
        raise ConnectionError("the bank is down")
    act(seen(receipt, cents))


@kit.step
def pack() -> str:
    """The third step, which takes nothing."""
    act()
    return "parcel"


@pack.compensation
def unpack(parcel: str) -> None:
    """Takes the result only, and fails at first if the test says so."""
    if told("unpack fails") and current_step.attempt == 1:
        raise RuntimeError("dropped it")
    act(seen(parcel))


@kit.step(throws=(OutOfStock,))
def ship(order: Order) -> str:
    """The fourth step, which fails unless the test says otherwise."""
    if told("ship works"):
        act()
        return "shipped"
    raise OutOfStock(item=order.item)


@kit.saga
async def checkout(saga: Saga, order: Order) -> str:
    """Three steps that can be undone, and a fourth that fails."""
    await saga.step(reserve, order)
    await saga.step(charge, order, cents=5)
    await saga.step(pack)
    return await saga.step(ship, order)


# --- outcomes that nobody knows ---


def vanish(name: str) -> str:
    """Take effect, and lose the answer."""
    act(name)
    raise TimeoutError("no answer")


@kit.step(unknown_for=(TimeoutError,))
def probed(name: str) -> str:
    """A step that can be asked about."""
    return vanish(name)


@probed.probe
def ask(name: str) -> Happened[str] | NotHappened:
    """Answers what the test says."""
    effects.record(kind="probe", detail=name)
    return Happened("found out") if told("it happened") else NotHappened()


@probed.compensation
def undo_probed(result: str, name: str) -> None:
    """Is called only if it happened."""
    effects.record(detail=[result, name, current_step.outcome])


@kit.step(unknown_for=(TimeoutError,))
def admitting(name: str) -> str:
    """A step whose compensation can do without a result."""
    return vanish(name)


@admitting.compensation
def undo_admitting(result: str | None, name: str) -> None:
    """Is called with ``None``."""
    effects.record(detail=[result, name, current_step.outcome])


@kit.step(unknown_for=(TimeoutError,))
def closed(name: str) -> str:
    """A step that nobody can be asked about."""
    return vanish(name)


if os.environ.get("UNDO_ADMITS_NONE"):  # the deploy that follows an operator's finding

    @closed.compensation
    def undo_closed(result: str | None, name: str) -> None:
        """Can do without a result, now."""
        effects.record(detail=[result, name, current_step.outcome])

else:

    @closed.compensation
    def undo_closed(result: str, name: str) -> None:
        """Needs the result."""
        effects.record(detail=[result, name, current_step.outcome])


UNKNOWN = {"probed": probed, "admitting": admitting, "closed": closed}


@kit.saga
async def doubt(saga: Saga, which: str) -> str:
    """A sure step, and one of unknown outcome."""
    await saga.step(pack)
    return await saga.step(UNKNOWN[which], which)
