"""The saga side of a run: the shop opened, the orders sent, the ledger watched."""

from collections.abc import Mapping, Sequence

from sagakit import SagaKit
from sagakit.states import OPEN_SAGA_STATES, SagaState
from workers.demo.progress import Standing
from workers.shop.database import ShopDatabase
from workers.shop.models import Order


def send(orders: Sequence[Order]) -> None:
    """Start one checkout saga for each order, under the order's id."""
    from workers.sagas.checkout import checkout

    checkout.start_many([(order, {"saga_id": order.id}) for order in orders])


def standing(kit: SagaKit, shop: ShopDatabase) -> Standing:
    """How many sagas are in which state."""
    with kit.store.read() as transaction:
        counts = transaction.queries.count_by_state()
    ended = sum(count for state, count in counts.items() if state not in OPEN_SAGA_STATES)
    return Standing(
        ended=ended,
        counts={state.value: counts.get(state, 0) for state in SagaState},
        effects=shop.effects(),
    )


def states(kit: SagaKit, orders: Sequence[Order]) -> Mapping[str, str]:
    """The state the ledger gives each saga, by saga id."""
    return {saga.id: saga.state.value for saga in kit.find(limit=len(orders) + 1)}
