"""What has happened before a page's first command, where the page does not do it itself."""

from decimal import Decimal


def shop() -> None:
    """The example shop after three orders: one sold, one undone, one whose refund failed because the PSP was down."""
    from workers.app import app, kit
    from workers.orders import CATALOGUE
    from workers.sagas.checkout import checkout
    from workers.services import psp, shop
    from workers.shop.models import Fault, Item, Order

    def order(number: int, fault: Fault | None = None) -> Order:
        items = (Item(sku="teapot", quantity=1, price=Decimal("24.90")),)
        return Order(id=f"order-{number}", customer="Ada", items=items, fault=fault)

    def down(*_: object, **__: object) -> None:
        raise ConnectionError("the payment provider does not answer")

    app.finalize()
    shop.open(dict.fromkeys(CATALOGUE, 100))
    checkout.start(order(40), saga_id="order-40")
    checkout.start(order(41, Fault.CARD_DECLINED), saga_id="order-41")
    psp.refund = down  # type: ignore[method-assign]
    checkout.start(order(42, Fault.CARRIER_REFUSES), saga_id="order-42")
    shop.close()
    kit.store.dispose()


def plain_shop() -> dict[str, object]:
    """What is there already in a project that turns a chain into a saga."""
    from types import SimpleNamespace

    from celery import Celery

    from sagakit import SagaKit

    app = Celery("shop")
    kit = SagaKit(app)
    psp = SimpleNamespace(charge=lambda order_id: f"payment-{order_id}", refund=lambda payment: None)

    @kit.step(name="shop.reserve")
    def reserve(order_id: int) -> None:
        """Reserve it."""

    @kit.step(name="shop.charge")
    def charge(order_id: int) -> None:
        """Charge it."""

    @kit.step(name="shop.ship")
    def ship(order_id: int) -> None:
        """Ship it."""

    return {
        "app": app,
        "kit": kit,
        "psp": psp,
        "reserve": reserve,
        "charge": charge,
        "ship": ship,
        "order_id": 42,
    }
