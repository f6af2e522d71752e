"""A deterministic asyncio event loop: it collects commands instead of doing I/O, and is fed outcomes from outside.

Running a body on it twice, feeding the same outcomes in the same order, issues the same commands. What that takes
beyond collecting callbacks in order:

* futures and tasks hash by creation number, because asyncio keeps them in sets and walks those in hash order (a
  ``TaskGroup`` cancels its siblings so, and ``asyncio.wait`` returns its results so);
* time stands still except when the coordinator moves it;
* everything that would reach the outside is refused.
"""

import asyncio
import contextvars
import gc
import sys
import threading
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, TypeVarTuple, Unpack, cast
from weakref import ref

from sagakit.coordinator import guard
from sagakit.errors import BodyDoesNotYield, UseAStep

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_MAX_CALLBACKS = 1_000_000
"""Callbacks one drain may run: far beyond any real body, so only one that spins gets there."""


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


class LedgerLoop(asyncio.AbstractEventLoop):
    """The loop a saga's body runs on."""

    is_ledger_loop = True

    def __init__(self, commands: Commands) -> None:
        guard.install()
        self._commands = commands
        self._ready: deque[asyncio.Handle] = deque()
        self._created = 0
        self._orphans = 0
        self._context = contextvars.Context()
        self._generators: dict[int, tuple[int, ref[AsyncGenerator[Any, Any]]]] = {}
        self._garbage: list[tuple[int, AsyncGenerator[Any, Any]]] = []
        self.tasks: list[OrderedTask[Any]] = []
        self._stopping = False
        self.now = 0.0
        self.dead = False

    # What the coordinator calls.

    def drain(self) -> None:
        """Run everything that is ready, until nothing is, the body went astray, or its own task has ended.

        In the last case what else is ready waits for the next drain, as under ``run_until_complete``.

        Raises:
            BodyDoesNotYield: the body spins.
        """
        previous = events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._keep_generator, finalizer=self._close_generator)
        try:
            count = 0
            while self._ready and not self._commands.faulty:
                batch, self._ready = self._ready, deque()
                count += len(batch)
                self._run(batch)
                if self._stopping:
                    self._stopping = False
                    return
                if count > _MAX_CALLBACKS:
                    raise BodyDoesNotYield(
                        f"the body ran {count:,} callbacks without waiting for a step or a timer: it spins"
                    )
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(previous)

    def _run(self, batch: deque[asyncio.Handle]) -> None:
        try:
            while batch and not self._commands.faulty:
                handle = batch.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            self._ready.extendleft(
                reversed(batch)
            )  # a SystemExit passed through: the rest is still to be run

    def start(self, coro: Coroutine[Any, Any, R]) -> OrderedTask[R]:
        """Begin the body, in a fresh context: no decimal precision or other variable of the worker leaks in."""
        task: OrderedTask[R] = self._task(coro, (), context=self._context)
        task.add_done_callback(self._stop)
        return task

    def _stop(self, task: "asyncio.Task[Any]") -> None:
        self._stopping = True

    def fire(self, handle: asyncio.Handle) -> None:
        """Make a due timer ready."""
        self._ready.append(handle)

    def cancel_left(self) -> list[OrderedTask[Any]]:
        """Cancel every task that is left, as ``asyncio.run`` does, and return them."""
        left = [task for task in self.tasks if not task.done()]
        for task in left:
            task.cancel()
        return left

    def close_generators(self) -> list[OrderedTask[Any]]:
        """Close the async generators the body left open, as ``asyncio.run`` does; return the tasks that do it."""
        left = [
            (number, generator)
            for number, kept in self._generators.values()
            if (generator := kept()) is not None
        ]
        left = sorted(left + self._garbage, key=lambda numbered: numbered[0])
        self._generators, self._garbage = {}, []
        return [self.create_task(_aclose(generator), context=self._context) for _, generator in left]

    def close(self) -> None:
        """Throw the body away. Python runs its ``finally`` blocks; the commands they issue are refused."""
        self.dead = True
        previous = events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._keep_generator, finalizer=self._close_generator)
        try:
            for task in self.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # asyncio keeps every task in one set for the process, where those of all loops have the same hashes:
                # left to the garbage collector, they would make it slow.
                asyncio.tasks._unregister_task(task)
                _throw_away(task.get_coro())
        finally:
            self.tasks.clear()
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(previous)

    def next_number(self) -> int:
        """The creation number of the next future or task."""
        self._created += 1
        return self._created

    def next_key(self) -> str:
        """The identity of the next command: the path of the task that issues it, and its number there."""
        task = cast("OrderedTask[Any] | None", asyncio.current_task(self))
        if task is None:
            self._orphans += 1
            return f"~:{self._orphans}"
        task.commands += 1
        return f"{'.'.join(map(str, task.path))}:{task.commands}"

    # What asyncio calls.

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.dead

    def create_future(self) -> OrderedFuture[Any]:
        return OrderedFuture(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Any = None, **kw: Any
    ) -> OrderedTask[Any]:
        _refuse_as_completed(coro)
        parent = cast("OrderedTask[Any] | None", asyncio.current_task(self))
        if parent is None:
            self._orphans += 1
            path: tuple[int, ...] = (0, self._orphans)
        else:
            parent.children += 1
            path = (*parent.path, parent.children)
        if isinstance(coro, asyncio.Future):
            coro = _wait_for(coro)
        return self._task(coro, path, name=name, context=context)

    def _task(
        self, coro: Any, path: tuple[int, ...], *, name: str | None = None, **kw: Any
    ) -> OrderedTask[Any]:
        # asyncio's own names count the tasks of the process.
        name = name or f"Task-{'.'.join(map(str, path)) or 'body'}"
        task: OrderedTask[Any] = OrderedTask(coro, loop=self, path=path, name=name, **kw)
        self.tasks.append(task)
        return task

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]  # or asyncio would not tell us of its cancellation
        self._commands.timer_set(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._commands.timer_cancelled(handle)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception nobody retrieved: what matters of it is on the ledger, and it would be told at every replay."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """As above."""

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    def _keep_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[id(generator)] = (self.next_number(), ref(generator))

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody holds a generator any more: close it, now or when the body ends."""
        if self.dead:
            return
        number, _ = self._generators.pop(id(generator))
        if threading.get_ident() in _collecting:
            # In which moment the garbage collector finds a cycle, and in which thread, differs from run to run.
            self._garbage.append((number, generator))
        else:
            self.create_task(_aclose(generator))


async def _wait_for(future: "asyncio.Future[R]") -> R:
    return await future


async def _aclose(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


_collecting: set[int] = set()
"""Threads in which the garbage collector is at work."""


def _watch_collector(phase: str, info: dict[str, int]) -> None:
    (_collecting.add if phase == "start" else _collecting.discard)(threading.get_ident())


gc.callbacks.append(_watch_collector)

_MAX_AWAITS = 1000
"""How often a coroutine that is thrown away may wait for something in its ``finally`` blocks."""


class ThrownAway(BaseException):
    """What a body that is thrown away sees at its ``await``.

    Not ``GeneratorExit``, as ``coroutine.close()`` has it: Python complains of one that still awaits something then.
    """


def _throw_away(coro: Any) -> None:
    for _ in range(_MAX_AWAITS):
        if getattr(coro, "cr_frame", None) is None:
            return
        with suppress(BaseException):  # it may raise anything while it is torn down, and nobody is to hear it
            coro.throw(ThrownAway())


_AS_COMPLETED = ("as_completed", "_AsCompletedIterator")


def _refuse_as_completed(coro: Any) -> None:
    """``as_completed`` puts bare coroutines into a set before they become tasks, so their order is that of memory."""
    if isinstance(coro, asyncio.Future):
        return
    frame = sys._getframe(2)
    for _ in range(4):
        code = frame.f_code
        if code.co_filename == asyncio.tasks.__file__ and code.co_qualname.startswith(_AS_COMPLETED):
            if asyncio.iscoroutine(coro):
                coro.close()
            raise UseAStep(
                "asyncio.as_completed() over bare coroutines starts them in an order that differs between processes: "
                "pass it step futures or tasks, as_completed([asyncio.create_task(c) for c in coroutines])"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: LedgerLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise UseAStep(
            f"loop.{name}() reaches outside the saga's body, which runs again at every replay: do this in a step"
        )

    refuse.__name__ = name
    return refuse


def _refuse_the_rest() -> None:
    """Every method of a real loop that is not defined above would do I/O, threads, signals or run another loop."""
    for name, member in vars(asyncio.AbstractEventLoop).items():
        if not name.startswith("_") and callable(member) and name not in vars(LedgerLoop):
            setattr(LedgerLoop, name, _refusal(name))


_refuse_the_rest()

__all__ = ["Commands", "LedgerLoop", "OrderedTask", "StepFuture"]
