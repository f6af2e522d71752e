"""A body run again over its ledger does the same; if its code has changed, the error says what was expected."""

import asyncio
import contextvars
import decimal
import gc
import re
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagakit.coordinator.context import Saga
from sagakit.coordinator.ledger import Limits
from sagakit.errors import (
    BodyDoesNotYield,
    BodyWaitsInVain,
    LedgerTooLong,
    NonDeterminismError,
    NotDecodable,
    PayloadTooLarge,
    StepCancelled,
    StepFailed,
    StepUnknown,
    UseAStep,
)
from sagakit.states import Kind, SagaState, StepState
from tests.unit.coordinator.driving import START, Declined, Ledger, Shop, StandInKit


@pytest.fixture
def shop() -> Shop:
    return Shop()


def declare(body: Any, shop: Shop) -> Any:
    """A body as the saga "checkout", whatever other body has that name in another test's eyes."""
    other = StandInKit()
    definition = other.saga(name="shop.checkout")(body)
    definition.registry = shop.registry
    return definition


# The life of a saga


def test_steps_are_issued_as_their_results_come_in(shop: Shop) -> None:
    """Each advance feeds what has ended and returns what the body newly asks for."""

    @shop.saga
    async def checkout(saga: Saga, number: int) -> int:
        first = await saga.step(shop.reserve, number)
        second, third = await asyncio.gather(
            saga.step(shop.charge, first + 1), saga.step(shop.ship, first + 2)
        )
        return first + second + third

    ledger = Ledger.of(checkout, 10)
    assert ledger.commands == [(0, ":1", "step", "reserve", '{"number":10}')]
    assert ledger.saga.state is SagaState.RUNNING
    ledger.end("reserve")
    decision = ledger.advance()
    assert [(row.position, row.name, row.args) for row in decision.inserted] == [
        (1, "charge", '{"number":11}'),
        (2, "ship", '{"number":12}'),
    ]
    assert [(found.position, found.seq) for found in decision.resolved] == [(0, 1)]
    ledger.end("ship")
    assert ledger.advance().inserted == ()
    ledger.end("charge")
    ledger.advance()
    assert ledger.saga.state is SagaState.COMPLETED
    assert ledger.result == 33


def test_nothing_happens_without_news(shop: Shop) -> None:
    """A duplicate advance decides nothing: messages may come any number of times."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async with asyncio.timeout(60):
            await saga.step(shop.reserve)

    ledger = Ledger.of(checkout)
    before = list(ledger.rows)
    for _ in range(3):
        decision = ledger.advance(seconds=1)
        assert (decision.inserted, decision.resolved, decision.abandoned) == ((), (), ())
    assert ledger.rows == before


def test_errors_arrive_at_the_await(shop: Shop) -> None:
    """A declared error comes as itself with its fields, any other as data; the body may carry on."""
    seen: list[Any] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        del seen[:]
        for number in range(4):
            try:
                await saga.step(shop.charge, number)
            except (Declined, StepFailed) as exc:
                seen.append(exc)

    ledger = Ledger.of(checkout)
    ledger.end("charge", error=Declined(reason="no funds"))
    ledger.advance()
    ledger.end("charge", error=OSError("connection lost"))
    ledger.advance()
    ledger.end("charge", unknown=True)
    ledger.advance()
    ledger.rows[3] = replace(ledger.rows[3], state=StepState.CANCELLED)
    ledger.advance()
    declined, failed, unknown, cancelled = seen
    assert isinstance(declined, Declined)
    assert (declined.reason, declined.step) == ("no funds", "charge")
    assert type(failed) is StepFailed
    assert (failed.type, failed.message, failed.step) == ("OSError", "connection lost", "charge")
    assert "OSError: connection lost" in (failed.traceback or "")
    assert str(failed) == "charge: OSError: connection lost"
    assert type(unknown) is StepUnknown
    assert str(unknown) == "its outcome is unknown"
    assert type(cancelled) is StepCancelled
    assert str(cancelled) == "it was withdrawn before it ran"


@pytest.mark.parametrize(
    ("names", "undone"), [(("first",), ["refund"]), (("first", "second"), ["refund", "refund"])]
)
def test_options_of_a_call_reach_the_row(shop: Shop, names: tuple[str, ...], undone: list[str]) -> None:
    """``set`` gives a call a name, a queue, a priority and bounds of its own."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        for name in names:
            step = shop.charge.set(name=name, queue="eu", priority=7, expires=60, time_limit="1m")
            await saga.step(step)
        raise ValueError

    ledger = Ledger.of(checkout)
    row = ledger.new[0]
    assert (row.name, row.task, row.queue, row.priority, row.time_limit) == (
        "first",
        "shop.charge",
        "eu",
        7,
        60,
    )
    assert row.expires_at == START + timedelta(seconds=60)
    assert row.undo is not None
    assert (row.undo.queue, row.undo.priority) == ("eu", 7)
    assert ledger.finish().undone == undone


