"""What is undone when a body fails, or stops waiting for a step: exactly what took effect, the last first."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from sagakit.account import Account, draw_up
from sagakit.coordinator.compensation import NOT_CALLED
from sagakit.coordinator.context import Saga
from sagakit.coordinator.decide import CANCELLED, DEADLINE, decide
from sagakit.errors import ErrorInfo, StepError, StepFailed
from sagakit.states import Kind, SagaState, StepState
from tests.unit.coordinator.driving import START, Declined, Ledger, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def parallel(shop: Shop) -> Any:
    """A saga of four steps at once."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await asyncio.gather(*[saga.step(step) for step in (shop.reserve, shop.charge, shop.ship, shop.mail)])

    return checkout


def account(ledger: Ledger) -> Account:
    return draw_up(ledger.rows, failed=ledger.saga.error is not None)


# A body that fails


def test_reverse_order(shop: Shop) -> None:
    """Three steps whose fourth fails are undone one by one, the last first."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        for step in (shop.reserve, shop.charge, shop.ship, shop.mail):
            await saga.step(step)

    ledger = Ledger.of(checkout)
    for name in ("reserve", "charge", "ship"):
        ledger.end(name)
        ledger.advance()
    ledger.end("mail", error=OSError("no mail today"))
    for name in ("recall", "refund", "release"):
        ledger.advance()
        assert ledger.saga.state is SagaState.COMPENSATING
        assert ledger.open == [name]
        ledger.end(name)
    ledger.advance()
    assert ledger.saga.state is SagaState.COMPENSATED
    assert ledger.saga.failed_step == "mail"
    assert (ledger.error.type, ledger.error.message) == ("OSError", "no mail today")
    assert [(row.name, row.compensates) for row in ledger.rows[4:]] == [
        ("recall", 2),
        ("refund", 1),
        ("release", 0),
    ]
    assert account(ledger) == Account(compensated=("ship", "charge", "reserve"))


def test_order_is_that_of_completion(parallel: Any) -> None:
    """Of steps that ran at once, the one that completed last is undone first, whatever order they were issued in."""
    ledger = Ledger.of(parallel)
    for name in ("ship", "reserve", "charge"):
        ledger.end(name)
        ledger.advance()
    ledger.end("mail", error=ValueError())
    ledger.advance()
    assert ledger.finish().undone == ["refund", "release", "recall"]


def test_steps_that_ended_in_one_commit(parallel: Any) -> None:
    """Steps that ended between two advances are fed, and undone, by their position."""
    ledger = Ledger.of(parallel)
    for name in ("ship", "charge", "reserve"):
        ledger.end(name)
    ledger.end("mail", error=ValueError())
    ledger.advance()
    assert ledger.finish().undone == ["recall", "refund", "release"]


def test_failure_drains_what_runs_and_withdraws_what_does_not(parallel: Any) -> None:
    """One of several fails: what no worker has begun is withdrawn, what runs is waited for, and then undone."""
    ledger = Ledger.of(parallel)
    ledger.claim("reserve", "charge")
    ledger.end("mail", error=ValueError())
    ledger.advance()
    assert ledger["ship"].state is StepState.CANCELLED
    assert ledger.open == ["reserve", "charge"]
    ledger.end("charge")
    ledger.advance()
    assert ledger.open == ["reserve"]
    ledger.end("reserve", error=OSError())
    ledger.advance()
    assert ledger.open == ["refund"]
    assert ledger.finish().undone == ["refund"]
    assert ledger.saga.state is SagaState.COMPENSATED


def test_step_that_would_be_retried_while_draining(parallel: Any) -> None:
    """A running step that fails while the saga drains, and would be retried, is withdrawn instead."""
    ledger = Ledger.of(parallel)
    ledger.claim("reserve")
    ledger.end("mail", error=ValueError())
    ledger.advance()
    ledger.retry("reserve")
    ledger.advance()
    assert ledger["reserve"].state is StepState.CANCELLED
    assert ledger.saga.state is SagaState.COMPENSATED


def test_withdrawn_step_that_may_have_taken_effect(parallel: Any) -> None:
    """If an attempt of it was lost before, nobody knows: it is unknown, not cancelled."""
    ledger = Ledger.of(parallel)
    ledger.claim("reserve")
    ledger.end("mail", error=ValueError())
    ledger.advance()
    ledger.retry("reserve")
    ledger.tainted.add(ledger["reserve"].position)
    ledger.advance()
    assert ledger["reserve"].state is StepState.UNKNOWN
    assert ledger["release"].state is StepState.SKIPPED
    assert ledger.saga.state is SagaState.COMPENSATION_FAILED
    assert account(ledger) == Account(unknown=("reserve",))


def test_retried_compensation_is_waited_for(shop: Shop) -> None:
    """A compensation that is to be tried again is not withdrawn."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        raise ValueError

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.claim("release")
    ledger.retry("release")
    ledger.advance(seconds=3600)
    assert ledger.open == ["release"]
    assert ledger.finish().saga.state is SagaState.COMPENSATED


