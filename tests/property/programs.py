"""Random sagas: programs as plain data, a body that interprets them, and strategies that make them up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from sagakit.coordinator.context import Saga
from sagakit.errors import StepError, StepFailed
from tests.unit.coordinator.driving import Shop

Program = list[Any]
"""A node's kind, then its parts."""


class PropertyShop(Shop):
    """Steps of every sort, as far as undoing goes, and a saga that runs any program."""

    def __init__(self, program: Program) -> None:
        super().__init__()

        @self.step
        def order(number: int = 0) -> int:
            return number

        @order.compensation
        def withdraw(result: int | None) -> None: ...

        @self.step
        def hire(number: int = 0) -> int:
            return number

        @hire.compensation
        def dismiss(result: int, number: int) -> None: ...

        @hire.probe
        def ask(number: int) -> Any: ...

        self.order, self.hire = order, hire
        self.runs: list[Run] = []

        @self.saga
        async def body(saga: Saga) -> int:
            self.runs.append(Run(saga, self))
            await self.runs[-1].node(program)
            return self.runs[-1].total

        self.body = body


@dataclass(slots=True)
class Run:
    """One run of a program.

    Attributes:
        total: depends on every result so far and on their order; every step is called with it.
        issued: how many steps were issued.
        consumed: names of the steps whose outcome the program has seen.
        direct: names of the steps whose futures the program handles itself, rather than awaiting them.
    """

    saga: Saga
    shop: PropertyShop
    total: int = 0
    issued: int = 0
    consumed: set[str] = field(default_factory=set)
    direct: set[str] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)

    def issue(self, name: str) -> tuple[str, Any]:
        self.issued += 1
        unique = f"{name}-{self.issued}"
        step = getattr(self.shop, name).set(name=unique)
        return unique, self.saga.step(step, self.total % 1_000_003)

    async def awaited(self, name: str) -> int:
        unique, future = self.issue(name)
        try:
            result: int = await future
        except (StepFailed, StepError):
            self.see(unique, 17)
            raise
        self.see(unique, result)
        return result

    def see(self, unique: str, result: int) -> None:
        self.consumed.add(unique)
        self.total = (self.total * 31 + result + 7) % 1_000_000_007

    async def node(self, program: Program) -> None:
        kind, *parts = program
        await getattr(self, f"_{kind}")(*parts)

    def task(self, program: Program) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.node(program))
        self.kept.append(task)
        return task

    async def _step(self, name: str) -> None:
        await self.awaited(name)

    async def _branch(self, name: str, even: Program, odd: Program) -> None:
        await self.node(odd if await self.awaited(name) % 2 else even)

    async def _stamp(self) -> None:
        now, drawn = self.saga.now(), self.saga.uuid4()
        self.see("stamp", int(now.timestamp()) + drawn.int % 1000 + int(self.saga.random() * 1000))

    async def _sleep(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        self.total += 1

    async def _seq(self, *programs: Program) -> None:
        for program in programs:
            await self.node(program)

    async def _gather(self, *programs: Program) -> None:
        await asyncio.gather(*[self.node(program) for program in programs])

    async def _settled(self, *programs: Program) -> None:
        results = await asyncio.gather(*[self.node(program) for program in programs], return_exceptions=True)
        self.total += sum(3**n for n, result in enumerate(results) if result is not None)

    async def _group(self, *programs: Program) -> None:
        async with asyncio.TaskGroup() as group:
            for program in programs:
                group.create_task(self.node(program))

    async def _timeout(self, seconds: int, program: Program) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.node(program)
        except TimeoutError:
            self.total += 5

    async def _wait_for(self, seconds: int, program: Program) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.node(program), seconds)

    async def _shield(self, seconds: int, program: Program) -> None:
        task = self.task(program)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), seconds)

    async def _try(self, program: Program, fallback: Program) -> None:
        try:
            await self.node(program)
        except Exception:
            await self.node(fallback)

    async def _finally(self, program: Program, last: Program) -> None:
        try:
            await self.node(program)
        finally:
            await self.node(last)

    async def _stubborn(self, program: Program, last: Program) -> None:
        try:
            await self.node(program)
        except asyncio.CancelledError:
            await self.node(last)

    async def _first(self, cancel: bool, *programs: Program) -> None:
        tasks = [self.task(program) for program in programs]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self.total += len(done)
        for task in pending:
            if cancel:
                task.cancel()

    async def _first_of(self, *names: str) -> None:
        futures = {future: unique for unique, future in map(self.issue, names)}
        self.direct.update(futures.values())
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            self.see(futures[future], 3 if future.exception() else future.result())

    async def _as_completed(self, seconds: int, *names: str) -> None:
        futures = [future for unique, future in map(self.issue, names) if not self.direct.add(unique)]  # type: ignore[func-returns-value]
        with suppress(TimeoutError):
            for first in asyncio.as_completed(futures, timeout=seconds):
                with suppress(StepFailed, StepError):
                    self.total = self.total * 7 + await first

    async def _left(self, program: Program) -> None:
        self.task(program)
        await asyncio.sleep(0)

    async def _cancelled(self, program: Program, meanwhile: Program) -> None:
        task = self.task(program)
        await self.node(meanwhile)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _generator(self, taken: int, *programs: Program) -> None:
        async def generate() -> AsyncIterator[int]:
            try:
                for number, program in enumerate(programs):
                    await self.node(program)
                    yield number
            finally:
                await self.awaited("mail")

        async with aclosing(generate()) as numbers:  # type: ignore[type-var]
            async for number in numbers:
                if number == taken:
                    break

    async def _dropped(self, *programs: Program) -> None:
        async def generate() -> AsyncIterator[int]:
            try:
                for number, program in enumerate(programs):
                    await self.node(program)
                    yield number
            finally:
                await asyncio.sleep(0)
                self.total += 1

        async for _ in generate():
            break

    async def _raise(self) -> None:
        raise ValueError("as programmed")


