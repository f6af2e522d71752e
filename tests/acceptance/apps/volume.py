"""The application of the volume test: five steps, each with an effect."""

from celery import Celery

from sagakit import Saga, SagaKit
from tests.cluster import effects

app = Celery("volume")
app.conf.worker_prefetch_multiplier = 4
kit = SagaKit(app)


@kit.step
def reserve(order: int) -> int:
    """Take effect."""
    effects.record()
    return order


@kit.step
def charge(order: int) -> int:
    """Take effect."""
    effects.record()
    return order


@kit.step
def ship(order: int) -> int:
    """Take effect."""
    effects.record()
    return order


@kit.step
def invoice(order: int) -> int:
    """Take effect."""
    effects.record()
    return order


@kit.step
def confirm(order: int) -> int:
    """Take effect."""
    effects.record()
    return order


@kit.saga
async def checkout(saga: Saga, order: int) -> int:
    """All five, one after the other."""
    for step in (reserve, charge, ship, invoice, confirm):
        order = await saga.step(step, order)
    return order
