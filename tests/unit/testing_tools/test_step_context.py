"""Steps are ordinary functions; ``step_context`` gives them the ``current_step`` they ask for."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from sagakit import SagaKit, StepContext, current_step
from sagakit.definition.registry import shared
from sagakit.errors import UseAStep
from sagakit.testing import step_context
from sagakit.worker.context import StepRetry


@pytest.fixture
def kit() -> Iterator[SagaKit]:
    before = list(shared._followers)
    yield SagaKit(Celery("shop", set_as_current=False))
    shared._followers[:] = before


def test_step_in_a_context(kit: SagaKit) -> None:
    """A step sees what the test says."""

    @kit.step
    def charge(amount: int) -> tuple[int, str, str | None, int]:
        return amount, current_step.idempotency_key, current_step.saga_id, current_step.attempt

    with step_context(idempotency_key="k", saga_id="order-42", attempt=2):
        assert charge(5) == (5, "k", "order-42", 2)


def test_bound_step_in_a_context(kit: SagaKit) -> None:
    """A bound step gets the context as its first argument."""

    @kit.step(bind=True)
    def charge(self: StepContext, amount: int) -> tuple[int, str]:
        return amount, self.idempotency_key

    with step_context(idempotency_key="k") as context:
        assert charge(5) == (5, "k")
        assert context.step_name == "step"


def test_compensation_in_a_context(kit: SagaKit) -> None:
    """A compensation can be told that the outcome is unknown."""

    @kit.step
    def charge() -> int: ...  # type: ignore[empty-body]

    @charge.compensation
    def refund(payment: int | None) -> str | None:
        return current_step.outcome

    with step_context(outcome="unknown"):
        assert refund(None) == "unknown"


def test_outside_a_context() -> None:
    """The error says what to do."""
    with pytest.raises(UseAStep) as caught:
        current_step.idempotency_key  # noqa: B018
    assert str(caught.value) == (
        "current_step is only there while a step runs; in a unit test, call the step inside "
        "`with sagakit.testing.step_context():`"
    )
    assert repr(current_step) == "<current_step: none>"


def test_contexts_nest() -> None:
    """The inner context ends where its block does."""
    with step_context(idempotency_key="outer"):
        with step_context(idempotency_key="inner"):
            assert current_step.idempotency_key == "inner"
        assert current_step.idempotency_key == "outer"
        assert "idempotency_key='outer'" in repr(current_step)


def test_retry_in_a_context() -> None:
    """A retry is an exception, with its delay."""
    with step_context(), pytest.raises(StepRetry) as caught:
        current_step.retry(OSError("not yet"), countdown="10s")
    assert caught.value.delay is not None
    assert caught.value.delay.total_seconds() == 10


def test_progress_in_a_context() -> None:
    """Telling how far it is needs no worker."""
    with step_context() as context:
        current_step.progress(1, 2, "half")
        told: list[str] = []
        context.report = told.append
        current_step.progress(1, 2, "half")
        current_step.progress(3)
    assert told == ["1/2 half", "3"]


def test_log_in_a_context(caplog: pytest.LogCaptureFixture) -> None:
    """A step's log names the saga and the step."""
    with caplog.at_level(logging.INFO, "sagakit.step"), step_context(saga_id="order-42", step_name="charge"):
        current_step.log.info("charged %s", 5, extra={"amount": 5})
    record: Any = caplog.records[0]
    assert record.getMessage() == "order-42 charge: charged 5"
    assert (record.saga_id, record.step_name, record.amount) == ("order-42", "charge", 5)