# Time


def test_time_is_the_ledger_s(shop: Shop) -> None:
    """``saga.now`` and ``loop.time`` stand still while the body runs, and say the same at every replay."""
    runs: list[list[Any]] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        runs.append([])
        for _ in range(3):
            runs[-1].append((saga.now(), asyncio.get_running_loop().time()))
            await saga.step(shop.reserve)

    ledger = Ledger.of(checkout, advance=False)
    for _ in range(3):
        ledger.advance(seconds=10)
        ledger.end("reserve")
    # The body begins at the first advance, not when the saga was written.
    assert runs[-1] == [(START + timedelta(seconds=10 * (n + 1)), 10.0 * n) for n in range(3)]
    assert runs[0] == runs[-1][:1]
    assert runs[1] == runs[-1][:2]
    assert runs[-1][0][0].tzinfo is UTC


def test_time_never_runs_backwards(shop: Shop) -> None:
    """A database whose clock was set back does not take the saga with it."""
    times: list[datetime] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        del times[:]
        for _ in range(3):
            times.append(saga.now())
            await saga.step(shop.reserve)

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance(seconds=60)
    ledger.end("reserve")
    decision = ledger.advance(seconds=-50)
    assert [time - START for time in times] == [timedelta(0), timedelta(seconds=60), timedelta(seconds=60)]
    assert decision.ledger_at == START + timedelta(seconds=60)


def test_sleep_is_a_row(shop: Shop) -> None:
    """A sleep is a durable timer: it wakes the saga at its time, and not before."""

    @shop.saga
    async def checkout(saga: Saga) -> float:
        await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    ledger = Ledger.of(checkout)
    assert ledger.commands == [(0, ":1", "timer", "sleep", None)]
    assert ledger.new[0].due_at == START + timedelta(seconds=60) == ledger.decisions[-1].wake_at
    ledger.advance(seconds=59.9)
    assert ledger.rows[0].state is StepState.SCHEDULED
    ledger.advance(seconds=0.2)
    assert ledger.rows[0].state is StepState.SUCCEEDED
    assert ledger.result == pytest.approx(60.1)


@pytest.mark.parametrize("body", ["timeout", "wait_for", "wait", "as_completed"])
def test_timers_have_names(shop: Shop, body: str) -> None:
    """A timer's row says what it is for."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        future = saga.step(shop.reserve)
        if body == "timeout":
            async with asyncio.timeout(5):
                await future
        elif body == "wait_for":
            await asyncio.wait_for(future, 5)
        elif body == "wait":
            await asyncio.wait([future], timeout=5)
        else:
            for first in asyncio.as_completed([future], timeout=5):
                await first

    assert [row.name for row in Ledger.of(checkout).rows if row.kind is Kind.TIMER] == ["timeout"]


def test_unneeded_timers_are_withdrawn(shop: Shop) -> None:
    """A timeout that was not reached wakes nobody."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async with asyncio.timeout(5):
            await saga.step(shop.reserve)
        await saga.step(shop.charge)

    ledger = Ledger.of(checkout)
    assert ledger.decisions[-1].wake_at is not None
    ledger.end("reserve")
    ledger.advance()
    assert ledger["timeout"].state is StepState.CANCELLED
    assert ledger.decisions[-1].wake_at is None


def test_outcomes_come_before_due_timers(shop: Shop) -> None:
    """What has happened beats what has merely run out: a late worker does not turn a success into a timeout."""

    @shop.saga
    async def checkout(saga: Saga) -> str:
        try:
            async with asyncio.timeout(5):
                await saga.step(shop.reserve)
        except TimeoutError:
            return "timed out"
        return "in time"

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance(seconds=3600)
    assert ledger.result == "in time"


