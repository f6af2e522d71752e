"""Sagas in Celery's canvas: after plain tasks, between them, beside each other."""

from typing import Any

from celery import Celery
from pydantic import BaseModel

from sagakit import Saga, SagaKit
from tests.acceptance.apps import act
from tests.cluster import effects

app = Celery("canvas", set_as_current=False)
app.conf.worker_send_task_events = True
app.conf.worker_prefetch_multiplier = 1
kit = SagaKit(app, sweep_interval="1s")


class Loan(BaseModel):
    """What to lend to whom."""

    reader: str
    book: int


@kit.step
def book_out(number: int) -> int:
    """Has an effect."""
    act()
    return number * 2


@kit.saga
async def lend(saga: Saga, number: int) -> int:
    """Takes a plain value."""
    return await saga.step(book_out, number)


@kit.saga
async def lend_to(saga: Saga, loan: Loan) -> str:
    """Takes a model."""
    return f"{loan.reader}: {await saga.step(book_out, loan.book)}"


@app.task
def plain(value: Any) -> Any:
    """Passes on what it is given."""
    return value


@app.task
def note(value: Any, name: str) -> None:
    """Records what the task before it passed on."""
    effects.record("canvas", name, detail=value)