def test_failed_compensation_does_not_stop_the_others(shop: Shop) -> None:
    """It is reported; the rest is undone all the same."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        for step in (shop.reserve, shop.charge, shop.ship):
            await saga.step(step)
        raise ValueError("out of luck")

    ledger = Ledger.of(checkout)
    for name in ("reserve", "charge", "ship", "recall"):
        ledger.end(name)
        ledger.advance()
    ledger.end("refund", error=OSError("bank is closed"))
    ledger.advance()
    assert ledger.open == ["release"]
    ledger.end("release")
    ledger.advance()
    assert ledger.saga.state is SagaState.COMPENSATION_FAILED
    assert (ledger.error.message, ledger.saga.failed_step) == ("out of luck", None)
    assert account(ledger) == Account(compensated=("ship", "reserve"), not_compensated=("charge",))


def test_unknown_compensation_is_a_failed_one(shop: Shop) -> None:
    """A compensation nobody knows the end of has not undone anything for certain."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        raise ValueError

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.end("release", unknown=True)
    ledger.advance()
    assert ledger.saga.state is SagaState.COMPENSATION_FAILED
    assert account(ledger).not_compensated == ("reserve",)


def test_body_that_carries_on_undoes_nothing(shop: Shop) -> None:
    """A body may catch a step's error and take another way."""

    @shop.saga
    async def checkout(saga: Saga) -> int:
        await saga.step(shop.reserve)
        try:
            await saga.step(shop.charge)
        except Declined:
            return await saga.step(shop.ship, 5)
        return 0

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.end("charge", error=Declined(reason="x"))
    ledger.advance()
    assert ledger.finish().saga.state is SagaState.COMPLETED
    assert (ledger.result, ledger.undone) == (5, [])


def test_steps_of_a_finally_block_run_before_anything_is_undone(shop: Shop) -> None:
    """The body's own cleaning up comes first."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        try:
            await saga.step(shop.reserve)
            raise ValueError
        finally:
            await saga.step(shop.mail)

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    assert (ledger.saga.state, ledger.open) == (SagaState.RUNNING, ["mail"])
    assert ledger.finish().names == ["reserve", "mail", "release"]
    assert ledger.error.short_type == "ValueError"


def test_command_of_the_last_moment_is_never_sent(shop: Shop) -> None:
    """A step issued in the advance in which the body ends is on record, and goes nowhere."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        task = asyncio.create_task(asyncio.wait_for(saga.step(shop.charge), 60))
        await asyncio.sleep(0)
        raise ValueError(task.done())

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    late = ledger["charge"]
    assert (late.state, late.abandoned, ledger["timeout"].state) == (
        StepState.CANCELLED,
        True,
        StepState.CANCELLED,
    )
    assert ledger.open == ["release"]


# Why it failed


class Worse(Exception):
    pass


