"""The contestant: a saga of five steps."""

import os

from celery import Celery

from sagakit import Saga, SagaKit
from tests.bench.work import done

app = Celery("bench_saga", broker=os.environ["BENCH_SAGA_BROKER_URL"])
kit = SagaKit(app)


@kit.step
def one(number: int) -> int:
    """Do nothing."""
    return number


@kit.step
def two(number: int) -> int:
    """Do nothing."""
    return number


@kit.step
def three(number: int) -> int:
    """Do nothing."""
    return number


@kit.step
def four(number: int) -> int:
    """Do nothing."""
    return number


@kit.step
def five(number: int) -> int:
    """Say so."""
    done(number)
    return number


@kit.saga
async def work(saga: Saga, number: int) -> int:
    """One after the other."""
    for step in (one, two, three, four, five):
        number = await saga.step(step, number)
    return number