def test_timers_fire_in_order_of_their_time(shop: Shop) -> None:
    """Timers that are due together fire by their time, whatever their order in the ledger."""
    order: list[int] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        del order[:]

        async def sleep(seconds: int) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(sleep(3), sleep(1), sleep(2), sleep(1))

    Ledger.of(checkout).advance(seconds=10)
    assert order == [1, 1, 2, 3]


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_timer_beyond_any_calendar(shop: Shop, seconds: float) -> None:
    """A sleep no calendar can hold is the body's error, not the coordinator's."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await asyncio.sleep(seconds)

    error = Ledger.of(checkout).error
    assert (error.type, error.message.partition(" seconds")[2]) == (
        "ValueError",
        " after the saga's start is beyond any calendar",
    )


# What the body is given


def test_random_is_the_same_at_every_replay(shop: Shop) -> None:
    """``saga.uuid4`` and ``saga.random`` draw from the saga's own source."""
    runs: list[list[Any]] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        runs.append([saga.uuid4(), saga.random()])
        await saga.step(shop.reserve)
        runs[-1] += [saga.uuid4(), saga.random()]

    Ledger.of(checkout).finish()
    assert runs[0] == runs[1][:2]
    assert len({str(drawn) for drawn in runs[1]}) == 4
    assert runs[1][0].version == 4
    other = Ledger.of(checkout, advance=False)
    other.saga = replace(other.saga, id="order-2")
    other.advance()
    assert runs[2] != runs[0]


def test_identity(shop: Shop) -> None:
    """The body knows which saga it is."""

    @shop.saga(version=3)
    async def checkout(saga: Saga) -> list[Any]:
        return [saga.id, saga.name, saga.version, repr(saga)]

    assert Ledger.of(checkout).result == ["order-1", "shop.checkout", 3, "<Saga shop.checkout order-1>"]


def test_worker_s_context_does_not_leak_in(shop: Shop) -> None:
    """A decimal precision or another context variable of the worker has no say in a body."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[Any] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async def generate() -> Any:
            try:
                yield 1
            finally:
                look("generator")

        def look(where: str) -> None:
            seen.append((where, str(decimal.Decimal(1) / 3), variable.get()))

        look("body")
        generator = generate()
        cycle: list[Any] = [generator]
        cycle.append(cycle)
        await anext(generator)

        async def task() -> None:
            look("task")

        asyncio.get_running_loop().call_later(5, look, "callback")
        await asyncio.gather(task(), asyncio.sleep(10))
        variable.set("body's")
        decimal.getcontext().prec = 3

    variable.set("worker's")
    with decimal.localcontext() as context:
        context.prec = 5
        ledger = Ledger.of(checkout)
        ledger.advance(seconds=10)
        assert variable.get() == "worker's"
        assert decimal.getcontext().prec == 5
    third = "0." + "3" * 28
    assert dict(zip([where for where, *_ in seen], [tuple(rest) for _, *rest in seen], strict=True)) == {
        "body": (third, "unset"),
        "task": (third, "unset"),
        "callback": (third, "unset"),
        "generator": ("0.333", "body's"),
    }
    assert ledger.saga.state is SagaState.COMPLETED


@dataclass
class Basket:
    items: list[str]


def test_body_gets_stored_values_not_live_objects(shop: Shop) -> None:
    """What a body does to a value it was given never reaches a step, nor the next replay."""
    seen: list[Any] = []

    @shop.step
    def pick(basket: Basket) -> Basket: ...  # type: ignore[empty-body]

    @shop.saga
    async def checkout(saga: Saga, basket: Basket) -> Basket:
        del seen[:]
        seen.append(list(basket.items))
        basket.items.append("body")
        picked = await saga.step(pick, basket)
        seen.append(list(picked.items))
        picked.items.append("body again")
        basket.items.append("more")
        await saga.step(shop.reserve)
        return picked

    given = Basket(["cup"])
    ledger = Ledger.of(checkout, given)
    result = Basket(["cup", "body"])
    ledger.end("pick", result)
    result.items.append("worker")
    ledger.advance()
    assert given.items == ["cup"]
    assert ledger.new[0].args == '{"basket":{"items":["cup","body"]}}'
    ledger.finish()
    assert seen == [["cup"], ["cup", "body"]]
    assert ledger.result == {"items": ["cup", "body", "body again"]}


# What does not belong into a body


def test_step_called_directly(shop: Shop) -> None:
    """A step called like a function in a body would run at every replay."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        shop.charge(1)

    assert Ledger.of(checkout).error.message == (
        "charge was called directly in a saga's body, where it would run again at every replay: "
        "write `await saga.step(charge, ...)`"
    )


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("called", lambda shop: shop.refund(1)),
        ("sent with .delay()", lambda shop: shop.charge.delay(1)),
        ("sent with .apply_async()", lambda shop: shop.charge.apply_async((1,))),
        ("sent with .apply_async()", lambda shop: shop.charge.set(queue="eu").apply_async((1,))),
    ],
)
def test_step_sent_directly(shop: Shop, verb: str, call: Any) -> None:
    """So would one sent as a task."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        call(shop)

    error = Ledger.of(checkout).error
    assert error.type == "sagakit.errors.UseAStep"
    assert f" was {verb} directly in a saga's body" in error.message
    assert "write `await saga.step(" in error.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda shop: print, "saga.step() takes a step, not print: declare it with kit.step"),
        (lambda shop: 3, "saga.step() takes a step, not 3: declare it with kit.step"),
        (
            lambda shop: shop.refund,
            "refund is a compensation: sagakit runs it when needed; await the step charge instead",
        ),
        (
            lambda shop: type("Task", (), {"name": "shop.plain", "apply_async": None}),
            "shop.plain is a plain Celery task: declare it with kit.step to use it in a saga",
        ),
    ],
)
def test_only_steps_are_steps(shop: Shop, given: Any, message: str) -> None:
    """What is no step says what it is, and what to do."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(given(shop))

    error = Ledger.of(checkout).error
    assert (error.type, error.message) == ("sagakit.errors.UseAStep", message)


