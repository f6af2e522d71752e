"""The simulated services: they act once per key, commit inside the call, and can take everything back."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from sqlalchemy import select

from workers.shop import database
from workers.shop.carrier import FLAKY_CALLS, Carrier
from workers.shop.database import ShopDatabase
from workers.shop.desk import OrderDesk
from workers.shop.errors import OutOfStock, PaymentDeclined, ShipmentRefused
from workers.shop.inventory import Inventory
from workers.shop.invoicing import Invoicing
from workers.shop.models import Fault, Invoice, Payment, Shipment
from workers.shop.payments import PaymentProvider


def on_hand(shop: ShopDatabase) -> dict[str, int]:
    with shop.transaction() as connection:
        return {row.sku: row.on_hand for row in connection.execute(select(database.stock))}


def calls(shop: ShopDatabase) -> Counter[tuple[str, str]]:
    with shop.transaction() as connection:
        return Counter((row.action, row.outcome) for row in connection.execute(select(database.call)))


def test_reserving_takes_the_pieces_off_the_shelf(shop, order):
    """A reservation moves stock; releasing it moves the same stock back."""
    inventory = Inventory(shop)
    reservation = inventory.reserve(order(), idempotency_key="k")
    assert on_hand(shop) == {"cup": 96, "teapot": 9}
    inventory.release(order(), reservation=reservation.id, idempotency_key="u")
    assert on_hand(shop) == {"cup": 100, "teapot": 10}


def test_a_second_call_with_one_key_gets_the_first_ones_answer(shop, order):
    """Neither goods nor money move twice, and the repeated call is counted."""
    inventory, psp = Inventory(shop), PaymentProvider(shop)
    assert inventory.reserve(order(), idempotency_key="k") == inventory.reserve(order(), idempotency_key="k")
    assert psp.charge(order(), idempotency_key="k") == psp.charge(order(), idempotency_key="k")
    assert on_hand(shop) == {"cup": 96, "teapot": 9}
    assert shop.effects("charge") == shop.effects("reserve") == 1
    assert calls(shop)["charge", "repeated"] == calls(shop)["reserve", "repeated"] == 1


def test_two_keys_are_two_effects(shop, order):
    """Without a stable key a customer pays twice: the services do not hide it."""
    psp = PaymentProvider(shop)
    first, second = (psp.charge(order(), idempotency_key=key) for key in ("a", "b"))
    assert first.id != second.id
    assert first.amount == Decimal("50.90")
    assert shop.effects("charge") == 2


def test_an_effect_is_taken_back_once_whatever_the_key(shop, order):
    """Two refunds under two keys give the money back once."""
    psp = PaymentProvider(shop)
    payment = psp.charge(order(), idempotency_key="k")
    for key in ("u1", "u1", "u2"):
        psp.refund(order(), payment=payment.id, idempotency_key=key)
    assert shop.effects("refund") == 1
    assert calls(shop)["refund", "repeated"] == 2


def test_releasing_twice_puts_the_pieces_back_once(shop, order):
    """A repeated compensation does not make stock out of nothing."""
    inventory = Inventory(shop)
    inventory.reserve(order(), idempotency_key="k")
    inventory.release(order(), reservation=None, idempotency_key="u1")
    inventory.release(order(), reservation=None, idempotency_key="u2")
    assert on_hand(shop) == {"cup": 100, "teapot": 10}


def test_the_right_one_of_two_effects_is_taken_back(shop, order):
    """A reference says which payment is meant."""
    psp = PaymentProvider(shop)
    psp.charge(order(), idempotency_key="a")
    second = psp.charge(order(), idempotency_key="b")
    psp.refund(order(), payment=second.id, idempotency_key="u")
    with shop.transaction() as connection:
        refund = connection.execute(select(database.effect).where(database.effect.c.action == "refund")).one()
        undone = connection.execute(
            select(database.effect).where(database.effect.c.id == refund.undoes)
        ).one()
    assert undone.reference == second.id


def test_taking_back_what_never_happened_is_no_error(shop, order):
    """A compensation of unknown outcome may find nothing to undo."""
    PaymentProvider(shop).refund(order(), payment=None, idempotency_key="u")
    assert shop.effects("refund") == 0
    assert calls(shop)["refund", "nothing_to_do"] == 1


def test_a_declined_card_is_not_charged(shop, order):
    """The error carries its reason, the call is logged, nothing else happens."""
    with pytest.raises(PaymentDeclined) as caught:
        PaymentProvider(shop).charge(order(fault=Fault.CARD_DECLINED), idempotency_key="k")
    assert caught.value.reason == "insufficient funds"
    assert shop.effects("charge") == 0
    assert calls(shop)["charge", "refused"] == 1


def test_a_planned_shortage_reserves_nothing(shop, order):
    """The error names the article, and the shelf is untouched."""
    with pytest.raises(OutOfStock) as caught:
        Inventory(shop).reserve(order(fault=Fault.OUT_OF_STOCK), idempotency_key="k")
    assert caught.value.sku == "teapot"
    assert on_hand(shop) == {"cup": 100, "teapot": 10}
    assert shop.effects("reserve") == 0


def test_a_real_shortage_reserves_nothing_at_all(shop, order):
    """The second article is missing: the first one is put back by the same rollback."""
    inventory = Inventory(shop)
    for number in range(10):
        inventory.reserve(order(f"order-{number}"), idempotency_key=f"k{number}")
    with pytest.raises(OutOfStock) as caught:
        inventory.reserve(order("order-late"), idempotency_key="late")
    assert caught.value.sku == "teapot"
    assert on_hand(shop) == {"cup": 60, "teapot": 0}
    assert calls(shop)["reserve", "refused"] == 1


def test_a_flaky_carrier_gets_through_in_the_end(shop, order):
    """The first calls fail to connect and book nothing."""
    carrier, flaky = Carrier(shop), order(fault=Fault.CARRIER_FLAKY)
    for _ in range(FLAKY_CALLS):
        with pytest.raises(ConnectionError):
            carrier.ship(flaky, idempotency_key="k")
    assert carrier.find(flaky) is None
    assert carrier.ship(flaky, idempotency_key="k") == carrier.find(flaky)


def test_a_carrier_that_times_out_has_acted(shop, order):
    """The effect exists although the caller got no answer; asking finds it."""
    carrier, lost = Carrier(shop), order(fault=Fault.CARRIER_TIMEOUT)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            carrier.ship(lost, idempotency_key="k")
    found = carrier.find(lost)
    assert found is not None
    assert shop.effects("ship") == 1
    carrier.cancel(lost, tracking=found.tracking, idempotency_key="u")
    assert shop.effects("cancel_shipment") == 1


def test_a_refused_parcel_is_not_booked(shop, order):
    """The carrier says no before it acts."""
    carrier = Carrier(shop)
    with pytest.raises(ShipmentRefused):
        carrier.ship(order(fault=Fault.CARRIER_REFUSES), idempotency_key="k")
    assert carrier.find(order()) is None


def test_invoices_and_confirmations_can_be_taken_back(shop, order):
    """Every effect has its compensation."""
    invoicing, desk = Invoicing(shop), OrderDesk(shop)
    payment = Payment(id="p", amount=Decimal("50.90"))
    invoice = invoicing.issue(order(), payment, idempotency_key="i")
    assert invoice == Invoice(number=invoice.number, amount=Decimal("50.90"))
    receipt = desk.confirm(order(), Shipment(tracking="t"), invoice, idempotency_key="c")
    assert receipt.total == order().total
    invoicing.void(order(), number=invoice.number, idempotency_key="v")
    desk.withdraw(order(), idempotency_key="w")
    assert shop.effects("void_invoice") == shop.effects("withdraw") == 1


def test_complaints_are_taken_once(shop):
    """An error callback may run more than once for one order."""
    desk = OrderDesk(shop)
    desk.complain("order-1", "ship: gone")
    desk.complain("order-1", "ship: gone")
    with shop.transaction() as connection:
        assert len(connection.execute(select(database.complaint)).all()) == 1


def test_many_threads_with_one_key_act_once(shop, order):
    """The uniqueness of a key is the database's, not a check beforehand."""
    inventory = Inventory(shop)
    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(lambda _: inventory.reserve(order(), idempotency_key="k").id, range(40)))
    assert len(answers) == 1
    assert on_hand(shop) == {"cup": 96, "teapot": 9}


def test_only_sqlite_and_postgres_are_taken():
    """Another database is refused with the setting's name."""
    with pytest.raises(
        ValueError, match=r"SHOP_DATABASE_URL: the shop runs on sqlite or postgresql, not on mysql"
    ):
        ShopDatabase("mysql://localhost/shop").open({})


def test_only_an_empty_shop_gets_its_first_delivery(shop):
    """Workers that start again do not fill the shelves again; a delivery on purpose adds to them."""
    shop.open({"cup": 1000}, only_if_empty=True)
    assert on_hand(shop) == {"cup": 100, "teapot": 10}
    shop.open({"cup": 1, "tray": 5})
    assert on_hand(shop) == {"cup": 101, "teapot": 10, "tray": 5}


def test_many_processes_may_open_one_shop_at_once(tmp_path):
    """Tables are created under a lock."""
    shops = [ShopDatabase(f"sqlite:///{tmp_path / 'new.db'}") for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda one: one.open({"cup": 7}, only_if_empty=True), shops))
    assert on_hand(shops[0]) == {"cup": 7}
    for one in shops:
        one.close()
