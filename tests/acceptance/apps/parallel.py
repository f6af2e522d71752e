"""Sagas whose steps run side by side."""

import asyncio

from celery import Celery

from sagakit import Saga, SagaKit, StepFailed
from tests.acceptance.apps import act
from tests.cluster import effects

app = Celery("parallel", set_as_current=False)
app.conf.worker_prefetch_multiplier = 1  # a worker takes no more than it has processes for
kit = SagaKit(app)


@kit.step
def branch(number: int, gate: str) -> int:
    """One of many: waits at a gate they share."""
    effects.pass_gate(gate)
    if number < 0:
        raise ValueError("this one fails")
    effects.record(detail=number)
    return number * 10


@branch.compensation
def prune(result: int, number: int) -> None:
    """Takes one branch back."""
    effects.record(detail=[result, number])


@kit.step
def other() -> str:
    """A step that follows."""
    act()
    return "other"


@other.compensation
def undo_other() -> None:
    """Takes it back."""
    act()


def named(number: int) -> object:
    """One of the branches, with a name of its own."""
    return branch.set(name=f"branch-{number}")


@kit.saga
async def fan(saga: Saga, width: int) -> list[int]:
    """Many branches at once."""
    return await asyncio.gather(*(saga.step(named(n), n, saga.id) for n in range(width)))


@kit.saga
async def broken_fan(saga: Saga, width: int) -> list[int]:
    """Many branches at once, the first of which fails."""
    first = saga.step(branch.set(name="bad"), -1, f"bad {saga.id}")
    return await asyncio.gather(first, *(saga.step(named(n), n, saga.id) for n in range(width)))


@kit.saga
async def group(saga: Saga, width: int) -> str:
    """A task group, whose failure the body survives."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for n in range(width):
                tasks.create_task(saga.step(named(n), n, saga.id))
            tasks.create_task(saga.step(branch.set(name="bad"), -1, f"bad {saga.id}"))
    except* StepFailed:
        pass
    return await saga.step(other)


@kit.saga
async def impatient(saga: Saga) -> str:
    """Waits for a step for a moment only, and carries on without it."""
    try:
        async with asyncio.timeout(0.3):
            await saga.step(branch.set(name="slow"), 1, f"slow {saga.id}")
    except TimeoutError:
        return "in the end, " + await saga.step(other)
    return "in time"


@kit.saga
async def race(saga: Saga) -> str:
    """Takes the first of two, and cancels the other."""
    fast = asyncio.ensure_future(saga.step(other))
    slow = asyncio.ensure_future(saga.step(branch.set(name="slow"), 1, f"slow {saga.id}"))
    done, pending = await asyncio.wait({fast, slow}, return_when=asyncio.FIRST_COMPLETED)
    for loser in pending:
        loser.cancel()
    return f"{len(done)} won: {done.pop().result()}"


@kit.saga
async def stream(saga: Saga, width: int) -> list[int]:
    """Takes results in the order in which they come."""
    steps = [saga.step(named(n), n, f"{n} {saga.id}") for n in range(width)]
    return [await found for found in asyncio.as_completed(steps)]


@kit.saga
async def sleeper(saga: Saga, seconds: float) -> float:
    """Sleeps durably between two looks at its clock."""
    before = saga.now()
    await asyncio.sleep(seconds)
    return (saga.now() - before).total_seconds()
