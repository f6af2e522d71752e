"""Orders for a demo or a load test: generated from a seed with faults among them, and kept as JSON lines."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from workers.shop.inventory import pieces
from workers.shop.models import Fault, Item, Order

CATALOGUE = {
    "teapot": Decimal("24.90"),
    "kettle": Decimal("39.00"),
    "cup": Decimal("6.50"),
    "saucer": Decimal("4.20"),
    "tray": Decimal("18.75"),
    "strainer": Decimal("7.99"),
    "oolong-100g": Decimal("12.40"),
    "sencha-100g": Decimal("14.80"),
    "assam-250g": Decimal("11.30"),
}
NAMES = (
    "Ada",
    "Björn",
    "Chiara",
    "Dmitri",
    "Ebba",
    "Farid",
    "Grace",
    "Hiro",
    "Ines",
    "Jonas",
    "Kavya",
    "Lucía",
)

FAULTS: Mapping[Fault, float] = {
    Fault.OUT_OF_STOCK: 0.05,
    Fault.CARD_DECLINED: 0.08,
    Fault.CARRIER_REFUSES: 0.06,
    Fault.CARRIER_FLAKY: 0.06,
    Fault.CARRIER_TIMEOUT: 0.04,
}
"""The share of generated orders that meet each fault."""


class BadOrders(ValueError):
    """A file of orders cannot be used; the message names file, line and what is wrong there."""


def generate(count: int, *, seed: int = 1) -> list[Order]:
    """Make up orders: the same ones for the same count and seed.

    Every fault gets its share exactly (rounded, but one at least when there are orders enough), and chance decides
    only which orders meet it: a demo of twenty orders shows every fault as well as one of a thousand.
    """
    chance = random.Random(seed)
    fates: list[Fault | None] = []
    for fault, share in FAULTS.items():
        fates += [fault] * max(1, round(count * share))
    fates = fates[:count] + [None] * (count - len(fates))
    chance.shuffle(fates)
    width = max(4, len(str(count)))
    return [_order(f"order-{number:0{width}}", fate, chance) for number, fate in enumerate(fates, start=1)]


def _order(order_id: str, fate: Fault | None, chance: random.Random) -> Order:
    articles = chance.sample(sorted(CATALOGUE), k=chance.randint(1, 3))
    items = tuple(Item(sku=sku, quantity=chance.randint(1, 4), price=CATALOGUE[sku]) for sku in articles)
    return Order(id=order_id, customer=chance.choice(NAMES), items=items, fault=fate)


def deliveries(orders: Iterable[Order]) -> dict[str, int]:
    """What has to lie on the shelf so that only the planned faults run out of stock: quantity by article."""
    total: Counter[str] = Counter()
    for order in orders:
        for sku, quantity in pieces(order.items):
            total[sku] += quantity
    return dict(total)


def write(path: Path, orders: Iterable[Order]) -> None:
    """Write orders as JSON lines."""
    lines = (order.model_dump_json(exclude_none=True) + "\n" for order in orders)
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[Order]:
    """Read orders from JSON lines; blank lines are skipped.

    Raises:
        BadOrders: the file cannot be read, a line is no order, two orders share an id, or there is none at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise BadOrders(f"{path}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise BadOrders(f"{path}: not UTF-8 text (byte {exc.start})") from exc
    orders: list[Order] = []
    first_seen: dict[str, int] = {}
    # Not splitlines(): it also splits at characters such as U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        order = _parse(line, f"{path}:{number}")
        if order.id in first_seen:
            raise BadOrders(
                f"{path}:{number}: id: {order.id!r} was used on line {first_seen[order.id]} already"
            )
        first_seen[order.id] = number
        orders.append(order)
    if not orders:
        raise BadOrders(f"{path}: no orders in it; write one JSON object a line, for example {_EXAMPLE}")
    return orders


_EXAMPLE = '{"id": "order-1", "customer": "Ada", "items": [{"sku": "cup", "quantity": 2, "price": "6.50"}]}'


def _parse(line: str, where: str) -> Order:
    try:
        return Order.model_validate_json(line)
    except ValidationError as exc:
        problems = []
        for error in exc.errors(include_url=False):
            field = ".".join(str(part) for part in error["loc"])
            problems.append(f"{field}: {error['msg']}" if field else error["msg"])
        raise BadOrders(f"{where}: {'; '.join(problems)}") from exc