@pytest.mark.parametrize("how", ["group", "from", "context", "caught before", "declared", "own"])
def test_the_step_that_failed(shop: Shop, how: str) -> None:
    """The step whose error ended the body is found however its error was wrapped; an own error has none."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(saga.step(shop.charge))
        try:
            await saga.step(shop.charge)
        except (StepFailed, StepError) as exc:
            if how == "from":
                raise Worse("wrapped") from exc
            if how == "context":
                raise Worse("wrapped")  # noqa: B904
            if how == "declared":
                raise
        raise Worse("own")

    ledger = Ledger.of(checkout)
    ledger.end("charge", error=Declined(reason="x") if how == "declared" else OSError("lost"))
    ledger.advance()
    error, failed_step = ledger.error, ledger.saga.failed_step
    expected = {
        "group": ("ExceptionGroup", "charge"),
        "from": ("test_compensating.Worse", "charge"),
        "context": ("test_compensating.Worse", "charge"),
        "caught before": ("test_compensating.Worse", None),
        "declared": ("driving.Declined", "charge"),
        "own": ("test_compensating.Worse", None),
    }
    assert (".".join(error.type.split(".")[-2:]), failed_step) == expected[how]
    if how == "declared":
        assert error.fields == {"reason": "x"}
        assert error.traceback is not None
    elif how == "group":
        assert "OSError: lost" in (error.traceback or "")


# Unknown outcomes


def undo_unknown(shop: Shop, step: Any) -> Ledger:
    """A saga of ``mail`` before and ``reserve`` after the step whose outcome is unknown, where the body gives up."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await saga.step(step)

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.end(step.label, error=TimeoutError("no answer"), unknown=True)
    ledger.advance()
    return ledger


def test_unknown_without_a_way_to_find_out(shop: Shop) -> None:
    """A compensation that needs the result is not called, and says why; the others are."""
    ledger = undo_unknown(shop, shop.charge)
    skipped = ledger["refund"]
    assert skipped.state is StepState.SKIPPED
    assert skipped.error is not None
    assert skipped.error.type == NOT_CALLED
    assert skipped.error.message == (
        "not called: nobody knows whether charge took effect. Give charge a probe, or let the first parameter of "
        "refund admit None, then replay it"
    )
    assert ledger.open == ["release"]
    assert ledger.finish().saga.state is SagaState.COMPENSATION_FAILED
    assert account(ledger) == Account(compensated=("reserve",), unknown=("charge",))


