"""The warehouse: puts articles aside for an order, and back on the shelf."""

from collections import Counter
from collections.abc import Iterable

from sqlalchemy import Connection, update

from workers.shop.database import ShopDatabase, stock
from workers.shop.effects import Request, act, note, undo
from workers.shop.errors import OutOfStock
from workers.shop.models import Fault, Item, Order, Reservation


class Inventory:
    """The simulated inventory service."""

    def __init__(self, shop: ShopDatabase) -> None:
        self._shop = shop

    def reserve(self, order: Order, *, idempotency_key: str) -> Reservation:
        """Put the order's items aside.

        Raises:
            OutOfStock: one of them is not there in that number; then nothing is put aside.
        """
        request = Request(action="reserve", order_id=order.id, key=idempotency_key)
        try:
            with self._shop.call() as connection:
                answer = Reservation(id=request.reference, items=order.items)
                reservation, first = act(connection, request, answer)
                if first:
                    _take(connection, order)
                return reservation
        except OutOfStock:
            with self._shop.transaction() as connection:
                note(connection, request, "refused")
            raise

    def release(self, order: Order, *, reservation: str | None, idempotency_key: str) -> None:
        """Put the reserved items back; ``reservation=None`` means whatever is reserved for the order."""
        request = Request(action="release", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            found = undo(connection, request, action="reserve", reference=reservation)
            if found is not None:
                items = Reservation.model_validate_json(found.answer).items
                for sku, quantity in pieces(items):
                    connection.execute(
                        update(stock).where(stock.c.sku == sku).values(on_hand=stock.c.on_hand + quantity)
                    )


def pieces(items: Iterable[Item]) -> list[tuple[str, int]]:
    """Quantity by article, in one order for everybody, so that two transactions cannot deadlock on the shelf."""
    total: Counter[str] = Counter()
    for item in items:
        total[item.sku] += item.quantity
    return sorted(total.items())


def _take(connection: Connection, order: Order) -> None:
    if order.fault is Fault.OUT_OF_STOCK:
        raise OutOfStock(sku=order.items[0].sku)
    for sku, quantity in pieces(order.items):
        enough = stock.c.on_hand >= quantity
        statement = update(stock).where(stock.c.sku == sku, enough).values(on_hand=stock.c.on_hand - quantity)
        if connection.execute(statement).rowcount != 1:
            raise OutOfStock(sku=sku)
