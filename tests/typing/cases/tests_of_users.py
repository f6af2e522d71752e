"""What people write in the tests of their sagas."""

from typing import assert_type

from celery import Celery

from sagakit import Completed, Saga, SagaKit, StepContext, StepError
from sagakit.testing import Call, SagaRun, run_saga, step_context, takes


class Declined(StepError):
    reason: str


kit = SagaKit(Celery("shop"))


@kit.step
def charge(amount: int) -> int:
    return amount


@charge.compensation
def refund(result: int) -> None: ...


@kit.saga
async def checkout(saga: Saga, amount: int) -> int:
    return await saga.step(charge, amount)


def test_step() -> None:
    with step_context(idempotency_key="k", attempt=2) as context:
        assert_type(context, StepContext)
        assert_type(charge(5), int)
    with step_context(idempotency_key=5):  # E
        pass


def test_saga() -> None:
    run = run_saga(
        checkout, 5, steps={charge: Declined(reason="x"), refund: takes("2h", None)}, deadline="1h"
    )
    assert_type(run.names, list[str])
    assert_type(run.calls, tuple[Call, ...])
    if isinstance(run.outcome, Completed):
        assert_type(run.outcome.result, int)
    assert isinstance(run, SagaRun)
    run_saga(checkout, "5")  # E
