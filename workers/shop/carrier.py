"""The carrier: takes parcels, and is the service that misbehaves in every way a service can."""

from sqlalchemy import func, select

from workers.shop.database import ShopDatabase, call
from workers.shop.effects import CallOutcome, Request, act, find, note, undo
from workers.shop.errors import ShipmentRefused
from workers.shop.models import Fault, Order, Shipment

FLAKY_CALLS = 2
"""So many first calls of a flaky order fail to connect."""


class Carrier:
    """The simulated carrier."""

    def __init__(self, shop: ShopDatabase) -> None:
        self._shop = shop

    def ship(self, order: Order, *, idempotency_key: str) -> Shipment:
        """Have the order's parcel fetched.

        Raises:
            ShipmentRefused: the carrier does not go there; nothing is booked.
            ConnectionError: the carrier could not be reached; nothing is booked.
            TimeoutError: the connection broke while waiting for the answer; the parcel may be booked or not.
        """
        request = Request(action="ship", order_id=order.id, key=idempotency_key)
        if order.fault is Fault.CARRIER_REFUSES:
            self._note(request, "refused")
            raise ShipmentRefused(reason="no delivery to this address")
        if order.fault is Fault.CARRIER_FLAKY and self._calls(request) < FLAKY_CALLS:
            self._note(request, "failed")
            raise ConnectionError("carrier: connection refused")
        with self._shop.call() as connection:
            shipment, _ = act(connection, request, Shipment(tracking=request.reference))
        if order.fault is Fault.CARRIER_TIMEOUT:
            raise TimeoutError("carrier: no answer within 5 s")  # after the commit: the parcel is booked
        return shipment

    def find(self, order: Order) -> Shipment | None:
        """The parcel booked for the order, if one is."""
        with self._shop.call() as connection:
            found = find(connection, action="ship", order_id=order.id)
        return Shipment.model_validate_json(found.answer) if found else None

    def cancel(self, order: Order, *, tracking: str, idempotency_key: str) -> None:
        """Call the parcel back."""
        request = Request(action="cancel_shipment", order_id=order.id, key=idempotency_key)
        with self._shop.call() as connection:
            undo(connection, request, action="ship", reference=tracking)

    def _calls(self, request: Request) -> int:
        query = select(func.count()).where(
            call.c.order_id == request.order_id, call.c.action == request.action
        )
        with self._shop.transaction() as connection:
            return connection.execute(query).scalar_one()

    def _note(self, request: Request, outcome: CallOutcome) -> None:
        with self._shop.call() as connection:
            note(connection, request, outcome)
