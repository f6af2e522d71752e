"""Business errors are dataclasses to a type checker."""

from decimal import Decimal
from typing import assert_type

from celery import Celery

from sagakit import Saga, SagaKit, StepError, StepFailed, StepUnknown


class PaymentDeclined(StepError):
    reason: str
    amount: Decimal | None = None


class OutOfStock(StepError):
    pass


kit = SagaKit(Celery("shop"))


@kit.step(throws=(PaymentDeclined, OutOfStock), unknown_for=(TimeoutError,))
def charge(amount: int) -> int:
    if amount > 5:
        raise PaymentDeclined(reason="no funds")
    raise OutOfStock


PaymentDeclined(reason="no funds", amount=Decimal(1))
PaymentDeclined()  # E
PaymentDeclined("no funds")  # E
PaymentDeclined(reason=5)  # E
PaymentDeclined(reason="no funds", code=3)  # E


async def body(saga: Saga) -> int:
    try:
        return await saga.step(charge, 5)
    except PaymentDeclined as exc:
        assert_type(exc.reason, str)
        assert_type(exc.amount, Decimal | None)
        assert_type(exc.step, str | None)
        return exc.code  # E
    except StepUnknown:
        raise
    except StepFailed as exc:
        assert_type(exc.message, str)
        assert_type(exc.traceback, str | None)
        return 0
