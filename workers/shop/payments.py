"""The payment provider: charges cards, and gives the money back."""

from workers.shop.database import ShopDatabase
from workers.shop.effects import Request, act, note, undo
from workers.shop.errors import PaymentDeclined
from workers.shop.models import Fault, Order, Payment


class PaymentProvider:
    """The simulated payment service."""

    def __init__(self, shop: ShopDatabase) -> None:
        self._shop = shop

    def charge(self, order: Order, *, idempotency_key: str) -> Payment:
        """Charge the customer the order's total.

        Raises:
            PaymentDeclined: the bank said no; nothing is charged.
        """
        request = Request(action="charge", order_id=order.id, key=idempotency_key)
        if order.fault is Fault.CARD_DECLINED:
            with self._shop.call() as connection:
                note(connection, request, "refused")
            raise PaymentDeclined(reason="insufficient funds")
        with self._shop.call() as connection:
            answer = Payment(id=request.reference, amount=order.total)
            payment, _ = act(connection, request, answer, amount=order.total)
            return payment

    def refund(self, order: Order, *, payment: str | None, idempotency_key: str) -> None:
        """Give the money back; ``payment=None`` means whatever was charged for the order, if anything was."""
        request = Request(action="refund", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            undo(connection, request, action="charge", reference=payment)
