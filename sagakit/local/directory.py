"""The private temporary folder a local server lives in, and the removal of those whose owners were killed."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from sagakit.local.account import Account, is_private_folder, temporary_folder

_LOCK = "lock"


class ServerDirectory:
    """A fresh folder of mode 0700 that belongs to the server's account.

    Its lock is held by this process and inherited by the server, so whoever gets it later knows that both are gone.

    Attributes:
        path: the folder.
        lock_fd: descriptor of the lock, for the server to inherit.
        log_fd: descriptor of ``server.log``, open for reading and appending.
    """

    def __init__(self, kind: str, account: Account) -> None:
        temporary = temporary_folder(account)
        _remove_abandoned(kind, temporary, account)
        self._account = account
        self.path = Path(tempfile.mkdtemp(prefix=_prefix(kind), dir=temporary))
        # Locked before it gets its name: an unlocked lock means that the owners are dead.
        unnamed = self.path / f"{_LOCK}.new"
        self.lock_fd = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
        fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)
        # Opened once and for all: from the next line on the folder is the server's, which could put a symbolic link
        # where root expects the log.
        self.log_fd = os.open(
            self.path / "server.log", os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_EXCL, 0o600
        )
        self.own(self.path)

    def own(self, path: Path) -> None:
        """Give a file or folder that this process made to the server's account."""
        if self._account.switch:
            os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)

    def remove(self) -> None:
        """Delete the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.log_fd)
        os.close(self.lock_fd)


def _prefix(kind: str) -> str:
    return f"sagakit-{kind}-"


def _remove_abandoned(kind: str, temporary: Path, account: Account) -> None:
    # A process that was killed outright could not clean up; the next one does it in its place.
    for path in temporary.glob(f"{_prefix(kind)}*"):
        if not is_private_folder(path, account.uid):
            continue
        try:
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(lock_fd)
