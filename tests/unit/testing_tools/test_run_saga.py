"""``run_saga`` and ``takes``, as people use them in the tests of their own sagas."""

import asyncio
import unittest.mock
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry
from pydantic import BaseModel

from sagakit import (
    Compensated,
    CompensationFailed,
    Completed,
    Happened,
    NotHappened,
    Saga,
    SagaKit,
    StepContext,
    StepError,
    current_step,
)
from sagakit.definition.registry import shared
from sagakit.definition.saga import SagaDefinition
from sagakit.errors import ConfigurationError, InvalidInput, NonDeterminismError
from sagakit.states import Kind, StepState
from sagakit.testing import Call, run_saga, takes


class Order(BaseModel):
    id: str
    total: Decimal


class Payment(BaseModel):
    id: str


class PaymentDeclined(StepError):
    reason: str


ORDER = Order(id="42", total=Decimal("9.90"))


@pytest.fixture
def kit() -> Iterator[SagaKit]:
    """A kit that needs neither broker nor database, and leaves nothing behind."""
    before = list(shared._followers)
    yield SagaKit(Celery("shop", set_as_current=False))
    shared._followers[:] = before


@pytest.fixture
def shop(kit: SagaKit) -> SimpleNamespace:
    """A checkout of three steps, each with its compensation."""
    done: list[Any] = []

    @kit.step
    def reserve(order: Order) -> str:
        done.append("reserve")
        return f"reservation-{order.id}"

    @reserve.compensation
    def release(reservation: str, order: Order) -> None:
        done.append(("release", reservation, order.id))

    @kit.step(
        max_retries=2,
        retry_backoff=10,
        retry_jitter=False,
        throws=(PaymentDeclined,),
        unknown_for=TimeoutError,
    )
    def charge(order: Order, currency: str = "EUR") -> Payment:
        done.append("charge")
        return Payment(id=f"payment-{order.id}")

    @charge.compensation(max_retries=1, retry_backoff=60, retry_jitter=False)
    def refund(payment: Payment | None, currency: str) -> None:
        done.append(("refund", payment, currency, current_step.outcome))

    @kit.step
    async def ship(order: Order) -> str:
        await asyncio.sleep(0)
        done.append("ship")
        return "parcel"

    @ship.compensation
    def recall(parcel: str) -> None:
        done.append(("recall", parcel))

    @kit.saga
    async def checkout(saga: Saga, order: Order) -> str:
        await saga.step(reserve, order)
        payment = await saga.step(charge, order)
        return f"{payment.id} {await saga.step(ship, order)}"

    return SimpleNamespace(
        kit=kit,
        done=done,
        checkout=checkout,
        reserve=reserve,
        charge=charge,
        ship=ship,
        release=release,
        refund=refund,
        recall=recall,
    )


def test_saga_that_completes(shop: SimpleNamespace) -> None:
    """Steps without a stand-in run for real; the outcome has the body's result."""
    run = run_saga(shop.checkout, ORDER)
    assert run.outcome == Completed(saga_id="test-saga", result="payment-42 parcel")
    assert run.names == ["reserve", "charge", "ship"] == shop.done


def test_outcome_is_matched(shop: SimpleNamespace) -> None:
    """Outcomes are made for ``match``."""
    match run_saga(shop.checkout, ORDER, steps={shop.ship: OSError("no truck")}).outcome:
        case Compensated(failed_step, error, compensated):
            assert (failed_step, str(error), compensated) == (
                "ship",
                "OSError: no truck",
                ("charge", "reserve"),
            )
        case other:
            pytest.fail(f"{other}")


def test_business_error(shop: SimpleNamespace) -> None:
    """A declared error is not retried; what was done before is undone, with its result and arguments."""
    run = run_saga(shop.checkout, ORDER, steps={shop.charge: PaymentDeclined(reason="no funds")})
    assert isinstance(run.outcome, Compensated)
    assert run.outcome.failed_step == "charge"
    assert run.outcome.error is not None
    assert run.outcome.error.fields == {"reason": "no funds"}
    assert run.names == ["reserve", "charge", "release"]
    assert shop.done == ["reserve", ("release", "reservation-42", "42")]


