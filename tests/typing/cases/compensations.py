"""Compensations and probes stay callable with their own types."""

from dataclasses import dataclass
from typing import assert_type

from celery import Celery

from sagakit import Happened, NotHappened, Saga, SagaKit, StepContext, current_step


@dataclass
class Payment:
    id: str


kit = SagaKit(Celery("shop"))


@kit.step
def charge(amount: int) -> Payment:
    return Payment("1")


@charge.compensation
def refund(payment: Payment | None, amount: int) -> bool:
    assert_type(current_step.saga_id, str | None)
    return payment is not None


@charge.probe
def find(amount: int) -> Happened[Payment] | NotHappened:
    return Happened(Payment("1")) if amount else NotHappened()


@kit.step
async def ship(amount: int) -> str:
    return "parcel"


@ship.compensation(max_retries=20)
def recall(parcel: str) -> None: ...


@kit.step
def pack(amount: int) -> str:
    return "parcel"


@pack.compensation(bind=True, max_retries=20)
def unpack(self: StepContext, parcel: str) -> None:
    assert_type(self.attempt, int)


assert_type(refund(Payment("1"), 5), bool)
assert_type(refund(None, amount=5), bool)
refund(5)  # E
assert_type(find(5), Happened[Payment] | NotHappened)
find("5")  # E
recall("parcel")
recall(5)  # E
unpack("parcel")
unpack(5)  # E


async def body(saga: Saga) -> None:
    await saga.step(charge, 5)
    await saga.step(refund, Payment("1"), 5)  # E
