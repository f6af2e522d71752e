"""A program that runs sagas on heaps of different shape and prints the commands they issued, for ``test_heaps``.

It imports the pure core only: without Celery and SQLAlchemy a process begins in a fraction of the time.
"""

import asyncio
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[3]


def import_core_alone() -> None:
    """Let ``sagakit`` be an empty package, so that its parts are imported without the public face."""
    package = ModuleType("sagakit")
    package.__path__ = [str(ROOT / "sagakit")]
    sys.modules["sagakit"] = package
    sys.path.insert(0, str(ROOT))


def clutter(rng: random.Random) -> list[Any]:
    """Give the heap another shape, so that what is allocated next lies elsewhere."""
    pieces: list[Any] = [object() for _ in range(rng.randrange(500))]
    pieces += [[None] * rng.randrange(40) for _ in range(rng.randrange(500))]
    pieces += [asyncio.Lock() for _ in range(rng.randrange(100))]
    return [piece for piece in pieces if rng.random() < 0.6]


def declare(shop: Any) -> list[Any]:
    """Sagas whose commands would come in the order of a set."""
    from sagakit.coordinator.context import Saga

    async def charge(saga: Saga, number: int) -> int:
        try:
            return int(await saga.step(shop.charge, number))
        except asyncio.CancelledError:
            return int(await saga.step(shop.mail, number))

    @shop.saga
    async def group(saga: Saga) -> None:
        async with asyncio.TaskGroup() as members:
            for number in range(12):
                members.create_task(charge(saga, number))

    @shop.saga
    async def wait(saga: Saga) -> None:
        futures = [saga.step(shop.charge, number) for number in range(12)]
        await saga.step(shop.reserve)
        done, _ = await asyncio.wait(futures)
        for future in done:
            await saga.step(shop.mail, future.result())

    @shop.saga
    async def wait_for_tasks(saga: Saga) -> None:
        tasks = {asyncio.create_task(charge(saga, number)) for number in range(12)}
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await saga.step(shop.mail, task.result())

    @shop.saga
    async def as_completed(saga: Saga) -> None:
        futures = [saga.step(shop.charge, number) for number in range(12)]
        await saga.step(shop.reserve)
        for first in asyncio.as_completed(futures):
            await saga.step(shop.mail, await first)

    return [group, wait, wait_for_tasks, as_completed]


def run_once() -> list[Any]:
    """Run each of the sagas and return the commands in the order they were issued."""
    from tests.unit.coordinator.driving import Ledger, Shop

    found = []
    for saga in declare(Shop()):
        ledger = Ledger.of(saga)
        charges = [row.position for row in ledger.rows if row.name == "charge"]
        if saga.label == "group":
            ledger.end(charges[3], error=ValueError())
        else:
            for position in charges:
                ledger.end(position)
        ledger.advance()
        found.append((saga.label, ledger.finish().commands))
    return found


def main(seed: int, trials: int, naive: bool) -> None:
    """Print what came out, each different result once, as JSON."""
    import_core_alone()
    from sagakit.coordinator import loop

    if naive:
        for cls in (loop.OrderedFuture, loop.OrderedTask):
            cls.__hash__ = object.__hash__  # type: ignore[method-assign]
    rng = random.Random(seed)
    different, kept = set(), []
    for _ in range(trials):
        kept.append(clutter(rng))
        different.add(json.dumps(run_once()))
    json.dump(sorted(different), sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), naive="naive" in sys.argv)
