"""The folder in which the demo keeps its databases, so that they can be looked at afterwards."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

DEFAULT = Path(".sagakit-demo")

_LOCK = "lock"
_OURS = ("ledger.db", "shop.db")
_SQLITE_FILES = ("", "-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where the embedded demo's files are."""

    path: Path

    @property
    def ledger_url(self) -> str:
        """The ledger's SQLite file."""
        return f"sqlite:///{self.path / 'ledger.db'}"

    @property
    def shop_url(self) -> str:
        """The shop's SQLite file."""
        return f"sqlite:///{self.path / 'shop.db'}"

    @property
    def log(self) -> Path:
        """What the worker logs."""
        return self.path / "worker.log"


@contextmanager
def demo_folder(path: Path) -> Iterator[DemoFolder]:
    """Make the folder, for this process alone, without what an earlier demo left in it.

    Raises:
        click.ClickException: it cannot be written to, or another demo is running in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("w")
    except OSError as exc:
        raise click.ClickException(
            f"cannot write to {path} ({exc.strerror}): name another folder with --folder"
        ) from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise click.ClickException(
                f"another demo is running in {path}: wait for it, or name another folder with --folder"
            ) from exc
        (path / ".gitignore").write_text("*\n")
        for name in _OURS:
            for suffix in _SQLITE_FILES:
                (path / f"{name}{suffix}").unlink(missing_ok=True)
        (path / "worker.log").write_text("")
        yield DemoFolder(path)