def test_calls(shop: SimpleNamespace) -> None:
    """Every attempt is told, with its arguments, as the function gets them, and its virtual time."""
    run = run_saga(shop.checkout, ORDER, steps={shop.charge: OSError("bank is closed")})
    assert run.calls == (
        Call("reserve", Kind.STEP, (ORDER,), {}, 1, timedelta(0)),
        Call("charge", Kind.STEP, (ORDER, "EUR"), {}, 1, timedelta(0)),
        Call("charge", Kind.STEP, (ORDER, "EUR"), {}, 2, timedelta(seconds=10)),
        Call("charge", Kind.STEP, (ORDER, "EUR"), {}, 3, timedelta(seconds=30)),
        Call("release", Kind.COMPENSATION, ("reservation-42", ORDER), {}, 1, timedelta(seconds=30)),
    )
    assert run.outcome.duration == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("stand_in", "result"),
    [
        (Payment(id="other"), "other parcel"),
        (lambda order, currency: Payment(id=f"{order.id}{currency}"), "42EUR parcel"),
        (unittest.mock.Mock(return_value=Payment(id="mocked")), "mocked parcel"),
        (takes("2h", Payment(id="slow")), "slow parcel"),
        (takes("2h", lambda order, currency: Payment(id="slower")), "slower parcel"),
        (takes("2h"), "payment-42 parcel"),
    ],
)
def test_stand_ins(shop: SimpleNamespace, stand_in: Any, result: str) -> None:
    """A value is returned, a function is called; either may take time."""
    run = run_saga(shop.checkout, ORDER, steps={shop.charge: stand_in})
    assert isinstance(run.outcome, Completed)
    assert run.outcome.result == result


def test_stand_in_that_is_async(shop: SimpleNamespace) -> None:
    """Async functions stand in for async and for sync steps."""

    async def stand_in(order: Order, currency: str = "") -> Any:
        return Payment(id="awaited")

    outcome = run_saga(shop.checkout, ORDER, steps={shop.charge: stand_in}).outcome
    assert isinstance(outcome, Completed)
    assert outcome.result == "awaited parcel"


def test_stand_in_that_fails_at_first(shop: SimpleNamespace) -> None:
    """A function can tell attempts apart."""

    def flaky(order: Order, currency: str) -> Payment:
        if current_step.attempt < 3:
            raise ConnectionError
        return Payment(id=f"attempt {current_step.attempt} {current_step.idempotency_key}")

    outcome = run_saga(shop.checkout, ORDER, steps={shop.charge: flaky}).outcome
    assert isinstance(outcome, Completed)
    assert outcome.result == "attempt 3 test-saga:1 parcel"


def test_exception_classes_stand_in_too(shop: SimpleNamespace) -> None:
    """As with ``side_effect`` of a mock."""
    run = run_saga(shop.checkout, ORDER, steps={shop.ship: KeyError})
    assert run.outcome.error is not None
    assert run.outcome.error.type == "KeyError"


def test_failing_compensation(shop: SimpleNamespace) -> None:
    """Compensations can be stood in for as well; they are retried by their own policy, and never stop the others."""
    run = run_saga(
        shop.checkout, ORDER, steps={shop.ship: OSError("no truck"), shop.refund: OSError("bank is closed")}
    )
    assert isinstance(run.outcome, CompensationFailed)
    assert run.names == ["reserve", "charge", "ship", "refund", "refund", "release"]
    assert (run.outcome.compensated, run.outcome.not_compensated) == (("reserve",), ("charge",))
    assert [row.state for row in run.rows if row.kind is Kind.COMPENSATION] == [
        StepState.FAILED,
        StepState.SUCCEEDED,
    ]


def test_unknown_outcome(shop: SimpleNamespace) -> None:
    """``unknown_for`` makes an exception an unknown outcome: the compensation that admits it is called with None."""
    run = run_saga(shop.checkout, ORDER, steps={shop.charge: TimeoutError("no answer")})
    assert run.names == ["reserve", "charge", "charge", "charge", "refund", "release"]
    assert ("refund", None, "EUR", "unknown") in shop.done
    assert isinstance(run.outcome, Compensated)


