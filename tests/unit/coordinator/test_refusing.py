"""What reaches outside a body is refused, since a replay would do it again; what Python does for itself is not."""

import asyncio
import concurrent.futures
import glob
import importlib
import linecache
import logging
import logging.handlers
import multiprocessing
import os
import pathlib
import pdb
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import zoneinfo
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagakit.coordinator.context import Saga
from sagakit.errors import UseAStep
from sagakit.states import SagaState
from tests.unit.coordinator.driving import Ledger, Shop, StandInKit


def run(deed: Callable[[], Any]) -> Ledger:
    """Do it in a body."""

    async def body(saga: Saga) -> None:
        result = deed()
        if asyncio.iscoroutine(result):
            await result

    return Ledger.of(StandInKit().saga(body))


POOL = concurrent.futures.ThreadPoolExecutor(max_workers=1)
POOL.submit(int).result()  # its thread runs already, so none is started when it is used


DEEDS: list[tuple[str, Callable[[], Any], str]] = [
    ("open", lambda: open(__file__), "opened a file"),  # noqa: SIM115
    ("pathlib", lambda: pathlib.Path(__file__).read_text(), "opened a file"),
    ("os.open", lambda: os.open(__file__, os.O_RDONLY), "opened a file"),
    ("tempfile", lambda: tempfile.TemporaryFile(), "opened a file"),  # noqa: SIM115
    ("tempdir", lambda: tempfile.mkdtemp(), "changed a directory"),
    ("remove", lambda: os.remove("/nowhere/at/all"), "removed a file"),
    ("rename", lambda: os.rename("/nowhere/at/all", "/nowhere"), "renamed a file"),
    ("mkdir", lambda: os.makedirs("/nowhere/at/all"), "changed a directory"),
    ("rmdir", lambda: os.rmdir("/nowhere/at/all"), "removed a directory"),
    ("glob", lambda: glob.glob("/*"), "read a directory"),
    ("listdir", lambda: os.listdir("/"), "read a directory"),
    ("chmod", lambda: os.chmod("/nowhere", 0o600), "changed a file"),
    ("socket", lambda: socket.socket().connect(("127.0.0.1", 9)), "opened a network connection"),
    ("bind", lambda: socket.socket().bind(("127.0.0.1", 0)), "opened a network socket"),
    ("dns", lambda: socket.getaddrinfo("localhost", 80), "looked up a host name"),
    ("http", lambda: urllib.request.urlopen("http://localhost:9/"), "looked up a host name"),
    (
        "udp",
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
        "sent to the network",
    ),
    ("sqlite", lambda: sqlite3.connect(":memory:"), "opened a database"),
    ("subprocess", lambda: subprocess.run(["true"]), "started a process"),
    ("system", lambda: os.system("true"), "started a process"),
    ("fork", lambda: os.fork() or os._exit(0), "forked the process"),
    ("multiprocessing", lambda: multiprocessing.Process(target=print).start(), "forked the process"),
    ("thread", lambda: threading.Thread(target=print).start(), "started a thread"),
    ("executor", lambda: POOL.submit(int).result(), "used an executor"),
    ("wrapped", lambda: asyncio.wrap_future(POOL.submit(int)), "used an executor"),
    ("kill", lambda: os.kill(os.getpid(), 0), "sent a signal"),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("deed", "what"), [deed[1:] for deed in DEEDS], ids=[deed[0] for deed in DEEDS])