@pytest.mark.parametrize("several", [1, 2, 3])
def test_several_unknown_steps(shop: Shop, several: int) -> None:
    """Each gets a row of its own, at a position of its own."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await asyncio.gather(*[saga.step(shop.charge) for _ in range(several)])

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    for position in range(1, several + 1):
        ledger.end(position, unknown=True)
    ledger.advance()
    assert ledger.undone == ["refund"] * several + ["release"]
    assert sorted(row.compensates or 0 for row in ledger.rows if row.name == "refund") == list(
        range(1, several + 1)
    )
    assert ledger.finish().saga.state is SagaState.COMPENSATION_FAILED


def test_unknown_with_a_compensation_that_admits_none(shop: Shop) -> None:
    """A compensation that can do without the result is called."""

    @shop.step
    def order() -> int: ...  # type: ignore[empty-body]

    @order.compensation
    def withdraw(result: int | None) -> None: ...

    ledger = undo_unknown(shop, order)
    assert ledger.open == ["withdraw"]
    assert ledger.finish().undone == ["withdraw", "release"]
    assert ledger.saga.state is SagaState.COMPENSATED
    assert account(ledger) == Account(compensated=("order", "reserve"))


def probed(shop: Shop, *, admits_none: bool = False) -> Any:
    @shop.step
    def order() -> int: ...  # type: ignore[empty-body]

    if admits_none:

        @order.compensation
        def withdraw(result: int | None) -> None: ...
    else:

        @order.compensation
        def withdraw(result: int) -> None: ...

    @order.probe
    def find() -> Any: ...

    return order


def test_probe_finds_that_it_happened(shop: Shop) -> None:
    """Then the step is undone like any other, at its place in the order."""
    ledger = undo_unknown(shop, probed(shop))
    assert ledger.open == ["probe order"]
    assert (ledger.rows[-1].kind, ledger.rows[-1].task) == (Kind.PROBE, "shop.find")
    ledger.end("probe order", {"happened": True, "result": 7})
    ledger.advance()
    assert ledger.open == ["withdraw"]
    assert ledger.finish().saga.state is SagaState.COMPENSATED
    assert ledger.undone == ["withdraw", "release"]
    assert account(ledger) == Account(compensated=("order", "reserve"))


def test_probe_finds_that_it_did_not_happen(shop: Shop) -> None:
    """Then there is nothing to undo."""
    ledger = undo_unknown(shop, probed(shop))
    ledger.end("probe order", {"happened": False})
    ledger.advance()
    assert ledger.finish().undone == ["release"]
    assert ledger.saga.state is SagaState.COMPENSATED
    assert account(ledger) == Account(compensated=("reserve",))


@pytest.mark.parametrize("admits_none", [True, False])
def test_probe_that_fails(shop: Shop, admits_none: bool) -> None:
    """Then nobody knows, as without a probe."""
    ledger = undo_unknown(shop, probed(shop, admits_none=admits_none))
    ledger.end("probe order", error=OSError())
    ledger.advance()
    assert ledger["withdraw"].state is (StepState.SCHEDULED if admits_none else StepState.SKIPPED)
    ledger.finish()
    assert ledger.undone == ["withdraw", "release"]
    assert account(ledger).unknown == (() if admits_none else ("order",))


def test_compensation_of_what_was_found_fails(shop: Shop) -> None:
    """What is known to have happened and is not undone is no longer unknown."""
    ledger = undo_unknown(shop, probed(shop))
    ledger.end("probe order", {"happened": True, "result": 7})
    ledger.advance()
    ledger.end("withdraw", error=OSError())
    ledger.advance()
    ledger.finish()
    assert account(ledger) == Account(compensated=("reserve",), not_compensated=("order",))


def test_unknown_step_that_cannot_be_undone(shop: Shop) -> None:
    """A step without a compensation is not undone; that it is unknown is still told."""
    ledger = undo_unknown(shop, shop.mail)
    assert ledger.finish().saga.state is SagaState.COMPENSATED
    assert account(ledger) == Account(compensated=("reserve",), unknown=("mail",))


# Abandoned steps


def test_late_success_after_a_timeout_is_undone(shop: Shop) -> None:
    """A step the body gave up on, and which succeeds later, is undone though the body carried on and completed."""

    @shop.saga
    async def checkout(saga: Saga) -> str:
        await saga.step(shop.reserve)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await saga.step(shop.charge)
        await saga.step(shop.ship)
        return "done"

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.claim("charge")
    decision = ledger.advance(seconds=5)
    assert decision.abandoned == (ledger["charge"].position,)
    ledger.end("ship")
    ledger.advance()
    # The body is over, but what it has abandoned still runs.
    assert (ledger.saga.state, ledger.saga.body_done, ledger.open) == (SagaState.RUNNING, True, ["charge"])
    ledger.end("charge")
    ledger.advance()
    assert (ledger.saga.state, ledger.open) == (SagaState.RUNNING, ["refund"])
    ledger.end("refund")
    ledger.advance()
    assert (ledger.saga.state, ledger.result) == (SagaState.COMPLETED, "done")
    assert account(ledger) == Account(compensated=("charge",))


def test_late_success_while_the_body_goes_on(shop: Shop) -> None:
    """It resolves when it resolves, and is undone only once the body is over."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)
        await saga.step(shop.ship)

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.advance(seconds=5)
    ledger.end("charge")
    assert ledger.advance().inserted == ()
    ledger.end("ship")
    ledger.advance()
    assert ledger.open == ["refund"]
    assert ledger.finish().saga.state is SagaState.COMPLETED


def test_late_failure_is_nothing(shop: Shop) -> None:
    """An abandoned step that fails needs no undoing."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.advance(seconds=5)
    ledger.end("charge", error=OSError())
    ledger.advance()
    assert (ledger.saga.state, ledger.undone) == (SagaState.COMPLETED, [])


def test_abandoned_step_no_worker_has_begun(shop: Shop) -> None:
    """It is withdrawn, and the saga need not wait for it."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)

    ledger = Ledger.of(checkout)
    ledger.advance(seconds=5)
    assert (ledger["charge"].state, ledger["charge"].abandoned) == (StepState.CANCELLED, True)
    assert ledger.saga.state is SagaState.COMPLETED