# Strategies

NAMES = st.sampled_from(["reserve", "charge", "ship", "mail", "order", "hire"])
SECONDS = st.integers(1, 30)

LEAVES = st.one_of(
    st.tuples(st.just("step"), NAMES),
    st.tuples(st.just("step"), NAMES),
    st.tuples(st.just("step"), NAMES),
    st.tuples(st.just("sleep"), SECONDS),
    st.tuples(st.just("stamp")),
    st.lists(NAMES, min_size=1, max_size=4).map(lambda names: ("first_of", *names)),
    st.tuples(SECONDS, st.lists(NAMES, min_size=1, max_size=4)).map(lambda p: ("as_completed", p[0], *p[1])),
    st.tuples(st.just("raise")),
)


def _nodes(children: "st.SearchStrategy[Any]") -> "st.SearchStrategy[Any]":
    several = st.lists(children, min_size=1, max_size=4)

    def of_several(kind: str) -> "st.SearchStrategy[Any]":
        return several.map(lambda programs: (kind, *programs))

    return st.one_of(
        of_several("seq"),
        of_several("seq"),
        of_several("gather"),
        of_several("settled"),
        of_several("group"),
        of_several("dropped"),
        st.tuples(st.just("branch"), NAMES, children, children),
        st.tuples(st.just("timeout"), SECONDS, children),
        st.tuples(st.just("wait_for"), SECONDS, children),
        st.tuples(st.just("shield"), SECONDS, children),
        st.tuples(st.just("try"), children, children),
        st.tuples(st.just("finally"), children, children),
        st.tuples(st.just("stubborn"), children, children),
        st.tuples(st.just("cancelled"), children, children),
        st.tuples(st.just("left"), children),
        st.tuples(st.booleans(), several).map(lambda p: ("first", p[0], *p[1])),
        st.tuples(st.integers(0, 2), several).map(lambda p: ("generator", p[0], *p[1])),
    )


def _listed(program: Any) -> Any:
    """Tuples to lists, as JSON has it."""
    return [_listed(part) for part in program] if isinstance(program, tuple | list) else program


PROGRAMS: "st.SearchStrategy[Program]" = st.recursive(LEAVES, _nodes, max_leaves=14).map(_listed)

Body = Callable[[Saga], Coroutine[Any, Any, int]]
