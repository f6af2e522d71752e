"""What the local servers have in common: a folder, a port of 127.0.0.1, and a life between start and close."""

import atexit
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from sagakit.local.account import server_account
from sagakit.local.directory import ServerDirectory
from sagakit.local.failures import LocalServerError
from sagakit.local.process import ServerProcess, free_port

_PORT_ATTEMPTS = 5


class LocalServer(ABC):
    """A server of our own, in a private temporary folder; made by ``local_postgres()`` and ``local_valkey()``.

    It ends with the ``with`` block, at the latest with this process, even when this process is killed (on Linux;
    elsewhere a killed process leaves its servers behind). A forked child may use the server but does not own it.

    Attributes:
        port: its port on 127.0.0.1; kept over restarts.
        data_dir: where its data is.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    close_signal: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self._account = server_account()
        self._directory = ServerDirectory(self.kind, self._account)
        self._process = ServerProcess(
            self.name, self._directory, self._account, death_signal=self.close_signal
        )
        self._owner = os.getpid()
        self._closed = False
        self._started = False
        self.port = free_port()
        self.data_dir: Path = self._directory.path / "data"
        atexit.register(self.close)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where to connect."""

    @property
    def pid(self) -> int:
        """Id of the server's main process.

        Raises:
            LocalServerError: it is not running.
        """
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's main process is alive."""
        return self._process.running

    def start(self) -> None:
        """Start the server and return when it answers. Does nothing if it runs.

        Raises:
            LocalServerError: it did not start; the message quotes its own log.
        """
        if self._closed:
            raise LocalServerError(self.name, "is closed and its data removed: make a new one")
        if self.running:
            return
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._process.start(self._command(), self._answers)
            except LocalServerError as exc:
                # Between our look at the port and the server's bind somebody else took it. Once people know the
                # port it has to stay.
                if self._started or "Address already in use" not in exc.log or attempt == _PORT_ATTEMPTS:
                    raise
                self.port = free_port()
            else:
                self._started = True
                return

    def stop(self) -> None:
        """Shut the server down cleanly; ``start()`` or ``restart()`` brings it back with its data."""
        self._process.stop(self.stop_signal)

    def kill(self) -> None:
        """Kill the server with all its processes (SIGKILL), as a crash would; its data stays as it is."""
        self._process.kill()

    def close(self) -> None:
        """End the server for good and remove its data. The end of the ``with`` block does this."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._process.stop(self.close_signal)
        self._remove_traces()
        self._directory.remove()

    def log_tail(self) -> str:
        """The end of what the server has logged since its last start; nothing once it is closed."""
        return "" if self._closed else self._process.log_tail()

    def _stranger(self) -> Exception:
        # Somebody else's server got the port first and answers in place of ours, which is about to find that out.
        return ConnectionError(f"another {self.name} answers on port {self.port}")

    def _remove_traces(self) -> None:  # noqa: B027 - most servers leave none
        """Remove what a killed server has left outside its folder."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The program and its arguments, for the present port."""

    @abstractmethod
    def _answers(self, pid: int) -> Exception | None:
        """Try once to use the server that runs as ``pid``; what is in the way, or ``None``."""
