"""The books: they balance when all is done or undone, and each way of being wrong is found and named."""

from decimal import Decimal

import pytest
from sqlalchemy import delete, update

from workers import books
from workers.shop import database
from workers.shop.carrier import Carrier
from workers.shop.database import ShopDatabase
from workers.shop.desk import OrderDesk
from workers.shop.inventory import Inventory
from workers.shop.invoicing import Invoicing
from workers.shop.models import Order, Payment
from workers.shop.payments import PaymentProvider


def sell(shop: ShopDatabase, order: Order) -> None:
    """All five steps of a checkout."""
    Inventory(shop).reserve(order, idempotency_key=f"{order.id}:1")
    payment = PaymentProvider(shop).charge(order, idempotency_key=f"{order.id}:2")
    shipment = Carrier(shop).ship(order, idempotency_key=f"{order.id}:3")
    invoice = Invoicing(shop).issue(order, payment, idempotency_key=f"{order.id}:4")
    OrderDesk(shop).confirm(order, shipment, invoice, idempotency_key=f"{order.id}:5")


def fail_at_the_carrier(shop: ShopDatabase, order: Order) -> None:
    """Two steps, both undone."""
    Inventory(shop).reserve(order, idempotency_key=f"{order.id}:1")
    PaymentProvider(shop).charge(order, idempotency_key=f"{order.id}:2")
    PaymentProvider(shop).refund(order, payment=None, idempotency_key=f"{order.id}:3")
    Inventory(shop).release(order, reservation=None, idempotency_key=f"{order.id}:4")


@pytest.fixture
def placed(shop, order):
    """Two orders sold, one undone, and the ledger's view of them."""
    orders = [order("a"), order("b"), order("c")]
    sell(shop, orders[0])
    sell(shop, orders[1])
    fail_at_the_carrier(shop, orders[2])
    return orders, {"a": "completed", "b": "completed", "c": "compensated"}


def differing(report: books.Report) -> dict[str, set[str]]:
    return {line.left_is: {one.account for one in line.differences} for line in report.differing}


def test_books_of_done_and_undone_orders_balance(shop, placed):
    """Nothing differs, and the sums are the real ones."""
    report = books.audit(shop, *placed)
    assert report.balanced, report.differing
    assert report.verdict() == "The books balance: 9 of 9 lines agree, order by order."
    money = next(line for line in report.lines if line.money)
    assert str(money) == "money charged and not refunded 101.80, total of the receipts 101.80"
    assert report.effects["charge"] == 3
    assert report.effects["refund"] == 1


def test_an_empty_shop_balances(shop):
    """No order, no difference."""
    assert books.audit(shop, [], {}).balanced


def test_a_charge_without_anything_is_found(shop, placed, order):
    """A worker died after the charge and nobody came back: money, stock and ledger lines differ."""
    orders, ledger = placed
    PaymentProvider(shop).charge(order("d"), idempotency_key="d")
    report = books.audit(shop, [*orders, order("d")], ledger | {"d": "running"})
    assert differing(report) == {
        "money charged and not refunded": {"d"},
        "orders placed": {"d"},
    }
    assert report.damage.charged_and_got_nothing == report.damage.charged_without_confirmation == ("d",)
    assert report.verdict() == "THE BOOKS DO NOT BALANCE: 2 of 9 lines differ."
    assert "[d: 50.90 against 0.00]" in str(report.differing[0])


def test_two_mistakes_do_not_hide_each_other(shop, placed, order):
    """One customer paid and got nothing, another got it for nothing: the sums agree, the orders do not."""
    orders, ledger = placed
    PaymentProvider(shop).charge(order("d"), idempotency_key="d")
    Inventory(shop).reserve(order("e"), idempotency_key="e1")
    shipment = Carrier(shop).ship(order("e"), idempotency_key="e2")
    invoice = Invoicing(shop).issue(
        order("e"), Payment(id="none", amount=order("e").total), idempotency_key="e3"
    )
    OrderDesk(shop).confirm(order("e"), shipment, invoice, idempotency_key="e4")
    report = books.audit(
        shop, [*orders, order("d"), order("e")], ledger | {"d": "compensated", "e": "completed"}
    )
    money = next(line for line in report.lines if line.money)
    assert money.left == money.right
    assert {one.account for one in money.differences} == {"d", "e"}
    assert report.damage.shipped_unpaid == ("e",)
    assert "effects that stand for compensated sagas" in differing(report)


