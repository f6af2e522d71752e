"""Futures and tasks that asyncio treats in the same order at every replay."""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from sagakit.coordinator.loop import LedgerLoop

R = TypeVar("R")


class Commands(Protocol):
    """Who is told of what the body does."""

    def timer_set(self, handle: asyncio.TimerHandle) -> None: ...

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def step_abandoned(self, future: "StepFuture[Any]") -> None: ...

    @property
    def faulty(self) -> bool: ...


class _Ordered:
    """Hashes by creation number, the same in every replay."""

    _number: int

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class OrderedFuture(_Ordered, asyncio.Future[R]):
    """A future of the ledger loop."""

    def __init__(self, *, loop: "LedgerLoop") -> None:
        self._number = loop.next_number()
        super().__init__(loop=loop)

    __hash__ = _Ordered.__hash__
    __eq__ = _Ordered.__eq__


class OrderedTask(_Ordered, asyncio.Task[R]):
    """A task of the ledger loop. ``path`` names it by its place in the tree of tasks, the same in every replay."""

    def __init__(
        self, coro: Coroutine[Any, Any, R], *, loop: "LedgerLoop", path: tuple[int, ...], **kw: Any
    ) -> None:
        self._number = loop.next_number()
        self.path = path
        self.children = 0
        self.commands = 0
        super().__init__(coro, loop=loop, **kw)

    __hash__ = _Ordered.__hash__
    __eq__ = _Ordered.__eq__


if TYPE_CHECKING:

    class StepFuture(asyncio.Future[R], Coroutine[Any, Any, R]):
        """What ``saga.step`` returns: awaitable, and good for ``gather``, ``wait`` and ``create_task`` alike."""

        awaited: bool
        line: tuple[str, int]

        def __init__(self, *, loop: "LedgerLoop", commands: Commands, line: tuple[str, int]) -> None: ...
        def send(self, value: Any, /) -> Any: ...
        def throw(self, *args: Any) -> Any: ...
        def close(self) -> None: ...

else:

    class StepFuture(OrderedFuture):
        """What ``saga.step`` returns: a future that knows whether anybody waits for it."""

        def __init__(self, *, loop, commands, line):
            super().__init__(loop=loop)
            self._commands = commands
            self.awaited = False
            self.line = line

        def __await__(self):
            self.awaited = True
            return super().__await__()

        __iter__ = __await__

        def add_done_callback(self, callback, *, context=None):
            self.awaited = True
            super().add_done_callback(callback, context=context)

        def result(self):
            self.awaited = True
            return super().result()

        def exception(self):
            self.awaited = True
            return super().exception()

        def cancel(self, msg=None):
            landed = super().cancel(msg)
            if landed:
                self._commands.step_abandoned(self)
            return landed
