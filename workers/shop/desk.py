"""The order desk: confirms orders to customers, and takes the complaints."""

from workers.shop import database
from workers.shop.database import ShopDatabase, complaint
from workers.shop.effects import Request, act, undo
from workers.shop.models import Invoice, Order, Receipt, Shipment


class OrderDesk:
    """The simulated order service."""

    def __init__(self, shop: ShopDatabase) -> None:
        self._shop = shop

    def confirm(self, order: Order, shipment: Shipment, invoice: Invoice, *, idempotency_key: str) -> Receipt:
        """Tell the customer that all is done."""
        request = Request(action="confirm", order_id=order.id, key=idempotency_key)
        answer = Receipt(
            order_id=order.id, total=order.total, tracking=shipment.tracking, invoice=invoice.number
        )
        with self._shop.call() as connection:
            receipt, _ = act(connection, request, answer, amount=order.total)
            return receipt

    def withdraw(self, order: Order, *, idempotency_key: str) -> None:
        """Take the confirmation back."""
        request = Request(action="withdraw", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            undo(connection, request, action="confirm")

    def complain(self, order_id: str, reason: str) -> None:
        """Put an order on the pile that somebody has to repair by hand."""
        with self._shop.call() as connection:
            statement = database.insert(connection, complaint).values(order_id=order_id, reason=reason)
            connection.execute(statement.on_conflict_do_nothing())
