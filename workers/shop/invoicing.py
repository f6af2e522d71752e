"""Invoicing: writes invoices, and voids them."""

from workers.shop.database import ShopDatabase
from workers.shop.effects import Request, act, undo
from workers.shop.models import Invoice, Order, Payment


class Invoicing:
    """The simulated invoicing service."""

    def __init__(self, shop: ShopDatabase) -> None:
        self._shop = shop

    def issue(self, order: Order, payment: Payment, *, idempotency_key: str) -> Invoice:
        """Write an invoice over what was paid for the order."""
        request = Request(action="invoice", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            answer = Invoice(number=request.reference, amount=payment.amount)
            invoice, _ = act(connection, request, answer, amount=payment.amount)
            return invoice

    def void(self, order: Order, *, number: str, idempotency_key: str) -> None:
        """Take the invoice back."""
        request = Request(action="void_invoice", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            undo(connection, request, action="invoice", reference=number)