def test_stock_that_was_never_released_is_found(shop, placed, order):
    """Reserved for an order that never came to be."""
    orders, ledger = placed
    Inventory(shop).reserve(order("d"), idempotency_key="d")
    report = books.audit(shop, [*orders, order("d")], ledger | {"d": "compensated"})
    assert differing(report)["pieces reserved and not released"] == {"d"}
    assert report.damage.stock_held_for_nobody == ("d",)


def test_an_effect_done_twice_is_found(shop, placed, order):
    """A second key charged the customer again, and even the refund does not make that good."""
    orders, ledger = placed
    again = PaymentProvider(shop).charge(order("a"), idempotency_key="other")
    report = books.audit(shop, orders, ledger)
    assert differing(report)["effects done a second time"] == {"a"}
    PaymentProvider(shop).refund(order("a"), payment=again.id, idempotency_key="undo")
    report = books.audit(shop, orders, ledger)
    assert differing(report) == {"effects done a second time": {"a"}}
    assert report.damage.done_twice == ("a",)


def test_a_parcel_that_was_not_called_back_is_found(shop, placed, order):
    """The carrier acted, its answer was lost, and nobody asked."""
    orders, ledger = placed
    Carrier(shop).ship(order("d"), idempotency_key="d")
    report = books.audit(shop, [*orders, order("d")], ledger | {"d": "compensated"})
    assert differing(report)["shipments made and not cancelled"] == {"d"}


def test_an_invoice_over_another_sum_is_found(shop, placed):
    """Invoices are compared by money, not by number."""
    with shop.transaction() as connection:
        mine = (database.effect.c.action == "invoice") & (database.effect.c.order_id == "a")
        connection.execute(update(database.effect).where(mine).values(cents=1))
    assert differing(books.audit(shop, *placed)) == {"invoices issued and not voided": {"a"}}


def test_pieces_missing_on_the_shelf_are_found(shop, placed):
    """The shelf is counted by article."""
    with shop.transaction() as connection:
        connection.execute(update(database.stock).where(database.stock.c.sku == "cup").values(on_hand=1))
    assert differing(books.audit(shop, *placed)) == {"pieces delivered to the shop": {"cup"}}


def test_a_ledger_that_claims_too_much_is_found(shop, placed):
    """The shop knows nothing of the confirmation that the ledger calls done."""
    orders, ledger = placed
    report = books.audit(shop, orders, ledger | {"c": "completed"})
    assert differing(report) == {"orders confirmed to customers": {"c"}}


def test_a_saga_that_is_missing_or_open_is_found(shop, placed):
    """Every order placed must have ended."""
    orders, ledger = placed
    del ledger["c"]
    assert differing(books.audit(shop, orders, ledger)) == {"orders placed": {"c"}}
    ledger["c"] = "compensation_failed"
    assert differing(books.audit(shop, orders, ledger)) == {"orders placed": {"c"}}


def test_sagas_nobody_ordered_are_found(shop, placed):
    """The comparison goes both ways."""
    orders, ledger = placed
    report = books.audit(shop, orders, ledger | {"ghost": "completed"})
    assert differing(report)["orders placed"] == {"ghost"}


def test_a_lost_effect_is_found(shop, placed):
    """An effect row that vanished unbalances whatever it carried."""
    with shop.transaction() as connection:
        mine = (database.effect.c.action == "charge") & (database.effect.c.order_id == "a")
        connection.execute(delete(database.effect).where(mine))
    assert differing(books.audit(shop, *placed)) == {"money charged and not refunded": {"a"}}


def test_without_a_ledger_only_the_shop_is_looked_at(shop, placed):
    """That is all a plain chain leaves behind."""
    report = books.audit(shop, placed[0])
    assert report.balanced
    assert len(report.lines) == 6


def test_many_differences_are_shown_as_a_few_and_a_number(shop, order):
    """A line stays a line."""
    orders = [order(f"o{number}") for number in range(8)]
    for one in orders:
        PaymentProvider(shop).charge(one, idempotency_key=one.id)
    text = str(books.audit(shop, orders).differing[0])
    assert "o4: 50.90 against 0.00; and 3 more]" in text
    assert "o5" not in text
    assert orders[0].total == Decimal("50.90")
