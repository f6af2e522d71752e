"""The smallest application with a saga, for the tests of the cluster itself."""

from celery import Celery

from sagakit import Saga, SagaKit
from tests.cluster import effects

app = Celery("sagas")
kit = SagaKit(app)


@kit.step
def first(number: int) -> int:
    """Take effect, behind a gate."""
    effects.pass_gate("first")
    effects.record(detail=number)
    return number + 1


@first.compensation
def undo_first(result: int, number: int) -> None:
    """Take the first step back."""
    effects.record(detail=[result, number])


@kit.step
def second(number: int) -> int:
    """Take effect, or fail if the test says so."""
    if effects.told("fail"):
        raise ValueError("told to")
    effects.record(detail=number)
    return number + 1


@kit.saga
async def count(saga: Saga, number: int) -> int:
    """Two steps, one after the other."""
    return await saga.step(second, await saga.step(first, number))
