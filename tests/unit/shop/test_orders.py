"""Orders: the same for the same seed, every fault among them, and files with errors that name the line."""

from collections import Counter

import pytest

from workers import orders
from workers.orders import BadOrders
from workers.shop.models import Fault

GOOD = '{"id": "order-1", "customer": "Ada", "items": [{"sku": "cup", "quantity": 2, "price": "6.50"}]}'


def test_generated_orders_are_the_same_for_the_same_seed():
    """A demo can be repeated."""
    assert orders.generate(50, seed=7) == orders.generate(50, seed=7)
    assert orders.generate(50, seed=7) != orders.generate(50, seed=8)


@pytest.mark.parametrize("count", [20, 200, 1000])
def test_every_fault_gets_its_share(count):
    """Even a small demo shows each fault, and most orders go well."""
    fates = Counter(order.fault for order in orders.generate(count))
    assert all(fates[fault] == max(1, round(count * share)) for fault, share in orders.FAULTS.items())
    assert fates[None] > count / 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_handful_of_orders_is_as_many_as_asked_for(count):
    """There may be fewer orders than faults."""
    assert len(orders.generate(count)) == count


def test_ids_are_unique_and_sort_in_order():
    """Saga ids are made from them."""
    ids = [order.id for order in orders.generate(12_000)]
    assert ids == sorted(set(ids))


def test_deliveries_cover_all_orders():
    """Nothing runs out but by plan."""
    generated = orders.generate(30)
    pieces = sum(item.quantity for order in generated for item in order.items)
    assert sum(orders.deliveries(generated).values()) == pieces


def test_orders_survive_a_file(tmp_path):
    """What was written is read back as itself."""
    path, generated = tmp_path / "orders.jsonl", orders.generate(40)
    orders.write(path, generated)
    assert orders.read(path) == generated


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path):
    """Files come from everywhere."""
    path = tmp_path / "orders.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n  \n" + GOOD.replace("order-1", "order-2").encode()
    )
    assert [order.id for order in orders.read(path)] == ["order-1", "order-2"]


def test_unicode_line_separators_inside_a_string_do_not_end_the_line(tmp_path):
    """JSON allows them, ``splitlines`` would cut there."""
    path = tmp_path / "orders.jsonl"
    path.write_text(GOOD.replace("Ada", "A\u2028da"), encoding="utf-8")
    assert orders.read(path)[0].customer == "A\u2028da"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ('{"id": "x"}', "customer: Field required; items: Field required"),
        (GOOD.replace("2", "0"), "items.0.quantity: Input should be greater than 0"),
        (
            GOOD.replace("6.50", "6.505"),
            "items.0.price: Decimal input should have no more than 2 decimal places",
        ),
        (GOOD.replace("6.50", "-1"), "items.0.price: Input should be greater than or equal to 0"),
        (GOOD.replace("order-1", "or der"), "id: String should match pattern"),
        (
            GOOD.replace('"customer"', '"fault": "hail", "customer"'),
            "fault: Input should be 'out_of_stock', 'card_",
        ),
        (GOOD.replace('"customer"', '"colour": "red", "customer"'), "colour: Extra inputs are not permitted"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, line, problem):
    """One line, with file, line number, field and reason."""
    path = tmp_path / "orders.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(BadOrders) as caught:
        orders.read(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert problem in str(caught.value)


def test_two_orders_of_one_id_are_named_with_both_lines(tmp_path):
    """They would be one saga."""
    path = tmp_path / "orders.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(BadOrders, match=r"orders\.jsonl:2: id: 'order-1' was used on line 1 already"):
        orders.read(path)


def test_a_missing_an_empty_and_a_binary_file_are_named(tmp_path):
    """Each says what it is and, where there is one, the way out."""
    path = tmp_path / "orders.jsonl"
    with pytest.raises(BadOrders, match=r"orders\.jsonl: No such file or directory"):
        orders.read(path)
    path.write_text("\n")
    with pytest.raises(BadOrders, match=r"orders\.jsonl: no orders in it; write one JSON object a line"):
        orders.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadOrders, match=r"orders\.jsonl: not UTF-8 text"):
        orders.read(path)


def test_the_example_in_the_error_is_an_order(tmp_path):
    """Whoever copies it must succeed."""
    path = tmp_path / "orders.jsonl"
    path.write_text(orders._EXAMPLE)
    assert orders.read(path)[0].fault is None
    assert Fault("carrier_timeout") is Fault.CARRIER_TIMEOUT
