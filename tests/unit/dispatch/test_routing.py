"""Which queue a message goes to: Celery's own routing, asked once."""

import pytest
from celery import Celery
from kombu import Exchange, Queue

from sagakit.dispatch.routing import Routing


@pytest.fixture
def app() -> Celery:
    """An application with routes."""
    app = Celery("routes", broker="memory://", set_as_current=False)
    app.conf.task_routes = {"shop.charge": {"queue": "payments"}, "shop.audit": {"exchange": "audit"}}
    return app


def test_a_route_decides(app: Celery) -> None:
    """As for any task of that name."""
    assert Routing(app, None).queue_of("shop.charge") == "payments"


def test_the_step_s_own_queue_wins(app: Celery) -> None:
    """A queue given at the step or for one call comes before any route."""
    assert Routing(app, None).queue_of("shop.charge", "eu") == "eu"


def test_the_task_s_queue_wins_over_the_route(app: Celery) -> None:
    """task_annotations and base classes set it there."""

    @app.task(name="shop.charge", queue="annotated", shared=False)
    def charge() -> None: ...

    app.finalize()
    assert Routing(app, None).queue_of("shop.charge") == "annotated"


def test_without_a_route_the_default_queue_is_meant(app: Celery) -> None:
    """A worker that consumes the default queue has it."""
    assert Routing(app, None).queue_of("shop.ship") in (None, app.conf.task_default_queue)


def test_declared_queues_are_found(app: Celery) -> None:
    """A queue with an exchange of its own is named by its name."""
    app.conf.task_queues = [Queue("payments", Exchange("money"), routing_key="in"), Queue("celery")]
    assert Routing(app, None).queue_of("shop.charge") == "payments"


def test_a_route_is_asked_for_once(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the task's name alone."""
    routing = Routing(app, None)
    routing.queue_of("shop.charge")
    monkeypatch.setattr(app.amqp.router, "route", None)
    assert routing.queue_of("shop.charge") == "payments"


def test_the_coordinator_s_queue(app: Celery) -> None:
    """The default queue unless the settings say otherwise; sagas of a version have one of their own."""
    assert Routing(app, None).coordinator_queue == "celery"
    app.conf.task_default_queue = "main"
    assert Routing(app, None).coordinator_queue == "main"
    assert Routing(app, "coordinators").coordinator_queue == "coordinators"
    assert Routing.version_queue("shop.checkout", 2) == "sagakit.shop.checkout.v2"
