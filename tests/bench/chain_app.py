"""The yardstick: a plain Celery chain of the same tasks, acknowledged late as a saga's steps are."""

import os

from celery import Celery, chain
from celery.canvas import Signature

from tests.bench.work import done

app = Celery("bench_chain", broker=os.environ["BENCH_CHAIN_BROKER_URL"])
app.conf.task_acks_late = True
app.conf.task_ignore_result = True


@app.task
def one(number: int) -> int:
    """Do nothing."""
    return number


@app.task
def two(number: int) -> int:
    """Do nothing."""
    return number


@app.task
def three(number: int) -> int:
    """Do nothing."""
    return number


@app.task
def four(number: int) -> int:
    """Do nothing."""
    return number


@app.task
def five(number: int) -> int:
    """Say so."""
    done(number)
    return number


def work(number: int) -> Signature:
    """One after the other."""
    return chain(one.s(number), two.s(), three.s(), four.s(), five.s())
