"""The values a checkout handles: an order, what the services answer, and the receipt."""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s/?#]+$")]
Money = Annotated[Decimal, Field(max_digits=18, decimal_places=2)]


class Fault(StrEnum):
    """What goes wrong with an order. Carried on the order, so that every run of it meets the same fate."""

    OUT_OF_STOCK = "out_of_stock"
    """Inventory has none of its first item left."""
    CARD_DECLINED = "card_declined"
    """The payment provider declines the card."""
    CARRIER_REFUSES = "carrier_refuses"
    """The carrier does not deliver to the address; by then the customer has been charged."""
    CARRIER_FLAKY = "carrier_flaky"
    """The carrier's first calls fail to connect; a retry gets through."""
    CARRIER_TIMEOUT = "carrier_timeout"
    """The carrier books the parcel, then the connection times out: the caller cannot know."""


class Frozen(BaseModel):
    """A value: never changed once made, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(Frozen):
    """So many pieces of one article."""

    sku: Identifier
    quantity: int = Field(gt=0, le=10_000)
    price: Money = Field(ge=0, lt=1_000_000)


class Order(Frozen):
    """What a customer wants."""

    id: Identifier
    customer: str = Field(min_length=1)
    items: tuple[Item, ...] = Field(min_length=1, max_length=1_000)
    fault: Fault | None = None

    @property
    def total(self) -> Decimal:
        """What the customer is to pay."""
        return sum((item.price * item.quantity for item in self.items), Decimal("0.00"))


class Reservation(Frozen):
    """Inventory's answer: these items are put aside."""

    id: str
    items: tuple[Item, ...]


class Payment(Frozen):
    """The payment provider's answer."""

    id: str
    amount: Money


class Shipment(Frozen):
    """The carrier's answer."""

    tracking: str


class Invoice(Frozen):
    """The invoicing service's answer."""

    number: str
    amount: Money


class Receipt(Frozen):
    """What the customer gets in the end."""

    order_id: str
    total: Money
    tracking: str
    invoice: str