def test_abandoned_step_that_is_to_be_retried(shop: Shop) -> None:
    """An abandoned step that would be tried again is withdrawn at the next advance."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)
        await saga.step(shop.ship)

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.advance(seconds=5)
    ledger.retry("charge")
    ledger.advance()
    assert ledger["charge"].state is StepState.CANCELLED
    assert ledger.open == ["ship"]


@pytest.mark.parametrize("outcome", ["undone", "not undone"])
def test_abandoned_step_of_a_completed_body_that_is_unknown(shop: Shop, outcome: str) -> None:
    """If what was abandoned cannot be undone, the saga is not simply completed."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.advance(seconds=5)
    ledger.end("charge", unknown=outcome == "not undone")
    ledger.advance()
    ledger.finish()
    expected = SagaState.COMPLETED if outcome == "undone" else SagaState.COMPENSATION_FAILED
    assert ledger.saga.state is expected


@pytest.mark.parametrize("together", [True, False])
def test_loser_of_a_race(shop: Shop, together: bool) -> None:
    """``wait`` for the first, and return: the other is undone, even if it has ended in the very same moment."""

    @shop.saga
    async def checkout(saga: Saga) -> list[int]:
        done, _ = await asyncio.wait(
            [saga.step(shop.reserve, 1), saga.step(shop.charge, 2)], return_when=asyncio.FIRST_COMPLETED
        )
        return [future.result() for future in done]

    ledger = Ledger.of(checkout)
    ledger.claim("reserve", "charge")
    ledger.end("reserve")
    if together:
        ledger.end("charge")
    ledger.advance()
    if not together:
        assert ledger.saga.state is SagaState.RUNNING
        ledger.end("charge")
        ledger.advance()
    assert ledger.result == [1]
    assert ledger.open == ["refund"]
    assert ledger.finish().saga.state is SagaState.COMPLETED
    assert account(ledger) == Account(compensated=("charge",))


def test_loser_that_is_awaited_after_all(shop: Shop) -> None:
    """A loser the body comes back to is no loser."""

    @shop.saga
    async def checkout(saga: Saga) -> int:
        done, pending = await asyncio.wait(
            [saga.step(shop.reserve, 1), saga.step(shop.charge, 2)], return_when=asyncio.FIRST_COMPLETED
        )
        return done.pop().result() + await pending.pop()

    ledger = Ledger.of(checkout)
    ledger.end("charge")
    ledger.advance()
    ledger.end("reserve")
    ledger.advance()
    assert (ledger.saga.state, ledger.result, ledger.undone) == (SagaState.COMPLETED, 3, [])


def test_loser_while_another_task_cleans_up(shop: Shop) -> None:
    """Once the body has returned, what nobody awaits is abandoned; what a task awaits in ``finally`` is not."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async def left() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await saga.step(shop.ship)

        task = asyncio.create_task(left())
        await asyncio.wait(
            [saga.step(shop.reserve), saga.step(shop.charge)], return_when=asyncio.FIRST_COMPLETED
        )
        assert not task.done()

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.end("reserve")
    ledger.advance()
    assert (ledger["charge"].abandoned, ledger["ship"].abandoned) == (True, False)
    ledger.end("charge")
    ledger.end("ship")
    ledger.advance()
    assert ledger.finish().undone == ["refund"]
    assert ledger.saga.state is SagaState.COMPLETED


@pytest.mark.parametrize("fails", [True, False])
def test_cancelled_task(shop: Shop, fails: bool) -> None:
    """A step whose task is cancelled is abandoned; if the body fails, it takes its place among the others."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async def work() -> None:
            await saga.step(shop.charge)

        task = asyncio.create_task(work())
        await saga.step(shop.reserve)
        task.cancel()
        await saga.step(shop.ship)
        if fails:
            raise ValueError

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    for name in ("reserve", "charge", "ship"):
        ledger.end(name)
        ledger.advance()
    ledger.finish()
    assert ledger.undone == (["recall", "refund", "release"] if fails else ["refund"])


