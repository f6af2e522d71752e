"""A shop on a fresh SQLite file, and orders to place there."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Protocol

import pytest

from workers.shop.database import ShopDatabase
from workers.shop.models import Fault, Item, Order


class OrderFactory(Protocol):
    def __call__(self, order_id: str = "order-1", *, fault: Fault | None = None) -> Order: ...


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[ShopDatabase]:
    database = ShopDatabase(f"sqlite:///{tmp_path / 'shop.db'}")
    database.open({"cup": 100, "teapot": 10})
    yield database
    database.close()


@pytest.fixture
def order() -> OrderFactory:
    def make(order_id: str = "order-1", *, fault: Fault | None = None) -> Order:
        items = (
            Item(sku="teapot", quantity=1, price=Decimal("24.90")),
            Item(sku="cup", quantity=4, price=Decimal("6.50")),
        )
        return Order(id=order_id, customer="Ada", items=items, fault=fault)

    return make
