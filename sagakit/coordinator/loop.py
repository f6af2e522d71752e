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
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack, cast

from sagakit.coordinator import guard
from sagakit.coordinator.futures import Commands, OrderedFuture, OrderedTask
from sagakit.coordinator.generators import OpenGenerators, aclose
from sagakit.errors import BodyDoesNotYield, UseAStep

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_MAX_CALLBACKS = 1_000_000
"""Callbacks one drain may run: far beyond any real body, so only one that spins gets there."""


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
        self._generators = OpenGenerators(self.next_number, self._close_unheld)
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
        count = 0
        with self._running():
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

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Be this thread's running loop, and the one its async generators report to."""
        previous = events._get_running_loop()
        events._set_running_loop(self)
        try:
            with self._generators.watched():
                yield
        finally:
            events._set_running_loop(previous)

    def _run(self, batch: deque[asyncio.Handle]) -> None:
        try:
            while batch and not self._commands.faulty:
                handle = batch.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            # Where a SystemExit passed through, the rest is still to be run.
            self._ready.extendleft(reversed(batch))

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
        left = self._generators.take()
        return [self.create_task(aclose(generator), context=self._context) for generator in left]

    def _close_unheld(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self.dead:
            self.create_task(aclose(generator))

    def close(self) -> None:
        """Throw the body away. Python runs its ``finally`` blocks; the commands they issue are refused."""
        self.dead = True
        with self._running():
            for task in self.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # asyncio keeps every task in one set for the process, where those of all loops have the same hashes:
                # left to the garbage collector, they would make it slow.
                asyncio.tasks._unregister_task(task)
                _throw_away(task)
        self.tasks.clear()

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


async def _wait_for(future: "asyncio.Future[R]") -> R:
    return await future


_MAX_AWAITS = 1000
"""How often a coroutine that is thrown away may wait for something in its ``finally`` blocks."""


class ThrownAway(BaseException):
    """What a body that is thrown away sees at its ``await``.

    Not ``GeneratorExit``, as ``coroutine.close()`` has it: Python complains of one that still awaits something then.
    """


def _throw_away(task: OrderedTask[Any]) -> None:
    coro: Any = task.get_coro()
    loop = task.get_loop()
    asyncio.tasks._enter_task(loop, task)  # what asks for the current task, such as a timeout, finds it
    try:
        for _ in range(_MAX_AWAITS):
            if getattr(coro, "cr_frame", None) is None:
                return
            # It may raise anything while it is torn down, and nobody is to hear it.
            with suppress(BaseException):
                coro.throw(ThrownAway())
    finally:
        asyncio.tasks._leave_task(loop, task)


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