def test_unknown_attempt_before_a_failure(shop: SimpleNamespace) -> None:
    """An attempt that may have taken effect taints the failure after it."""
    answers = iter([TimeoutError("no answer"), OSError("refused"), OSError("refused")])

    def charge(order: Order, currency: str) -> Payment:
        raise next(answers)

    run_saga(shop.checkout, ORDER, steps={shop.charge: charge})
    assert ("refund", None, "EUR", "unknown") in shop.done


@pytest.mark.parametrize(
    ("answer", "undone"),
    [
        (Happened(Payment(id="found")), [("refund", Payment(id="found"), "EUR", "succeeded")]),
        (NotHappened(), []),
        (NotHappened, []),
        (OSError("no idea"), [("refund", None, "EUR", "unknown")]),
    ],
)
def test_probe(shop: SimpleNamespace, answer: Any, undone: list[Any]) -> None:
    """A probe says whether an unknown step took effect, and with which result."""

    @shop.charge.probe(max_retries=0)
    def find(order: Order) -> Any: ...

    run = run_saga(
        shop.checkout, ORDER, steps={shop.charge: TimeoutError(), find: lambda order: _answer(answer)}
    )
    assert "probe charge" in run.names
    assert [entry for entry in shop.done if entry[0] == "refund"] == undone


