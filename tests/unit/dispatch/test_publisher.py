"""Messages as they reach the broker, and what becomes of those that do not."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from sagakit.dispatch.envelope import ADVANCE_TASK, HEADER, AdvanceEnvelope, StepEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.dispatch.routing import Routing

AT = datetime(2026, 11, 20, tzinfo=UTC)
STEP = StepEnvelope(
    saga_id="order-1",
    saga_name="shop.checkout",
    position=2,
    token="t",
    task="shop.charge",
    name="charge",
    queue="payments",
    priority=3,
    sent_at=AT,
)
ADVANCE = AdvanceEnvelope(saga_id="order-1", saga_name="shop.checkout", sent_at=AT)


@pytest.fixture
def app() -> Iterator[Celery]:
    """An application on a broker in memory."""
    app = Celery("publishing", broker="memory://", set_as_current=False)
    yield app
    app.close()


def received(app: Celery, queue: str) -> list[Any]:
    """The messages in a queue."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        bound = app.amqp.queues[queue].bind(channel)
        return list(iter(lambda: bound.get(no_ack=True), None))


def publisher(app: Celery) -> Publisher:
    """A publisher for the application."""
    return Publisher(app, Routing(app, None))


def test_a_step_s_message(app: Celery) -> None:
    """Its real name, ids and the token, no arguments; a task id for all attempts; stamped with the saga."""
    assert publisher(app).publish([STEP])
    [message] = received(app, "payments")
    assert message.headers["task"] == "shop.charge"
    assert message.headers["id"] == "order-1.2"
    assert message.headers[HEADER] == {
        "saga_id": "order-1",
        "position": 2,
        "token": "t",
        "sent_at": AT.timestamp(),
    }
    assert message.headers["argsrepr"] == "checkout order-1 charge"
    assert message.headers["kwargsrepr"] == ""
    assert message.headers["stamps"] == {"saga_id": "order-1"}
    assert message.headers["ignore_result"] is True
    assert message.properties["priority"] == 3
    args, kwargs, _ = message.payload
    assert (args, kwargs) == ([], {})


def test_an_advance_message(app: Celery) -> None:
    """It goes to the coordinator's queue, or to that of a version."""
    to_version = AdvanceEnvelope(
        saga_id="order-2", saga_name="shop.checkout", queue="sagakit.shop.checkout.v2"
    )
    assert publisher(app).publish([ADVANCE, to_version])
    [message] = received(app, "celery")
    assert message.headers["task"] == ADVANCE_TASK
    assert message.headers["argsrepr"] == "checkout order-1"
    [other] = received(app, "sagakit.shop.checkout.v2")
    assert other.headers[HEADER] == {"saga_id": "order-2"}


def test_nothing_to_publish_asks_for_no_connection(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may be away."""
    monkeypatch.setattr(app, "producer_or_acquire", None)
    assert publisher(app).publish([])


def test_a_broker_that_is_away_is_told_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    """The row is the truth: a message that cannot be sent is logged, and the sweep sends it."""
    app = Celery("publishing", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.task_publish_retry = False
    with caplog.at_level(logging.WARNING, "sagakit"):
        assert not publisher(app).publish([STEP, ADVANCE])
    [record] = [record for record in caplog.records if record.name.startswith("sagakit")]
    assert record.getMessage().startswith("could not publish for saga order-1 (")
    assert record.getMessage().endswith("; the sweep will")
    app.close()


def test_eager_messages_take_their_turn() -> None:
    """What an eager task publishes runs after it, in order, as from a queue, and not within it."""
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    sending = publisher(app)
    seen: list[str] = []

    @app.task(name="shop.charge", bind=True, shared=False)
    def charge(task: Any) -> None:
        seen.append("charge begins")
        sending.publish([ADVANCE])
        seen.append("charge ends")

    @app.task(name=ADVANCE_TASK, bind=True, shared=False)
    def advance(task: Any) -> None:
        seen.append(f"advance {task.request.headers[HEADER]['saga_id']}")

    app.finalize()
    assert sending.publish([STEP])
    assert seen == ["charge begins", "charge ends", "advance order-1"]
    assert charge.name, advance.name