def test_arguments_are_checked_at_the_call(shop: Shop) -> None:
    """Wrong arguments raise where they are passed, every time, and make no row."""
    messages: list[str] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        del messages[:]
        for arguments in (("many",), (), (1, 2)):
            try:
                await saga.step(shop.charge, *arguments)
            except Exception as exc:
                messages.append(str(exc))
        await saga.step(shop.reserve, 5)

    ledger = Ledger.of(checkout)
    ledger.end("charge")
    ledger.advance()
    ledger.finish()
    assert messages == [
        "the call charge() does not fit: number: Input should be a valid integer, unable to parse string as an integer "
        "(got str)",
        "the call charge() does not fit: too many positional arguments",
    ]
    assert ledger.names == ["charge", "reserve"]
    assert ledger.saga.state is SagaState.COMPLETED


def test_step_that_is_never_awaited(shop: Shop) -> None:
    """A forgotten ``await`` fails the saga and names the line."""

    @shop.saga
    async def checkout(saga: Saga) -> str:
        await saga.step(shop.reserve)
        saga.step(shop.charge)
        await asyncio.sleep(1)
        return "done"

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.end("charge")
    ledger.advance(seconds=2)
    line = checkout.body.__code__.co_firstlineno + 3
    assert ledger.error.type == "sagakit.errors.StepNotAwaited"
    assert ledger.error.message == (
        f"{__file__}:{line}: the step 'charge' was started and never awaited: write `await saga.step(...)`, or "
        "gather it"
    )
    ledger.finish()
    assert ledger.undone == ["refund", "release"]