def _answer(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_step_s_result_that_does_not_fit(shop: SimpleNamespace) -> None:
    """A step that returns what its type does not allow took effect, and nobody knows its result."""
    run = run_saga(shop.checkout, ORDER, steps={shop.charge: "no payment"})
    assert run.outcome.error is not None
    assert run.outcome.error.message.startswith("the result of charge does not fit: ")
    assert ("refund", None, "EUR", "unknown") in shop.done


def test_virtual_time(shop: SimpleNamespace) -> None:
    """Sleeps and timeouts cost no time, and come in order."""

    @shop.kit.saga
    async def patient(saga: Saga, order: Order) -> str:
        await asyncio.sleep(86_400)
        try:
            async with asyncio.timeout(60):
                await saga.step(shop.charge, order)
        except TimeoutError:
            return f"gave up at {saga.now():%d %H:%M}"
        return "charged"

    run = run_saga(patient, ORDER, steps={shop.charge: takes("90s", Payment(id="late"))})
    assert isinstance(run.outcome, Completed)
    assert run.outcome.result == "gave up at 02 00:01"
    assert run.names == ["charge", "refund"]
    assert run.outcome.compensated == ("charge",)
    assert run.outcome.duration == timedelta(days=1, seconds=90)
    run = run_saga(patient, ORDER, steps={shop.charge: takes("30s", Payment(id="in time"))})
    assert isinstance(run.outcome, Completed)
    assert run.outcome.result == "charged"


def test_parallel_steps_end_by_their_time(shop: SimpleNamespace) -> None:
    """What takes longest ends last, and is undone first."""

    @shop.kit.saga
    async def parallel(saga: Saga, order: Order) -> None:
        await asyncio.gather(
            saga.step(shop.reserve, order), saga.step(shop.charge, order), saga.step(shop.ship, order)
        )
        raise ValueError("after all")

    run = run_saga(
        parallel,
        ORDER,
        steps={
            shop.reserve: takes(2, "r"),
            shop.charge: takes(3, Payment(id="p")),
            shop.ship: takes(1, "s"),
        },
    )
    assert run.names == ["reserve", "charge", "ship", "refund", "release", "recall"]
    assert run.outcome.compensated == ("charge", "reserve", "ship")


def test_deadline(shop: SimpleNamespace) -> None:
    """A saga past its deadline is undone."""
    run = run_saga(shop.checkout, ORDER, steps={shop.ship: takes("2h", "late")}, deadline="1h")
    assert isinstance(run.outcome, Compensated)
    assert run.outcome.error is not None
    assert run.outcome.error.type == "sagakit.SagaDeadlineExceeded"
    assert run.names == ["reserve", "charge", "ship", "recall", "refund", "release"]


def test_saga_id(shop: SimpleNamespace) -> None:
    """The saga's id can be chosen, for keys that are made of it."""
    assert run_saga(shop.checkout, ORDER, saga_id="order-42").outcome.saga_id == "order-42"


def test_input_is_checked(shop: SimpleNamespace) -> None:
    """As ``start`` does."""
    with pytest.raises(InvalidInput, match="the input of checkout does not fit: total: Field required"):
        run_saga(shop.checkout, {"id": "42"})


def test_keys_must_be_steps(shop: SimpleNamespace) -> None:
    """A stand-in that could never be used is an error, or the real step would run unnoticed."""
    with pytest.raises(
        ConfigurationError,
        match=r"run_saga\(steps=\.\.\.\) is keyed by the steps, compensations and probes themselves, not by 'charge'",
    ):
        run_saga(shop.checkout, ORDER, steps={"charge": PaymentDeclined(reason="x")})
    assert not shop.done


def test_body_that_is_not_deterministic(shop: SimpleNamespace) -> None:
    """The body is replayed at every advance, so what is not deterministic shows."""
    runs = iter(range(100))

    @shop.kit.saga
    async def odd(saga: Saga, order: Order) -> None:
        if next(runs) % 2:
            await saga.step(shop.charge, order)
        await saga.step(shop.reserve, order)

    with pytest.raises(NonDeterminismError, match="expected step 'reserve', found step 'charge'"):
        run_saga(odd, ORDER)


def test_saga_of_no_kit() -> None:
    """A saga that belongs to no kit has no steps."""

    async def body(saga: Saga) -> None: ...

    definition: SagaDefinition[None, None] = SagaDefinition(body, name="shop.body")
    assert isinstance(run_saga(definition).outcome, Completed)


def test_bound_steps(kit: SagaKit) -> None:
    """A bound step gets its context first, and may ask for a retry."""
    seen: list[Any] = []

    @kit.step(bind=True, max_retries=2)
    def charge(self: StepContext, amount: int) -> int:
        seen.append((self.saga_id, self.step_name, self.attempt, self.position))
        if self.attempt == 1:
            self.retry(OSError("not yet"), countdown="1m")
        return amount

    @kit.saga
    async def checkout(saga: Saga) -> int:
        return await saga.step(charge, 5)

    run = run_saga(checkout)
    assert isinstance(run.outcome, Completed)
    assert run.outcome.result == 5
    assert seen == [("test-saga", "charge", 1, 0), ("test-saga", "charge", 2, 0)]
    assert [call.at for call in run.calls] == [timedelta(0), timedelta(minutes=1)]
    assert run.calls[0].args == (5,)


def test_retries_that_run_out(kit: SagaKit) -> None:
    """Asking for more retries than there are fails the step, with the reason given."""

    @kit.step(max_retries=1)
    def charge() -> None:
        current_step.retry(OSError("not yet"), countdown=5)

    @kit.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(charge)

    run = run_saga(checkout)
    assert run.names == ["charge", "charge"]
    assert run.outcome.error is not None
    assert (run.outcome.error.type, run.outcome.error.message) == ("OSError", "not yet")


def test_inside_a_running_loop(shop: SimpleNamespace) -> None:
    """An async test may run a saga too, async steps included."""

    async def async_test() -> bool:
        outcome = run_saga(shop.checkout, ORDER).outcome
        await asyncio.sleep(0)  # its own loop is as it was
        return isinstance(outcome, Completed)

    assert asyncio.run(async_test())


@pytest.mark.parametrize(("when", "waits"), [(90, 90), (None, 180), ("eta", 3600)])
def test_celery_s_own_retry(kit: SagaKit, when: Any, waits: int) -> None:
    """A step written for Celery raises ``Retry``, with seconds or a time, or leaves the wait to its options."""

    @kit.step(max_retries=1)
    def charge() -> int:
        if current_step.attempt == 1:
            at = datetime.now(UTC) + timedelta(hours=1) if when == "eta" else when
            raise Retry(exc=OSError("not yet"), when=at)
        return 5

    @kit.saga
    async def checkout(saga: Saga) -> int:
        return await saga.step(charge)

    run = run_saga(checkout)
    assert isinstance(run.outcome, Completed)
    assert run.calls[1].at.total_seconds() == pytest.approx(waits, abs=5)
