"""Checkout: reserve, charge, ship and invoice side by side, confirm. All of it, or none of it."""

import asyncio

from sagakit import Happened, NotHappened, Saga, current_step
from workers.app import kit
from workers.services import carrier, desk, inventory, invoicing, psp
from workers.shop.errors import OutOfStock, PaymentDeclined, ShipmentRefused
from workers.shop.models import Invoice, Order, Payment, Receipt, Reservation, Shipment


@kit.step(throws=(OutOfStock,))
def reserve_inventory(order: Order) -> Reservation:
    """Put the items aside."""
    return inventory.reserve(order, idempotency_key=current_step.idempotency_key)


@reserve_inventory.compensation
def release_inventory(reservation: Reservation, order: Order) -> None:
    """Put them back on the shelf."""
    inventory.release(order, reservation=reservation.id, idempotency_key=current_step.idempotency_key)


@kit.step(throws=(PaymentDeclined,), max_retries=5, retry_backoff=True)
def charge_payment(order: Order) -> Payment:
    """Charge the customer."""
    return psp.charge(order, idempotency_key=current_step.idempotency_key)


@charge_payment.compensation(max_retries=20)
def refund_payment(payment: Payment | None, order: Order) -> None:
    """Give the money back. ``None``: nobody knows whether the card was charged, so refund what there is."""
    psp.refund(order, payment=payment.id if payment else None, idempotency_key=current_step.idempotency_key)


@kit.step(
    throws=(ShipmentRefused,),
    autoretry_for=(ConnectionError,),  # it was never reached: try again
    max_retries=5,
    default_retry_delay=1,
    unknown_for=(TimeoutError,),  # it may have acted: find out before undoing anything
)
def create_shipment(order: Order) -> Shipment:
    """Have the parcel fetched."""
    return carrier.ship(order, idempotency_key=current_step.idempotency_key)


@create_shipment.probe
def find_shipment(order: Order) -> Happened[Shipment] | NotHappened:
    """After a timeout: ask the carrier whether it has the parcel."""
    shipment = carrier.find(order)
    return Happened(shipment) if shipment else NotHappened()


@create_shipment.compensation
def cancel_shipment(shipment: Shipment, order: Order) -> None:
    """Call the parcel back."""
    carrier.cancel(order, tracking=shipment.tracking, idempotency_key=current_step.idempotency_key)


@kit.step
def create_invoice(order: Order, payment: Payment) -> Invoice:
    """Write the invoice."""
    return invoicing.issue(order, payment, idempotency_key=current_step.idempotency_key)


@create_invoice.compensation
def void_invoice(invoice: Invoice, order: Order) -> None:
    """Take the invoice back."""
    invoicing.void(order, number=invoice.number, idempotency_key=current_step.idempotency_key)


@kit.step
def confirm_order(order: Order, shipment: Shipment, invoice: Invoice) -> Receipt:
    """Tell the customer."""
    return desk.confirm(order, shipment, invoice, idempotency_key=current_step.idempotency_key)


@confirm_order.compensation
def withdraw_confirmation(receipt: Receipt, order: Order) -> None:
    """Tell the customer otherwise: only when an operator undoes a completed order."""
    desk.withdraw(order, idempotency_key=current_step.idempotency_key)


@kit.saga
async def checkout(saga: Saga, order: Order) -> Receipt:
    """Sell an order to a customer."""
    await saga.step(reserve_inventory, order)
    payment = await saga.step(charge_payment, order)
    shipment, invoice = await asyncio.gather(
        saga.step(create_shipment, order),
        saga.step(create_invoice, order, payment),
    )
    return await saga.step(confirm_order, order, shipment, invoice)
