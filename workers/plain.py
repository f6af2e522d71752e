"""The same checkout as a plain ``celery.chain``: what a team without sagas has today, and not done badly.

The same services under the same kind of idempotency keys, late acknowledgement, requeueing when a worker is lost,
automatic retries with a back-off for whatever may pass, and an error callback that puts a broken order on somebody's
pile. What a chain cannot do is undo: when a task fails for good, what the tasks before it did stays done.
"""

from collections.abc import Callable
from typing import Any

from celery import chain
from celery.canvas import Signature

from workers.app import app
from workers.services import carrier, desk, inventory, invoicing, psp
from workers.shop.models import Frozen, Invoice, Order, Payment, Receipt, Reservation, Shipment

TASK: dict[str, Any] = {
    "pydantic": True,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "autoretry_for": (ConnectionError, TimeoutError),
    "max_retries": 5,
    "retry_backoff": 1,
    "retry_backoff_max": 4,
}


class Sale(Frozen):
    """What each task of the chain hands to the next."""

    order: Order
    reservation: Reservation | None = None
    payment: Payment | None = None
    shipment: Shipment | None = None
    invoice: Invoice | None = None
    receipt: Receipt | None = None


def link(function: Callable[[Sale], Sale]) -> Any:
    """Make a task of the chain."""
    return app.task(**TASK)(function)


@link
def reserve(sale: Sale) -> Sale:
    """Put the items aside."""
    reservation = inventory.reserve(sale.order, idempotency_key=f"{sale.order.id}:reserve")
    return sale.model_copy(update={"reservation": reservation})


@link
def charge(sale: Sale) -> Sale:
    """Charge the customer."""
    payment = psp.charge(sale.order, idempotency_key=f"{sale.order.id}:charge")
    return sale.model_copy(update={"payment": payment})


@link
def ship(sale: Sale) -> Sale:
    """Have the parcel fetched. A timeout is retried too: the idempotency key makes that safe."""
    shipment = carrier.ship(sale.order, idempotency_key=f"{sale.order.id}:ship")
    return sale.model_copy(update={"shipment": shipment})


@link
def invoice(sale: Sale) -> Sale:
    """Write the invoice."""
    if sale.payment is None:
        raise ValueError("the chain ran out of order")
    issued = invoicing.issue(sale.order, sale.payment, idempotency_key=f"{sale.order.id}:invoice")
    return sale.model_copy(update={"invoice": issued})


@link
def confirm(sale: Sale) -> Sale:
    """Tell the customer."""
    if sale.shipment is None or sale.invoice is None:
        raise ValueError("the chain ran out of order")
    receipt = desk.confirm(
        sale.order, sale.shipment, sale.invoice, idempotency_key=f"{sale.order.id}:confirm"
    )
    return sale.model_copy(update={"receipt": receipt})


@app.task  # type: ignore[untyped-decorator]  # Celery has no types
def give_up(request: Any, exc: BaseException, traceback: Any, order_id: str) -> None:
    """The chain's error callback: somebody has to look at this order."""
    desk.complain(order_id, f"{request.task}: {exc!r}")


def checkout_chain(order: Order) -> Signature:
    """The chain for one order; ``.delay()`` sends it.

    Shipment and invoice follow each other: to run side by side they would be a chord, which needs a result backend.
    """
    first = reserve.s(Sale(order=order).model_dump(mode="json"))
    return chain(first, charge.s(), ship.s(), invoice.s(), confirm.s()).on_error(give_up.s(order.id))
