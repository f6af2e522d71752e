"""Ordinary asyncio code does on the ledger's loop what it does under ``asyncio.run``, in the same order."""

import asyncio
import contextvars
import gc
import selectors
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from sagakit.coordinator.context import Saga
from sagakit.states import SagaState
from tests.unit.coordinator.driving import Ledger, StandInKit

Log = list[Any]
Body = Callable[[Log], Awaitable[Any]]

TICK = 1.0
"""Seconds of virtual time."""


class _Selector(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        self.now += 0 if found else timeout or 0
        return found


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for its clock: a real one would make the order depend on how busy the machine is."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def under_asyncio(body: Body) -> tuple[Log, Any]:
    """What a body does under ``asyncio.run``, and how it ends."""
    log: Log = []

    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        return await body(log)

    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            end = "returned", runner.run(main())
    except BaseException as exc:
        end = "raised", type(exc).__name__
    return list(log), end


def under_the_ledger(body: Body) -> tuple[Log, Any]:
    """The same as a saga; what its last replay did, since each replay runs it from the start."""
    logs: list[Log] = []

    async def run(saga: Saga) -> Any:
        logs.append([])
        return await body(logs[-1])

    ledger = Ledger.of(StandInKit().saga(run)).finish()
    if ledger.saga.state is SagaState.COMPLETED:
        return list(logs[-1]), ("returned", ledger.result)
    return list(logs[-1]), ("raised", ledger.error.short_type)


async def steps_and_sleeps(log: Log) -> str:
    """Tasks interleave by their sleeps."""

    async def work(name: str, *ticks: int) -> str:
        for tick in ticks:
            await asyncio.sleep(tick * TICK)
            log.append((name, tick))
        return name

    return ",".join(await asyncio.gather(work("a", 2, 4), work("b", 1, 8), work("c", 4, 1)))


async def zero_sleeps(log: Log) -> None:
    """``sleep(0)`` takes turns."""

    async def work(name: str) -> None:
        for turn in range(3):
            log.append((name, turn))
            await asyncio.sleep(0)

    await asyncio.gather(*[work(name) for name in "abc"])


async def task_left_running(log: Log) -> str:
    """A task that is left when the body returns is cancelled, and its cleaning up awaited."""

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            await asyncio.sleep(TICK)
            log.append("cleaned up")

    task = asyncio.create_task(left())
    await asyncio.sleep(TICK)
    log.append(task.done())
    return "done"


async def task_never_begun(log: Log) -> None:
    """A task that had no turn yet never runs."""

    async def left() -> None:
        log.append("never")

    task = asyncio.create_task(left())
    log.append(task.done())


async def task_that_will_not_be_cancelled(log: Log) -> None:
    """A task that swallows its cancellation is waited for."""

    async def left() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await asyncio.sleep(2 * TICK)
        log.append("done all the same")

    task = asyncio.create_task(left())
    await asyncio.sleep(0)
    log.append(task.done())


async def exception_in_finally(log: Log) -> str:
    """An exception of a task that is cleaned up after the body is nobody's."""

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append("finally")
            raise ValueError("cleaning up")

    task = asyncio.create_task(left())
    await asyncio.sleep(0)
    log.append(task.done())
    return "fine"


async def exception_in_the_body_s_finally(log: Log) -> None:
    """In the body it replaces the first."""
    try:
        raise ValueError
    finally:
        await asyncio.sleep(TICK)
        log.append("finally")
        raise KeyError


async def task_begun_while_cleaning_up(log: Log) -> str:
    """A task begun by one that is cancelled is not waited for."""

    async def late() -> None:
        log.append("late begins")
        await asyncio.sleep(1000)
        log.append("never")

    kept = []

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            kept.append(asyncio.create_task(late()))
            await asyncio.sleep(TICK)
            log.append("left ends")

    task = asyncio.create_task(left())
    await asyncio.sleep(0)
    log.append(task.done())
    return "done"


async def body_cancels_itself(log: Log) -> None:
    """A body that cancels its own task ends in ``CancelledError``."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(TICK)
    finally:
        log.append("finally")


async def body_raises_cancelled(log: Log) -> None:
    """So does one that raises it."""
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def child_cancelled(log: Log) -> str:
    """Cancelling a child is seen where it is awaited, and the body goes on."""

    async def child() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append("child ends")

    task = asyncio.create_task(child())
    await asyncio.sleep(TICK)
    log.append(task.cancel("enough"))
    try:
        await task
    except asyncio.CancelledError:
        log.append((task.cancelled(), task.done()))
    return "on"


async def cancelled_before_its_first_turn(log: Log) -> None:
    """A task may be cancelled before it has begun."""

    async def child() -> None:
        log.append("never")

    task = asyncio.create_task(child())
    task.cancel()
    log.append(await asyncio.gather(task, return_exceptions=True) != [])


async def task_group_fails(log: Log) -> str:
    """A failing member cancels the others; the group raises when all have ended."""

    async def fails() -> None:
        await asyncio.sleep(TICK)
        raise ValueError("a")

    async def waits() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append("cancelled")
            await asyncio.sleep(TICK)
            log.append("ends")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits())
            group.create_task(fails())
            await asyncio.sleep(1000)
            log.append("never")
    except* ValueError as caught:
        log.append([str(exc) for exc in caught.exceptions])
    return "on"


async def task_group_error_goes_up(log: Log) -> None:
    """A group's error, let go, is a group."""

    async def fails() -> None:
        raise ValueError

    async with asyncio.TaskGroup() as group:
        group.create_task(fails())


async def timeouts(log: Log) -> None:
    """Timeouts nest; the outer one may be the first; those that are not reached leave no trace."""
    for outer, inner in ((2, 4), (4, 2)):
        try:
            async with asyncio.timeout(outer * TICK):
                try:
                    async with asyncio.timeout(inner * TICK):
                        await asyncio.sleep(8 * TICK)
                except TimeoutError:
                    log.append("inner")
                    await asyncio.sleep(0)
        except TimeoutError:
            log.append("outer")
    async with asyncio.timeout(8 * TICK) as scope:
        await asyncio.sleep(TICK)
    log.append(scope.expired())
    async with asyncio.timeout(None) as scope:
        scope.reschedule(asyncio.get_running_loop().time() + 8 * TICK)
        await asyncio.sleep(TICK)
    with suppress(TimeoutError):
        async with asyncio.timeout(-1):
            await asyncio.sleep(TICK)
            log.append("never")


async def waiting_with_timeouts(log: Log) -> None:
    """``wait_for`` cancels what it waits for, and ``shield`` keeps that away."""

    async def child(name: str) -> str:
        try:
            await asyncio.sleep(4 * TICK)
        except asyncio.CancelledError:
            log.append(("cancelled", name))
            raise
        log.append(("ends", name))
        return name

    try:
        await asyncio.wait_for(child("a"), 2 * TICK)
    except TimeoutError:
        log.append("timeout")
    task = asyncio.create_task(child("b"))
    try:
        await asyncio.wait_for(asyncio.shield(task), TICK)
    except TimeoutError:
        log.append("timeout")
    log.append(await task)
    log.append(await asyncio.wait_for(child("c"), None))
    with suppress(TimeoutError):
        await asyncio.wait_for(child("d"), 0)


async def first_of_several(log: Log) -> None:
    """``wait`` in all its ways, and ``as_completed`` over tasks."""

    async def child(ticks: int, fail: bool = False) -> int:
        await asyncio.sleep(ticks * TICK)
        if fail:
            raise ValueError
        return ticks

    tasks = [asyncio.create_task(child(ticks)) for ticks in (6, 2, 4)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    log.append(([task.result() for task in done], len(pending)))
    done, pending = await asyncio.wait(tasks, timeout=3 * TICK)
    log.append((sorted(task.result() for task in done), len(pending)))
    for next_one in asyncio.as_completed(list(pending)):
        log.append(await next_one)
    tasks = [
        asyncio.create_task(child(1)),
        asyncio.create_task(child(3, True)),
        asyncio.create_task(child(800)),
    ]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    log.append((len(done), len(pending)))
    with suppress(TimeoutError):
        for next_one in asyncio.as_completed([asyncio.create_task(child(2)), tasks[2]], timeout=4 * TICK):
            log.append(await next_one)


async def gathering(log: Log) -> None:
    """``gather`` keeps the order of what it is given; a failure is raised at once, the others go on."""

    async def child(ticks: int, fail: bool = False) -> int:
        await asyncio.sleep(ticks * TICK)
        log.append(ticks)
        if fail:
            raise ValueError(ticks)
        return ticks

    log.append(await asyncio.gather(child(3), child(1), child(2)))
    try:
        await asyncio.gather(child(4), child(2, fail=True))
    except ValueError:
        log.append("failed")
    await asyncio.sleep(4 * TICK)
    log.append(
        [
            type(found).__name__
            for found in await asyncio.gather(child(1, True), child(1), return_exceptions=True)
        ]
    )


async def synchronising(log: Log) -> None:
    """Locks, queues, semaphores, events, conditions and barriers."""
    lock, event, semaphore = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2)
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
    condition, barrier = asyncio.Condition(), asyncio.Barrier(2)

    async def producer() -> None:
        for number in range(3):
            await queue.put(number)
            log.append(("put", number))
        async with condition:
            condition.notify_all()
        await barrier.wait()
        event.set()

    async def consumer(name: str) -> None:
        async with semaphore, lock:
            log.append((name, await queue.get()))
            await asyncio.sleep(TICK)

    async def waiter() -> None:
        async with condition:
            await condition.wait()
        log.append("notified")
        await barrier.wait()
        await event.wait()
        log.append("event")

    await asyncio.gather(waiter(), producer(), *[consumer(name) for name in "abc"])


async def callbacks(log: Log) -> None:
    """Callbacks of the loop and of tasks."""
    loop = asyncio.get_running_loop()

    async def child() -> str:
        await asyncio.sleep(TICK)
        return "x"

    loop.call_soon(log.append, "soon")
    handle = loop.call_later(1 * TICK, log.append, "never")
    loop.call_later(3 * TICK, log.append, "later")
    handle.cancel()
    task = asyncio.create_task(child())
    task.add_done_callback(lambda task: log.append(("done", task.result())))
    future = loop.create_future()
    loop.call_later(5 * TICK, future.set_result, "set")
    log.append(await future)


async def context_variables(log: Log) -> None:
    """A task has a copy of its parent's context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def child(value: str) -> None:
        log.append(variable.get())
        variable.set(value)
        await asyncio.sleep(0)
        log.append(variable.get())

    variable.set("parent")
    await asyncio.gather(child("a"), child("b"))
    log.append(variable.get())


async def numbers(log: Log, name: str = "") -> AsyncIterator[int]:
    try:
        for number in range(5):
            await asyncio.sleep(0)
            yield number
    finally:
        log.append(f"close {name}")
        await asyncio.sleep(0)
        log.append(f"closed {name}")


async def generator_broken_off(log: Log) -> None:
    """An async generator nobody holds any more is closed at once, while the body goes on."""
    async for number in numbers(log):
        log.append(number)
        if number == 1:
            break
    log.append("after")
    await asyncio.sleep(TICK)
    log.append("end")


async def generator_left_open(log: Log) -> str:
    """One that is still held when the body ends is closed then."""
    cycle: list[Any] = [numbers(log)]
    cycle.append(cycle)
    log.append(await anext(cycle[0]))
    log.append("end")
    return "done"


async def generator_used_to_its_end(log: Log) -> None:
    """One that is used to its end needs no closing."""
    log.append([number async for number in numbers(log)])


async def generator_fails_when_closed(log: Log) -> str:
    """An error while closing is nobody's."""

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            log.append("closing")
            raise ValueError

    async for _ in generate():
        break
    await asyncio.sleep(TICK)
    return "fine"


async def context_managers(log: Log) -> None:
    """Async context managers unwind in order, whatever ends them."""

    @asynccontextmanager
    async def manager(name: str) -> AsyncIterator[str]:
        log.append(f"enter {name}")
        try:
            yield name
        finally:
            await asyncio.sleep(0)
            log.append(f"exit {name}")

    with suppress(TimeoutError):
        async with asyncio.timeout(TICK), manager("a"), manager("b"):
            await asyncio.sleep(1000)


async def exits(log: Log) -> None:
    """``sys.exit`` in the body ends it; what is left is cancelled."""

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append("left is cleaned up")

    task = asyncio.create_task(left())
    await asyncio.sleep(0)
    log.append(task.done())
    sys.exit(3)


async def exits_in_a_task(log: Log) -> None:
    """``sys.exit`` in a task ends everything, the body included."""

    async def exiting() -> None:
        await asyncio.sleep(0)
        sys.exit(3)

    task = asyncio.create_task(exiting())
    try:
        await asyncio.sleep(1000)
    finally:
        log.append(task.done())
        await asyncio.sleep(0)
        log.append("the body is cleaned up")


async def exits_among_others(log: Log) -> None:
    """Others that are ready in the same moment are cancelled, and lose nothing."""

    async def other(name: str) -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(1000)
        finally:
            log.append(f"{name} is cleaned up")

    async def exiting() -> None:
        await asyncio.sleep(0)
        sys.exit(3)

    tasks = [asyncio.create_task(other("a")), asyncio.create_task(exiting())]
    try:
        await tasks[0]
    finally:
        log.append("body")


async def raises_a_base_exception(log: Log) -> None:
    """Whatever a body raises ends it."""

    class Odd(BaseException):
        pass

    await asyncio.sleep(0)
    raise Odd


async def error_in_a_task_nobody_awaits(log: Log) -> str:
    """An error nobody retrieves does no harm."""

    async def child() -> None:
        raise ValueError

    task = asyncio.create_task(child())
    await asyncio.sleep(TICK)
    log.append(task.done())
    return "fine"


BODIES = [
    steps_and_sleeps,
    zero_sleeps,
    task_left_running,
    task_never_begun,
    task_that_will_not_be_cancelled,
    exception_in_finally,
    exception_in_the_body_s_finally,
    task_begun_while_cleaning_up,
    body_cancels_itself,
    body_raises_cancelled,
    child_cancelled,
    cancelled_before_its_first_turn,
    task_group_fails,
    task_group_error_goes_up,
    timeouts,
    waiting_with_timeouts,
    first_of_several,
    gathering,
    synchronising,
    callbacks,
    context_variables,
    generator_broken_off,
    generator_left_open,
    generator_used_to_its_end,
    generator_fails_when_closed,
    context_managers,
    exits,
    exits_in_a_task,
    exits_among_others,
    raises_a_base_exception,
    error_in_a_task_nobody_awaits,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_as_under_asyncio_run(body: Body) -> None:
    """A body of plain asyncio does the same, in the same order, and ends in the same way."""
    assert under_the_ledger(body) == under_asyncio(body)


@pytest.mark.parametrize("collecting", [True, False])
def test_generators_in_cycles_are_closed_when_the_body_ends(collecting: bool) -> None:
    """Whether the garbage collector has found them before makes no difference, nor in which order it does."""

    async def body(log: Log) -> None:
        for name in "abc":
            cycle: list[Any] = [numbers(log, name)]
            cycle.append(cycle)
            await anext(cycle[0])
            del cycle
            if collecting and name != "c":
                gc.collect()
        await asyncio.sleep(TICK)
        log.append("end")

    expected = ["end", "close a", "close b", "close c", "closed a", "closed b", "closed c"]
    assert under_the_ledger(body)[0] == expected


def test_thrown_away_body_runs_its_finally_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that waits is thrown away after each advance: its blocks run, without a word from Python."""
    log: Log = []
    complaints: Log = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)

    async def body(saga: Saga) -> None:
        try:
            try:
                await asyncio.sleep(1000)
            except Exception:
                log.append("never")
        finally:
            log.append("finally")
            async for _ in generate():
                break
            async with asyncio.timeout(5):
                log.append("as in any task")
                await asyncio.wait_for(asyncio.sleep(0), 5)
            log.append("never")

    Ledger.of(StandInKit().saga(body))
    gc.collect()
    assert (log, complaints) == (["finally", "as in any task"], [])


def test_no_task_outlives_the_body() -> None:
    """A body that has been run leaves nothing behind in asyncio's list of all tasks, which all loops share."""

    async def body(log: Log) -> None:
        await asyncio.gather(*[asyncio.sleep(1) for _ in range(50)])

    gc.collect()
    gc.disable()
    try:
        registered = getattr(asyncio.tasks, "_scheduled_tasks", None) or getattr(
            asyncio.tasks, "_all_tasks", ()
        )
        before = len(registered)
        for _ in range(5):
            under_the_ledger(body)
        assert len(registered) <= before
    finally:
        gc.enable()


def test_all_of_the_loop_s_other_methods_are_refused() -> None:
    """What a real loop does with files, sockets, threads and signals is no business of a body."""

    async def body(log: Log) -> None:
        loop = asyncio.get_running_loop()
        for name in (
            "add_reader",
            "run_in_executor",
            "create_server",
            "subprocess_exec",
            "call_soon_threadsafe",
        ):
            try:
                getattr(loop, name)()
            except Exception as exc:
                log.append(str(exc))

    log, _ = under_the_ledger(body)
    assert log[0] == (
        "loop.add_reader() reaches outside the saga's body, which runs again at every replay: do this in a step"
    )
    assert [message.partition("()")[0] for message in log] == [
        "loop.add_reader",
        "loop.run_in_executor",
        "loop.create_server",
        "loop.subprocess_exec",
        "loop.call_soon_threadsafe",
    ]
