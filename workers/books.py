"""The proof: the shop's books, recomputed from its own tables alone, and held against the ledger's view.

Nothing here asks a saga what it did. Each line of the report sets two numbers against each other that were written
by different parties, order by order, so that two mistakes cannot hide each other in a sum.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from workers.shop.database import ShopDatabase, call, effect, stock
from workers.shop.inventory import pieces
from workers.shop.models import Order, Reservation

UNDONE_BY = {
    "reserve": "release",
    "charge": "refund",
    "ship": "cancel_shipment",
    "invoice": "void_invoice",
    "confirm": "withdraw",
}
"""Each effect, and what takes it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One account, on which the two sides of a line disagree."""

    account: str
    left: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Two numbers that must be equal, account by account (an order, or an article).

    Attributes:
        left_is: what the left number counts.
        right_is: what the right number counts.
        money: the numbers are cents.
    """

    left_is: str
    left: int
    right_is: str
    right: int
    differences: tuple[Difference, ...]
    money: bool = False

    @property
    def balanced(self) -> bool:
        """Whether the two sides agree on every account."""
        return not self.differences

    def show(self, value: int) -> str:
        """One of the line's numbers, as people write it."""
        return f"{value / 100:,.2f}" if self.money else f"{value:,}"

    def __str__(self) -> str:
        text = f"{self.left_is} {self.show(self.left)}, {self.right_is} {self.show(self.right)}"
        if self.balanced:
            return text
        shown = [
            f"{one.account}: {self.show(one.left)} against {self.show(one.right)}"
            for one in self.differences[:5]
        ]
        more = len(self.differences) - len(shown)
        return f"{text} [{'; '.join(shown)}{f'; and {more} more' if more else ''}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What customers and the shop are left with, order by order, whoever is to blame."""

    charged_and_got_nothing: tuple[str, ...]
    charged_without_confirmation: tuple[str, ...]
    stock_held_for_nobody: tuple[str, ...]
    shipped_unpaid: tuple[str, ...]
    done_twice: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The books of one shop.

    Attributes:
        lines: every pair of numbers that was compared.
        damage: the orders that were left in between.
        effects: how many effects of each kind there are.
        repeated: calls that came again with a key already used, and were answered without acting.
    """

    lines: tuple[Line, ...]
    damage: Damage
    effects: Mapping[str, int]
    repeated: int

    @property
    def balanced(self) -> bool:
        """Whether every line balances."""
        return not self.differing

    @property
    def differing(self) -> tuple[Line, ...]:
        """The lines that do not balance."""
        return tuple(line for line in self.lines if not line.balanced)

    def verdict(self) -> str:
        """One sentence."""
        if self.balanced:
            return f"The books balance: {len(self.lines)} of {len(self.lines)} lines agree, order by order."
        return f"THE BOOKS DO NOT BALANCE: {len(self.differing)} of {len(self.lines)} lines differ."


@dataclass(slots=True)
class _Account:
    """What stands in the books for one order."""

    standing: Counter[str] = field(default_factory=Counter)
    cents: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    reserved: Counter[str] = field(default_factory=Counter)

    @property
    def confirmed(self) -> int:
        return self.standing["confirm"]


def audit(shop: ShopDatabase, orders: Iterable[Order], ledger: Mapping[str, str] | None = None) -> Report:
    """Recompute the books.

    Args:
        shop: the shop's database.
        orders: what the customers ordered.
        ledger: the state the ledger gives each order's saga; without it only the shop is looked at.
    """
    wanted = {order.id: order for order in orders}
    with shop.transaction() as connection:
        accounts, shelf_moves = _accounts(connection)
        repeated = len(connection.execute(select(call.c.id).where(call.c.outcome == "repeated")).all())
        shelf = {row.sku: (row.delivered, row.on_hand) for row in connection.execute(select(stock))}
    for order_id in wanted:
        accounts.setdefault(order_id, _Account())
    lines = [*_shop_lines(accounts, wanted), _shelf_line(shelf, shelf_moves)]
    if ledger is not None:
        lines += _ledger_lines(accounts, wanted, ledger)
    made: Counter[str] = Counter()
    for account in accounts.values():
        made += account.made
    return Report(
        lines=tuple(lines), damage=_damage(accounts), effects=dict(sorted(made.items())), repeated=repeated
    )


def _accounts(connection: Connection) -> tuple[dict[str, _Account], Counter[str]]:
    """Add up the effects by order, and the pieces that are off the shelf by article."""
    accounts: defaultdict[str, _Account] = defaultdict(_Account)
    off_shelf: Counter[str] = Counter()
    rows = {row.id: row for row in connection.execute(select(effect).order_by(effect.c.id))}
    for row in rows.values():
        account = accounts[row.order_id]
        account.made[row.action] += 1
        undone = rows.get(row.undoes)
        target, sign = (undone, -1) if undone is not None else (row, 1)
        account.standing[target.action] += sign
        account.cents[target.action] += sign * row.cents
        if target.action == "reserve":
            for sku, quantity in pieces(Reservation.model_validate_json(target.answer).items):
                account.reserved[sku] += sign * quantity
                off_shelf[sku] += sign * quantity
    return dict(accounts), off_shelf


def _shop_lines(accounts: Mapping[str, _Account], wanted: Mapping[str, Order]) -> list[Line]:
    def by_order(value: Callable[[str, _Account], int]) -> dict[str, int]:
        return {order_id: value(order_id, account) for order_id, account in accounts.items()}

    def ordered(order_id: str, account: _Account) -> int:
        order = wanted.get(order_id)
        return sum(item.quantity for item in order.items) * account.confirmed if order else 0

    confirmed = by_order(lambda _, account: account.confirmed)
    receipts = by_order(lambda _, account: account.cents["confirm"])
    return [
        _line(
            "pieces reserved and not released",
            by_order(lambda _, account: account.reserved.total()),
            "pieces in completed orders",
            by_order(ordered),
        ),
        _line(
            "money charged and not refunded",
            by_order(lambda _, account: account.cents["charge"]),
            "total of the receipts",
            receipts,
            money=True,
        ),
        _line(
            "shipments made and not cancelled",
            by_order(lambda _, account: account.standing["ship"]),
            "completed orders",
            confirmed,
        ),
        _line(
            "invoices issued and not voided",
            by_order(lambda _, account: account.cents["invoice"]),
            "total of the receipts",
            receipts,
            money=True,
        ),
        _line(
            "effects done a second time",
            by_order(lambda _, account: sum(max(0, n - 1) for n in account.made.values())),
            "allowed",
            by_order(lambda _, account: 0),
        ),
    ]


def _shelf_line(shelf: Mapping[str, tuple[int, int]], off_shelf: Mapping[str, int]) -> Line:
    return _line(
        "pieces delivered to the shop",
        {sku: delivered for sku, (delivered, _) in shelf.items()},
        "pieces on the shelf or reserved",
        {
            sku: shelf.get(sku, (0, 0))[1] + off_shelf.get(sku, 0)
            for sku in shelf.keys() | {sku for sku, quantity in off_shelf.items() if quantity}
        },
    )


def _ledger_lines(
    accounts: Mapping[str, _Account], wanted: Mapping[str, Order], ledger: Mapping[str, str]
) -> list[Line]:
    every = accounts.keys() | ledger.keys()

    def standing(order_id: str) -> int:
        return sum(accounts[order_id].standing.values()) if order_id in accounts else 0

    return [
        _line(
            "orders placed",
            dict.fromkeys(wanted, 1),
            "sagas that ended, all done or all undone",
            {order_id: int(state in ("completed", "compensated")) for order_id, state in ledger.items()},
        ),
        _line(
            "orders confirmed to customers",
            {order_id: account.confirmed for order_id, account in accounts.items()},
            "sagas the ledger calls completed",
            {order_id: int(state == "completed") for order_id, state in ledger.items()},
        ),
        _line(
            "effects that stand for compensated sagas",
            {order_id: standing(order_id) for order_id in every if ledger.get(order_id) == "compensated"},
            "allowed",
            {},
        ),
    ]


def _line(
    left_is: str, left: Mapping[str, int], right_is: str, right: Mapping[str, int], *, money: bool = False
) -> Line:
    differences = tuple(
        Difference(account=name, left=left.get(name, 0), right=right.get(name, 0))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, 0) != right.get(name, 0)
    )
    return Line(
        left_is=left_is,
        left=sum(left.values()),
        right_is=right_is,
        right=sum(right.values()),
        differences=differences,
        money=money,
    )


def _damage(accounts: Mapping[str, _Account]) -> Damage:
    def those(test: Callable[[_Account], bool]) -> tuple[str, ...]:
        return tuple(sorted(order_id for order_id, account in accounts.items() if test(account)))

    return Damage(
        charged_and_got_nothing=those(lambda a: a.cents["charge"] > 0 and a.standing["ship"] <= 0),
        charged_without_confirmation=those(lambda a: a.cents["charge"] > 0 and not a.confirmed),
        stock_held_for_nobody=those(lambda a: a.reserved.total() > 0 and a.cents["charge"] <= 0),
        shipped_unpaid=those(lambda a: a.standing["ship"] > 0 and a.cents["charge"] <= 0),
        done_twice=those(lambda a: any(n > 1 for n in a.made.values())),
    )