def test_reaching_outside(deed: Callable[[], Any], what: str) -> None:
    """The refusal says what was tried, and where it belongs."""
    error = run(deed).error
    assert error.type == "sagakit.errors.UseAStep"
    assert error.message == (f"the saga's body {what}; a body runs again at every replay: do this in a step")
    assert "test_refusing.py" in (error.traceback or "")


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python tells of time.sleep from 3.13 on")
def test_blocking_sleep() -> None:
    """A blocking sleep would hold up the worker at every replay; there is a durable one."""
    message = run(lambda: time.sleep(0)).error.message
    assert message.endswith(
        "called time.sleep(); a body runs again at every replay: use `await asyncio.sleep(...)`, "
        "which is durable"
    )


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    ("deed", "method"),
    [
        (lambda: asyncio.to_thread(print), "run_in_executor"),
        (lambda: asyncio.open_connection("localhost", 9), "create_connection"),
        (lambda: asyncio.start_server(print, "localhost", 9), "create_server"),
        (lambda: asyncio.create_subprocess_exec("true"), "subprocess_exec"),
        (lambda: asyncio.create_subprocess_shell("true"), "subprocess_shell"),
        (lambda: asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print), "add_signal_handler"),
        (lambda: asyncio.get_running_loop().sock_connect(None, None), "sock_connect"),  # type: ignore[arg-type]
        (lambda: asyncio.get_running_loop().getaddrinfo("localhost", 9), "getaddrinfo"),
        (lambda: asyncio.get_running_loop().set_task_factory(None), "set_task_factory"),
        (lambda: asyncio.get_running_loop().stop(), "stop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reaching_outside_through_asyncio(deed: Callable[[], Any], method: str) -> None:
    """asyncio's own I/O, threads and processes need a real loop."""
    error = run(deed).error
    assert error.message == (
        f"loop.{method}() reaches outside the saga's body, which runs again at every replay: do this in a step"
    )


def test_running_another_loop() -> None:
    """A body is async already: there is no need for another loop in it."""

    async def nothing() -> None: ...

    coroutine = nothing()
    try:
        error = run(lambda: asyncio.run(coroutine)).error
    finally:
        coroutine.close()
    assert error.message == "asyncio.run() cannot be called from a running event loop"


def test_refusal_can_be_caught_and_does_nothing(tmp_path: pathlib.Path) -> None:
    """A body that swallows the refusal has still not done what it tried."""
    path = tmp_path / "file"

    def deed() -> None:
        try:
            path.write_text("x")
        except UseAStep:
            return

    assert run(deed).saga.state is SagaState.COMPLETED
    assert not path.exists()


def test_body_that_is_thrown_away_is_watched_too(tmp_path: pathlib.Path) -> None:
    """What its ``finally`` blocks try is refused as well, unheard."""
    path = tmp_path / "file"
    shop = Shop()

    @shop.saga
    async def checkout(saga: Saga) -> None:
        try:
            await saga.step(shop.reserve)
        finally:
            path.write_text("x")

    Ledger.of(checkout)
    assert not path.exists()


def test_nothing_is_refused_outside_a_body(tmp_path: pathlib.Path) -> None:
    """The watch is for bodies: while one is waiting, and in other threads, everything goes as before."""
    shop = Shop()
    seen: list[str] = []

    @shop.saga
    async def checkout(saga: Saga) -> None:
        held.wait(10)  # another thread works while this body runs
        await saga.step(shop.reserve)

    held = threading.Event()

    def other() -> None:
        (tmp_path / "file").write_text("x")
        seen.append((tmp_path / "file").read_text())
        held.set()

    thread = threading.Thread(target=other)
    thread.start()
    Ledger.of(checkout)
    thread.join()
    (tmp_path / "file").write_text("y")
    assert seen == ["x"]


# What is allowed


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module nobody has imported yet, which reads a file of its own while it is."""
    (tmp_path / "lazily_imported.py").write_text(
        "import os, pathlib\nTEXT = pathlib.Path(__file__).read_text()\nNAMES = os.listdir(os.path.dirname(__file__))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazily_imported"
    sys.modules.pop("lazily_imported", None)


def test_lazy_imports(module: str) -> None:
    """An import happens once per process, so it may read what it likes."""

    def deed() -> None:
        import lazily_imported  # type: ignore[import-not-found]

        assert "pathlib" in lazily_imported.TEXT
        assert importlib.import_module(module) is lazily_imported

    assert run(deed).saga.state is SagaState.COMPLETED


def test_what_an_imported_function_does_later_is_refused(tmp_path: pathlib.Path, module: str) -> None:
    """The import is allowed, not what the module does when it is used."""
    (tmp_path / "lazily_imported.py").write_text("def read():\n    return open(__file__).read()\n")

    def deed() -> None:
        importlib.import_module(module).read()

    assert run(deed).error.message.startswith("the saga's body opened a file")


def test_logging(tmp_path: pathlib.Path) -> None:
    """A log record may open its file, and a handler turn it over."""
    logger = logging.getLogger("tests.refusing")
    handler = logging.handlers.RotatingFileHandler(tmp_path / "log", maxBytes=1, backupCount=2, delay=True)
    logger.addHandler(handler)

    def deed() -> None:
        logger.warning("from a body")
        logger.warning("once more")
        try:
            raise ValueError
        except ValueError:
            logger.exception("with a traceback")

    try:
        ledger = run(deed)
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert ledger.saga.state is SagaState.COMPLETED
    assert (tmp_path / "log").exists()


def test_python_s_own_reading() -> None:
    """Tracebacks, time zones and a debugger read files too."""

    def deed() -> None:
        linecache.clearcache()
        try:
            raise ValueError
        except ValueError:
            assert "raise ValueError" in traceback.format_exc()
        zoneinfo.ZoneInfo.clear_cache()
        zoneinfo.ZoneInfo("Europe/Berlin")
        pdb.Pdb()

    ledger = run(deed)
    assert ledger.saga.state is SagaState.COMPLETED, ledger.saga.error
