"""Everything works in a module whose annotations are text."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import pytest

from sagakit.coordinator.context import Saga
from sagakit.errors import DefinitionError, StepError
from tests.unit.coordinator.driving import StandInKit


@dataclass
class Order:
    total: Decimal


class Declined(StepError):
    reason: str
    order: Order | None = None


def test_declarations() -> None:
    """Types are found, whether they are global or local."""
    kit = StandInKit()

    @dataclass
    class Payment:
        amount: Decimal

    @kit.step(throws=(Declined,))
    def charge(order: Order, *rest: Decimal, local: Payment | None = None) -> Payment:
        return Payment(order.total)

    @charge.compensation
    def refund(payment: Payment | None, order: Order) -> None: ...

    @kit.saga
    async def checkout(saga: Saga, order: Order) -> Payment:
        return Payment(order.total)

    arguments = charge.signature.arguments
    text = arguments.dumps((Order(Decimal("1.0")), Decimal(2)), {"local": Payment(Decimal(3))})
    assert arguments.loads(text) == ((Order(Decimal("1.0")), Decimal(2)), {"local": Payment(Decimal(3))})
    assert refund.accepts_none
    assert checkout.input_codec.loads('{"total":"2.50"}') == Order(Decimal("2.50"))
    info = charge.describe_error(Declined(reason="x", order=Order(Decimal(1))))
    back = charge.rebuild_error(info)
    assert isinstance(back, Declined)
    assert back.order == Order(Decimal(1))


def test_type_that_is_not_there() -> None:
    """A type nobody has defined yet is an error that says so."""
    kit = StandInKit()
    with pytest.raises(
        DefinitionError,
        match=r"annotations.py:\d+: an annotation of charge cannot be resolved: name 'Later' is not",
    ):

        @kit.step
        def charge(order: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821
