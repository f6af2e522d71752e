"""The async generators a body leaves open: closed in the same order at every replay."""

import gc
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

_Generator = AsyncGenerator[Any, Any]

_collecting: set[int] = set()
"""Threads in which the garbage collector is at work."""


def _watch_collector(phase: str, info: dict[str, int]) -> None:
    (_collecting.add if phase == "start" else _collecting.discard)(threading.get_ident())


class OpenGenerators:
    """Keeps track of a loop's async generators.

    One that nobody holds any more is closed there and then if it was let go by the body itself. In which moment the
    garbage collector finds one in a cycle, and in which thread, differs from run to run: that one waits for the end.

    Args:
        number: gives creation numbers.
        close: closes a generator that the body has let go.
    """

    def __init__(self, number: Callable[[], int], close: Callable[[_Generator], None]) -> None:
        if _watch_collector not in gc.callbacks:
            gc.callbacks.append(_watch_collector)
        self._number = number
        self._close = close
        self._open: dict[int, tuple[int, ref[_Generator]]] = {}
        self._garbage: list[tuple[int, _Generator]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Be told of the generators that are iterated in this block."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._keep, finalizer=self._let_go)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def take(self) -> list[_Generator]:
        """Those that are open, by age; they are no longer kept track of."""
        left = [
            (number, generator) for number, kept in self._open.values() if (generator := kept()) is not None
        ]
        left = sorted(left + self._garbage, key=lambda numbered: numbered[0])
        self._open, self._garbage = {}, []
        return [generator for _, generator in left]

    def _keep(self, generator: _Generator) -> None:
        self._open[id(generator)] = (self._number(), ref(generator))

    def _let_go(self, generator: _Generator) -> None:
        number, _ = self._open.pop(id(generator), (0, None))
        if threading.get_ident() in _collecting:
            self._garbage.append((number, generator))
        else:
            self._close(generator)


async def aclose(generator: _Generator) -> None:
    """Close a generator."""
    await generator.aclose()