@pytest.mark.parametrize(
    "how", ["gather", "wait", "create_task", "TaskGroup", "shield", "callback", "wait_for", "then"]
)
def test_ways_to_await_a_step(shop: Shop, how: str) -> None:
    """Whatever asyncio has for futures and coroutines takes what ``saga.step`` returns."""

    @shop.saga
    async def checkout(saga: Saga) -> Any:
        future = saga.step(shop.reserve, 7)
        if how == "gather":
            return (await asyncio.gather(future))[0]
        if how == "wait":
            done, _ = await asyncio.wait([future])
            return done.pop().result()
        if how == "create_task":
            return await asyncio.create_task(future)
        if how == "TaskGroup":
            async with asyncio.TaskGroup() as group:
                task = group.create_task(future)
            return task.result()
        if how == "shield":
            return await asyncio.shield(future)
        if how == "callback":
            box = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda future: box.set_result(future.result()))
            return await box
        if how == "wait_for":
            return await asyncio.wait_for(future, 5)
        await saga.step(shop.charge)
        return await future

    ledger = Ledger.of(checkout).finish()
    assert (ledger.saga.state, ledger.result) == (SagaState.COMPLETED, 7)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_as_completed_over_coroutines(shop: Shop) -> None:
    """``as_completed`` starts bare coroutines in the order of a set: it is refused, with the way out."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        async def work() -> int:
            return await saga.step(shop.reserve)

        for first in asyncio.as_completed([work(), work()]):
            await first

    ledger = Ledger.of(checkout)
    gc.collect()  # the coroutines that were refused complain here
    assert ledger.error.message == (
        "asyncio.as_completed() over bare coroutines starts them in an order that differs between processes: pass it "
        "step futures or tasks, as_completed([asyncio.create_task(c) for c in coroutines])"
    )


def test_as_completed_over_futures_and_tasks(shop: Shop) -> None:
    """Over step futures and tasks it works, in the order of completion."""

    @shop.saga
    async def checkout(saga: Saga) -> list[int]:
        async def work(number: int) -> int:
            return await saga.step(shop.charge, number)

        futures = [saga.step(shop.reserve, number) for number in range(2)]
        tasks = [asyncio.create_task(work(number)) for number in (10, 11)]
        return [await first for first in asyncio.as_completed([*futures, *tasks])]

    ledger = Ledger.of(checkout)
    for position in (3, 0, 2, 1):
        ledger.end(position)
        ledger.advance()
    assert ledger.result == [11, 0, 10, 1]


# When the code has changed


async def original(saga: Saga, shop: Shop) -> None:
    await saga.step(shop.reserve)
    await saga.step(shop.charge)
    await saga.step(shop.ship)


def changed_step(*names: str) -> Any:
    async def body(saga: Saga, shop: Shop) -> None:
        for name in names:
            if name == "sleep":
                await asyncio.sleep(1)
            elif name == "raise":
                raise KeyError("oops")
            else:
                await saga.step(getattr(shop, name))

    return body


CHANGES = [
    ("changed step", changed_step("mail", "charge", "ship"), "step 'reserve'", "step 'mail' (task path :1)"),
    ("removed step", changed_step("reserve", "ship"), "step 'charge'", "step 'ship' (task path :2)"),
    (
        "added step",
        changed_step("reserve", "mail", "charge", "ship"),
        "step 'charge'",
        "step 'mail' (task path :2)",
    ),
    (
        "swapped steps",
        changed_step("charge", "reserve", "ship"),
        "step 'reserve'",
        "step 'charge' (task path :1)",
    ),
    (
        "changed kind",
        changed_step("reserve", "sleep", "ship"),
        "step 'charge'",
        "timer 'sleep' (task path :2)",
    ),
    ("earlier end", changed_step("reserve"), "step 'charge'", "the end of the body"),
    (
        "failure",
        changed_step("reserve", "raise"),
        "step 'charge'",
        "the end of the body, which raised KeyError: 'oops'",
    ),
]


@pytest.mark.parametrize(("what", "body", "expected", "found"), CHANGES, ids=[what for what, *_ in CHANGES])
def test_changed_body(shop: Shop, what: str, body: Any, expected: str, found: str) -> None:
    """The first command that differs from its row is named, with what the ledger has; nothing is written."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await original(saga, shop)

    async def changed(saga: Saga) -> None:
        await body(saga, shop)

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.end("charge")
    before = list(ledger.rows)
    ledger.definition = declare(changed, shop)
    with pytest.raises(NonDeterminismError) as caught:
        ledger.advance()
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert str(caught.value) == (
        f"saga order-1: the body of changed ({ledger.definition.where}) no longer does what its ledger says: expected "
        f"{expected}, found {found}. Restore the code this saga was started with, or declare the change as a new "
        "version, then run: saga resume order-1"
    )
    assert ledger.rows == before
    # Restoring the body completes it.
    ledger.definition = checkout
    assert ledger.finish().saga.state is SagaState.COMPLETED


def test_changed_task_behind_the_same_name(shop: Shop) -> None:
    """A step of the same short name in another module is another step."""

    @shop.step(name="other.charge")
    def charge(number: int = 0) -> int: ...  # type: ignore[empty-body]

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.charge)

    async def changed(saga: Saga) -> None:
        await saga.step(charge)

    ledger = Ledger.of(checkout)
    ledger.definition = declare(changed, shop)
    with pytest.raises(NonDeterminismError, match="expected step 'charge'") as caught:
        ledger.advance()
    assert caught.value.expected != caught.value.found


