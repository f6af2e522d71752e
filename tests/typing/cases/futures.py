"""What ``saga.step`` returns is good for everything asyncio has for futures and coroutines."""

import asyncio
from typing import assert_type

from celery import Celery

from sagakit import Saga, SagaKit, StepFuture

kit = SagaKit(Celery("shop"))


@kit.step
def number(name: str) -> int:
    return 1


@kit.step
async def text(name: str) -> str:
    return name


async def body(saga: Saga) -> None:
    one, two, three = await asyncio.gather(
        saga.step(number, "a"), saga.step(text, "b"), saga.step(number, "c")
    )
    assert_type(one, int)
    assert_type(two, str)
    assert_type(three, int)

    many = await asyncio.gather(*[saga.step(number, name) for name in "abc"])
    assert_type(many, list[int])

    settled = await asyncio.gather(saga.step(number, "a"), saga.step(text, "b"), return_exceptions=True)
    assert_type(settled, tuple[int | BaseException, str | BaseException])

    task = asyncio.create_task(saga.step(number, "a"))
    assert_type(task, asyncio.Task[int])
    assert_type(await task, int)

    async with asyncio.TaskGroup() as group:
        member = group.create_task(saga.step(text, "a"))
    assert_type(member.result(), str)

    done, pending = await asyncio.wait(
        [saga.step(number, "a"), saga.step(number, "b")], return_when=asyncio.FIRST_COMPLETED
    )
    assert_type([future.result() for future in done], list[int])
    for future in pending:
        assert_type(future, StepFuture[int])
        future.cancel()

    for first in asyncio.as_completed([saga.step(number, "a"), saga.step(number, "b")]):
        assert_type(await first, int)

    assert_type(await asyncio.wait_for(saga.step(number, "a"), 5), int)
    assert_type(await asyncio.shield(saga.step(text, "a")), str)

    future = saga.step(number, "a")
    assert_type(future.done(), bool)
    assert_type(await future, int)
    assert_type(future.result(), int)
    future.add_done_callback(lambda done: print(done.result() + 1))

    await asyncio.gather(saga.step(number, 1))  # E
    await asyncio.create_task(saga.step(number))  # E
    wrong: str = await saga.step(number, "a")  # E
    print(wrong)
