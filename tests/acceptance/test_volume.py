"""A thousand sagas of five steps: every effect once, and no more messages than there is work."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType

import pytest
import sqlalchemy as sa

from sagakit import SagaKit
from sagakit.states import SagaState
from tests.cluster.cluster import Cluster
from tests.cluster.effects import Effects
from tests.cluster.messages import PublishedMessages
from tests.cluster.waiting import wait_until

APP = "tests.acceptance.apps.volume"
SAGAS, STEPS = 1000, 5
REPUBLISH_AFTER = timedelta(seconds=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_sagas(
    cluster: Cluster,
    load_app: Callable[[str], ModuleType],
    effects: Effects,
    published: PublishedMessages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,000 sagas, started long before there is a worker, take effect exactly once through two prefork processes.

    The backlog is many times as long as the interval after which a message is doubted, and yet the messages that the
    broker was ever given are no more than one for each step and one for each saga.
    """
    settings = {
        "SAGAKIT_REPUBLISH_AFTER": f"{REPUBLISH_AFTER.total_seconds()}s",
        "SAGAKIT_SWEEP_INTERVAL": "1s",
    }
    cluster.env |= settings
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    module = load_app(APP)
    kit: SagaKit = module.kit
    module.checkout.start_many([(number, {"saga_id": f"order-{number}"}) for number in range(SAGAS)])
    wait_until(lambda: age(kit) > REPUBLISH_AFTER * 3, what="the messages to grow old")
    cluster.start(f"{APP}:app", workers=2, concurrency=1)

    wait_until(lambda: completed(kit) == SAGAS, 240, "all sagas to complete")

    assert Counter(effect.key for effect in effects.all()) == {
        f"order-{number}:{position}": 1 for number in range(SAGAS) for position in range(STEPS)
    }
    assert len({effect.pid for effect in effects.all()}) == 2
    assert time_taken(kit) > REPUBLISH_AFTER * 3
    assert attempts(kit) == (SAGAS * STEPS, 1)
    messages = published.by_task()
    assert messages["sagakit.advance"] == SAGAS
    assert messages.total() <= SAGAS * STEPS + SAGAS


def age(kit: SagaKit) -> timedelta:
    """How long ago the last saga was started, by the database's clock."""
    saga = kit.store.tables.saga
    with kit.store.read() as tx:
        newest = tx.connection.execute(sa.select(sa.func.max(saga.c.created_at))).scalar_one()
        return tx.now() - newest


def completed(kit: SagaKit) -> int:
    """How many sagas have completed; fails if one has ended otherwise."""
    with kit.store.read() as tx:
        counts = tx.queries.count_by_state()
    assert set(counts) <= {SagaState.PENDING, SagaState.RUNNING, SagaState.COMPLETED}, counts
    return counts.get(SagaState.COMPLETED, 0)


def time_taken(kit: SagaKit) -> timedelta:
    """From the first claim to the last outcome."""
    step = kit.store.tables.step
    with kit.store.read() as tx:
        first, last = tx.connection.execute(
            sa.select(sa.func.min(step.c.started_at), sa.func.max(step.c.finished_at))
        ).one()
    return last - first


def attempts(kit: SagaKit) -> tuple[int, int]:
    """How many rows there are, and the most often that one of them was claimed."""
    step = kit.store.tables.step
    with kit.store.read() as tx:
        rows, most = tx.connection.execute(sa.select(sa.func.count(), sa.func.max(step.c.attempt))).one()
    return rows, most
