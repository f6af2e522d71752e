"""The business errors of a checkout: answers, not accidents, so they are never retried."""

from sagakit import StepError


class OutOfStock(StepError):
    """Inventory has not enough of an article."""

    sku: str


class PaymentDeclined(StepError):
    """The customer's bank said no."""

    reason: str


class ShipmentRefused(StepError):
    """The carrier does not take the parcel."""

    reason: str
