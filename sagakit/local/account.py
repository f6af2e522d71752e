"""The account a local server runs under, and what that account can reach on disk."""

import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sagakit.local.failures import LocalServerError

# What "nobody" is on a machine that has no entry of this name: the kernel's overflow id.
_NOBODY_ID = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user and its primary group; ``switch`` says that a server has to be turned into it."""

    uid: int
    gid: int
    switch: bool

    def can_reach(self, path: Path) -> bool:
        """Whether the account may read and enter (or run) ``path`` and enter every folder above it."""
        resolved = path.resolve()
        return self._granted(resolved, 0o5) and all(self._granted(parent, 0o1) for parent in resolved.parents)

    def _granted(self, path: Path, wanted: int) -> bool:
        # Mode bits as the kernel reads them: the first class that fits decides, even when a later one grants more.
        status = path.stat()
        if status.st_uid == self.uid:
            granted = status.st_mode >> 6
        elif status.st_gid == self.gid:
            granted = status.st_mode >> 3
        else:
            granted = status.st_mode
        return granted & wanted == wanted


def server_account() -> Account:
    """``nobody`` for root, because Postgres refuses root and Valkey has no need of it; else the current user."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), switch=False)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(uid=_NOBODY_ID, gid=_NOBODY_ID, switch=True)
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid, switch=True)


def temporary_folder(account: Account) -> Path:
    """A folder for temporary files that the account can enter.

    Raises:
        LocalServerError: there is none.
    """
    candidates = [Path(tempfile.gettempdir())]
    if account.switch:  # root's own TMPDIR may well lie where nobody else can go
        candidates += [Path("/tmp"), Path("/var/tmp")]
    for candidate in candidates:
        if candidate.is_dir() and account.can_reach(candidate):
            return candidate
    names = ", ".join(str(candidate) for candidate in candidates)
    raise LocalServerError(
        "local servers",
        f"run as user id {account.uid}, who can enter none of {names}: set TMPDIR to a folder open to all",
    )


def is_private_folder(path: Path, owner: int) -> bool:
    """Whether ``path`` is a real folder that ``owner`` holds and nobody else can write to."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and not status.st_mode & 0o022
