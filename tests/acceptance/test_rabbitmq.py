"""The same sagas through RabbitMQ, which differs from Redis in priorities, acknowledgements and queues."""

from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest

from sagakit import Compensated
from tests.cluster.cluster import Cluster
from tests.cluster.effects import Effects

MANNERS = "tests.acceptance.apps.manners:app"
UNDO = "tests.acceptance.apps.undo:app"


@pytest.fixture
def broker_url(amqp_url: str) -> str:
    """RabbitMQ."""
    return amqp_url


def test_undoing(cluster: Cluster, load_app: Callable[[str], ModuleType], effects: Effects) -> None:
    """A saga that fails is undone in reverse order."""
    undo = load_app(UNDO)
    cluster.start(UNDO)
    outcome = undo.checkout.start(undo.Order(item="lamp", price=Decimal(1)), saga_id="rabbit").outcome(30)
    assert isinstance(outcome, Compensated)
    assert effects.names("rabbit") == ["reserve", "charge", "pack", "unpack", "refund", "release"]


def test_steps(cluster: Cluster, load_app: Callable[[str], ModuleType], effects: Effects) -> None:
    """Routes, retries, revoked tasks and starts by message work as they do with Redis."""
    manners = load_app(MANNERS)
    cluster.start(MANNERS, queues=["celery", "routed"])

    def call(step: str, *args: Any, **options: Any) -> Any:
        return manners.one.start(manners.Call(step=step, args=list(args), options=options))

    handles = [call("routed"), call("bound", 10), call("asynchronous", 1), call("unplaced", queue="routed")]
    results = [handle.result(30) for handle in handles]
    assert [results[0]["routing_key"], results[1], results[2], results[3]["routing_key"]] == [
        "routed",
        13,
        2,
        "routed",
    ]
    manners.app.send_task(manners.echo.name, args=(21,), task_id="by-message")
    effects.wait_for(step="plain", saga_id="by-message")
    assert manners.kit.get("by-message").result(30) == 42