def test_added_parallel_step(shop: Shop) -> None:
    """A command more, before the next recorded outcome, is one that was not there."""

    async def body(saga: Saga, *names: str) -> None:
        await asyncio.gather(*[saga.step(getattr(shop, name)) for name in names])

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await body(saga, "reserve", "charge")

    async def changed(saga: Saga) -> None:
        await body(saga, "reserve", "charge", "mail")

    ledger = Ledger.of(checkout)
    ledger.definition = declare(changed, shop)
    with pytest.raises(NonDeterminismError) as caught:
        ledger.advance()
    assert (caught.value.expected, caught.value.found) == (
        "nothing more before the next recorded outcome",
        "step 'mail' (task path :3)",
    )


def test_changes_that_do_not_matter(shop: Shop) -> None:
    """What a body does after the last recorded outcome may change, and arguments of steps that are there too."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve, 1)
        await saga.step(shop.charge, 2)

    async def changed(saga: Saga) -> str:
        await saga.step(shop.reserve, 10)
        await saga.step(shop.charge, 20)
        return f"mailed {await saga.step(shop.mail, 30)}"

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.advance()
    ledger.definition = declare(changed, shop)
    assert ledger.finish().result == "mailed 30"
    assert [new.args for new in ledger.new] == ['{"number":1}', '{"number":2}', '{"number":30}']


def test_another_python_is_named(shop: Shop) -> None:
    """asyncio's own order differs between minor versions of Python, so the error tells when they differ."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await original(saga, shop)

    async def changed(saga: Saga) -> None:
        await saga.step(shop.mail)

    ledger = Ledger.of(checkout)
    ledger.saga = replace(ledger.saga, python="3.9")
    ledger.definition = declare(changed, shop)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(
        NonDeterminismError,
        match=re.escape(
            f"(task path :1); the saga was started under Python 3.9, this is {version}. Restore the code"
        ),
    ):
        ledger.advance()


def test_command_is_named_by_its_place_in_the_tree_of_tasks(shop: Shop) -> None:
    """Which branch is faster does not change whose command is whose."""

    async def branch(saga: Saga, number: int) -> None:
        await saga.step(shop.reserve, number)
        await asyncio.gather(saga.step(shop.charge, number), asyncio.create_task(leaf(saga, number)))

    async def leaf(saga: Saga, number: int) -> None:
        await saga.step(shop.ship, number)

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await asyncio.gather(branch(saga, 1), branch(saga, 2))
        await saga.step(shop.mail)

    paths = []
    for order in ((0, 1), (1, 0)):
        ledger = Ledger.of(checkout)
        for position in order:
            ledger.end(position)
            ledger.advance()
        paths.append({(path, name, args) for _, path, _, name, args in ledger.finish().commands})
    assert paths[0] == paths[1]
    assert {(path, name) for path, name, _ in paths[0]} == {
        ("1:1", "reserve"),
        ("2:1", "reserve"),
        ("1:2", "charge"),
        ("2:2", "charge"),
        ("1.1:1", "ship"),
        ("2.1:1", "ship"),
        (":1", "mail"),
    }


# Data that no longer fits


def test_input_that_no_longer_decodes(shop: Shop) -> None:
    """A changed input type makes the saga stuck, not failed."""

    @shop.saga
    async def checkout(saga: Saga, basket: Basket) -> None:
        await saga.step(shop.reserve)

    ledger = Ledger.of(checkout, Basket(["cup"]))
    ledger.saga = replace(ledger.saga, input='{"things":[]}')
    with pytest.raises(
        NotDecodable, match="the input of checkout, as stored, no longer fits its type: items: Field"
    ):
        ledger.advance()


def test_result_that_no_longer_decodes(shop: Shop) -> None:
    """So does a changed result type of a step."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    ledger.rows[0] = replace(ledger.rows[0], result='"ten"')
    with pytest.raises(
        NotDecodable, match="the result of reserve, as stored, no longer fits its type: Input should be"
    ):
        ledger.advance()
    ledger.rows[0] = replace(ledger.rows[0], result="10")
    assert ledger.finish().saga.state is SagaState.COMPLETED


def test_business_error_that_no_longer_decodes(shop: Shop) -> None:
    """And changed fields of a declared error."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.charge)

    ledger = Ledger.of(checkout)
    ledger.end("charge", error=Declined(reason="x"))
    assert ledger.rows[0].error is not None
    ledger.rows[0] = replace(ledger.rows[0], error=replace(ledger.rows[0].error, fields={"why": "x"}))
    with pytest.raises(NotDecodable, match="reason: Field required"):
        ledger.advance()