def test_task_left_running(shop: Shop) -> None:
    """A step that a task still awaits when the body returns is abandoned."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async def work() -> None:
            await saga.step(shop.charge)

        task = asyncio.create_task(work())
        await saga.step(shop.reserve)
        assert not task.done()

    ledger = Ledger.of(checkout)
    ledger.claim("charge")
    ledger.end("reserve")
    ledger.advance()
    ledger.end("charge")
    ledger.advance()
    assert ledger.finish().undone == ["refund"]
    assert ledger.saga.state is SagaState.COMPLETED


def test_shielded_step_is_not_abandoned(shop: Shop) -> None:
    """``shield`` keeps a timeout away from the step: the body may come back to it."""

    @shop.saga
    async def checkout(saga: Saga) -> int:
        future = saga.step(shop.charge, 3)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(future), 5)
        return await future

    ledger = Ledger.of(checkout)
    ledger.advance(seconds=5)
    assert not ledger["charge"].abandoned
    ledger.end("charge")
    ledger.advance()
    assert (ledger.saga.state, ledger.result) == (SagaState.COMPLETED, 3)


def test_step_cancelled_as_soon_as_it_is_issued(shop: Shop) -> None:
    """A step that is given up in the moment it is issued is never sent."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        saga.step(shop.charge).cancel()
        await saga.step(shop.reserve)

    ledger = Ledger.of(checkout)
    assert (ledger["charge"].state, ledger["charge"].abandoned) == (StepState.CANCELLED, True)
    assert ledger.open == ["reserve"]
    assert ledger.finish().saga.state is SagaState.COMPLETED


# Deadlines and cancellation


def test_deadline(shop: Shop) -> None:
    """Past its deadline a saga is undone; its body is not run again."""
    runs: list[None] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        runs.append(None)
        await saga.step(shop.reserve)
        await saga.step(shop.charge)

    ledger = Ledger.of(checkout, deadline=60)
    assert ledger.decisions[-1].wake_at == ledger.saga.deadline_at
    ledger.end("reserve")
    ledger.advance()
    ledger.claim("charge")
    del runs[:]
    ledger.advance(seconds=60)
    assert not runs
    assert (ledger.saga.state, ledger.open) == (SagaState.COMPENSATING, ["charge"])
    assert ledger.error == ErrorInfo(
        type=DEADLINE, message="not completed by its deadline, 2030-01-01T00:01:00+00:00"
    )
    ledger.end("charge")
    ledger.advance()
    assert ledger.finish().undone == ["refund", "release"]
    assert ledger.saga.state is SagaState.COMPENSATED


def test_deadline_comes_before_a_later_timer(shop: Shop) -> None:
    """The saga wakes for whichever is first."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await asyncio.sleep(100)

    for deadline, wakes_after in ((60, 60), (200, 100)):
        ledger = Ledger.of(checkout, deadline=deadline)
        wake_at = ledger.decisions[-1].wake_at
        assert wake_at is not None
        assert (wake_at - START).total_seconds() == wakes_after


def test_deadline_before_anything_was_done(shop: Shop) -> None:
    """A saga no worker has looked at in time has nothing to undo."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)

    ledger = Ledger.of(checkout, deadline=60, advance=False)
    ledger.advance(seconds=3600)
    assert (ledger.saga.state, ledger.rows) == (SagaState.COMPENSATED, [])


def test_outcome_that_was_not_fed_before_the_deadline_is_undone(shop: Shop) -> None:
    """What ended in time but is looked at too late took effect all the same."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)

    ledger = Ledger.of(checkout, deadline=60)
    ledger.end("reserve")
    ledger.advance(seconds=61)
    assert ledger.open == ["release"]


def test_cancelled_saga_needs_no_code(shop: Shop) -> None:
    """A saga that was cancelled is undone from its rows alone: no body, no definition."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await asyncio.gather(saga.step(shop.charge), asyncio.sleep(1000))

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    cancelled = ErrorInfo(type=CANCELLED, message="customer withdrew")
    ledger.saga = replace(ledger.saga, state=SagaState.COMPENSATING, error=cancelled)
    ledger.definition = None  # type: ignore[assignment]
    ledger.advance()
    assert (ledger["charge"].state, ledger["sleep"].state) == (StepState.CANCELLED, StepState.CANCELLED)
    assert ledger.open == ["release"]
    assert ledger.finish().saga.state is SagaState.COMPENSATED
    assert ledger.error == cancelled