def test_result_of_the_body_that_does_not_fit(shop: Shop) -> None:
    """A body that returns what its type does not allow has failed, and what it did is undone."""

    @shop.saga
    async def checkout(saga: Saga) -> int:
        await saga.step(shop.reserve)
        return "ten"  # type: ignore[return-value]

    ledger = Ledger.of(checkout).finish()
    assert ledger.saga.state is SagaState.COMPENSATED
    assert ledger.error.message.startswith(
        "the result of checkout does not fit: Input should be a valid integer"
    )
    assert ledger.undone == ["release"]


# Bounds


def test_cap_on_commands(shop: Shop) -> None:
    """A saga that issues too many commands gets an error at the same call at every replay."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        while True:
            await saga.step(shop.reserve)

    ledger = Ledger.of(checkout, limits=Limits(rows=5))
    ledger.finish()
    assert ledger.error.type == f"{LedgerTooLong.__module__}.LedgerTooLong"
    assert (
        ledger.error.message
        == "the saga issued more than 5 commands: split it, or raise sagakit_ledger_limit"
    )
    assert ledger.undone == ["release"] * 5


def test_payload_limit(shop: Shop) -> None:
    """Arguments over the limit raise where they are passed."""

    @shop.step
    def note(text: str) -> None: ...

    caught: list[Exception] = []

    @shop.saga
    async def checkout(saga: Saga) -> str:
        try:
            await saga.step(note, "x" * 2000)
        except PayloadTooLarge as exc:
            caught.append(exc)
        return "x" * 2000

    ledger = Ledger.of(checkout, limits=Limits(payload=1000, payload_warning=100))
    assert str(caught[0]).startswith("the arguments of note: 2,011 bytes of JSON, over the limit of 1,000")
    assert ledger.error.message.startswith(
        "the result of checkout: 2,002 bytes of JSON, over the limit of 1,000"
    )


def test_spinning_body(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that never waits for anything outside is stopped."""
    monkeypatch.setattr("sagakit.coordinator.loop._MAX_CALLBACKS", 1000)

    @shop.saga
    async def checkout(saga: Saga) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(BodyDoesNotYield) as caught:
        Ledger.of(checkout)
    assert str(caught.value) == "the body ran 1,001 callbacks without waiting for a step or a timer: it spins"


def test_body_that_waits_for_nothing(shop: Shop) -> None:
    """A body that waits for what no row will ever bring is told so, with the line, instead of waiting for ever."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        await saga.step(shop.reserve)
        await asyncio.Event().wait()

    ledger = Ledger.of(checkout)
    ledger.end("reserve")
    line = checkout.body.__code__.co_firstlineno + 3
    with pytest.raises(BodyWaitsInVain) as caught:
        ledger.advance()
    assert str(caught.value) == (
        f"saga order-1: the body of checkout ({checkout.where}) waits at {__file__}:{line} for what no step and no "
        "timer will ever bring, such as an event that nobody sets: await a step, a timer, or a task that awaits one, "
        "then run: saga resume order-1"
    )


def test_saga_used_after_its_body_is_over(shop: Shop) -> None:
    """A saga object that is kept somewhere is of no use once the run is over."""
    kept: list[Saga] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        kept.append(saga)
        await saga.step(shop.reserve)

    Ledger.of(checkout)
    with pytest.raises(
        UseAStep, match="charge: this run of the body is over; a step cannot be started any more"
    ):
        kept[0].step(shop.charge)


# Shutting down


def test_sys_exit_by_the_worker_is_not_the_body_s(shop: Shop) -> None:
    """A signal that ends the worker while a body is run must not fail the saga."""
    handler: dict[str, Any] = {"__name__": "billiard.common"}
    exec("import sys\ndef handle(): sys.exit(-241)", handler)

    @shop.saga
    async def checkout(saga: Saga) -> None:
        handler["handle"]()

    with pytest.raises(SystemExit):
        Ledger.of(checkout)


def test_keyboard_interrupt_goes_through(shop: Shop) -> None:
    """Ctrl-C is not the body's error either."""

    @shop.saga
    async def checkout(saga: Saga) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ledger.of(checkout)
    assert asyncio._get_running_loop() is None