def test_completed_saga_that_is_undone_later(shop: Shop) -> None:
    """A completed saga can be undone as a whole, on an operator's word."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await saga.step(shop.charge)

    ledger = Ledger.of(checkout).finish()
    assert ledger.saga.state is SagaState.COMPLETED
    ledger.saga = replace(
        ledger.saga, state=SagaState.COMPENSATING, error=ErrorInfo(type=CANCELLED, message="returned")
    )
    ledger.advance()
    assert ledger.finish().undone == ["refund", "release"]


# Replaying compensations


@pytest.fixture
def not_undone(shop: Shop) -> Ledger:
    """A saga whose two compensations have both failed."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await saga.step(shop.charge)
        raise ValueError

    ledger = Ledger.of(checkout)
    for name in ("reserve", "charge"):
        ledger.end(name)
        ledger.advance()
    for name in ("refund", "release"):
        ledger.end(name, error=OSError())
        ledger.advance()
    assert ledger.saga.state is SagaState.COMPENSATION_FAILED
    return ledger


def replay(ledger: Ledger, *names: str) -> Any:
    """What an operator's replay of these rows decides first."""
    for name in names:
        position = ledger[name].position
        ledger.rows[position] = replace(ledger.rows[position], replay=True)
    saga = replace(ledger.saga, state=SagaState.COMPENSATING)
    return decide(saga, ledger.rows, now=ledger.now, definition=None, withdraw=lambda positions, seq: {})


def test_failed_compensations_are_run_once_more(not_undone: Ledger) -> None:
    """What an operator replays runs again one by one, in the same order, on the rows it has."""
    decision = replay(not_undone, "refund", "release")
    assert (decision.state, decision.reopened, decision.inserted) == (
        SagaState.COMPENSATING,
        (not_undone["refund"].position,),
        (),
    )


def test_only_what_is_asked_for_is_run_once_more(not_undone: Ledger) -> None:
    """One compensation can be replayed, and the other left."""
    assert replay(not_undone, "release").reopened == (not_undone["release"].position,)


def test_replay_without_anything_to_replay(not_undone: Ledger) -> None:
    """Without a row that is to be run again, the saga is what it was."""
    decision = replay(not_undone)
    assert (decision.state, decision.reopened) == (SagaState.COMPENSATION_FAILED, ())


def test_skipped_compensation_stays_skipped_while_nobody_knows(shop: Shop) -> None:
    """Replaying a compensation that was not called helps only once something has changed."""
    ledger = undo_unknown(shop, shop.charge).finish()
    decision = replay(ledger, "refund")
    assert (decision.state, decision.reopened) == (SagaState.COMPENSATION_FAILED, ())
    step = ledger.rows[1]
    assert step.undo is not None
    ledger.rows[1] = replace(step, undo=replace(step.undo, accepts_none=True))
    assert replay(ledger, "refund").reopened == (ledger["refund"].position,)


def test_probe_is_asked_once_more(shop: Shop) -> None:
    """A probe that could not tell is asked again before its compensation is replayed."""
    ledger = undo_unknown(shop, probed(shop))
    ledger.end("probe order", error=OSError())
    ledger.advance()
    ledger.finish()
    assert replay(ledger, "probe order", "withdraw").reopened == (ledger["probe order"].position,)


@pytest.mark.parametrize("helps", [True, False])
def test_replay_of_what_a_completed_body_abandoned(shop: Shop, helps: bool) -> None:
    """A saga whose body had succeeded is completed once the undoing of what it abandoned succeeds, and not before."""

    @shop.saga
    async def checkout(saga: Saga) -> str:
        await saga.step(shop.reserve)
        with suppress(TimeoutError):
            await asyncio.wait_for(saga.step(shop.charge), 5)
        return "done"

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.claim("charge")
    ledger.advance(seconds=5)
    ledger.end("charge")
    ledger.advance()
    ledger.end("refund", error=OSError("no refunds today"))
    ledger.advance()
    assert ledger.saga.state is SagaState.COMPENSATION_FAILED
    position = ledger["refund"].position
    ledger.rows[position] = replace(ledger.rows[position], replay=True)
    ledger.saga = replace(ledger.saga, state=SagaState.COMPENSATING)
    assert ledger.advance().reopened == (position,)
    assert (ledger.saga.state, ledger.open) == (SagaState.COMPENSATING, ["refund"])
    ledger.end("refund", error=None if helps else OSError("nor tomorrow"))
    ledger.advance()
    assert ledger.saga.state is (SagaState.COMPLETED if helps else SagaState.COMPENSATION_FAILED)
    assert (ledger.result, ledger.undone) == ("done", ["refund"])
