"""Every block of the documentation runs, or says that it does not."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from sagakit.cli import main
from tests.docs import pages
from tests.docs.pages import ROOT, Block

RUN = frozenset({"python", "console", "diff"})
"""Languages of blocks that run."""
READ = frozenset({"sh", "toml", "yaml", "json", "ini", "mermaid", "dockerfile", "sql"})
"""Languages of blocks that are only checked for their form: their commands start services, or wait for people."""
SHOWN = frozenset({"text"})

ALL = [block for page in pages.all_pages() for block in pages.blocks(page)]


def _running(page: str) -> bool:
    return any(block.language in RUN for block in pages.blocks(page))


@pytest.mark.parametrize("page", [page for page in pages.all_pages() if _running(page)])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, sqlite_ledger_url: str) -> None:
    """Python and console blocks run in order and show what the page shows."""
    folder = tmp_path / "page"
    (folder / "bin").mkdir(parents=True)
    for name in ("celery", "sagakit"):
        command = folder / "bin" / name
        command.write_text(f"#!{sys.executable}\nfrom tests.docs import command\n\ncommand.{name}()\n")
        command.chmod(0o755)
    environment = {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SAGAKIT_", "CELERY_", "SHOP_"))
        },
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SAGAKIT_DATABASE_URL": sqlite_ledger_url,
        "SHOP_DATABASE_URL": f"sqlite:///{folder / 'shop.db'}",
        "CELERY_BROKER_URL": "memory://",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "TZ": "UTC",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", page],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.where)
def test_a_block_says_what_it_is(block: Block) -> None:
    """A block runs, is checked for its form, or is marked as text; there is no fourth kind."""
    assert block.language in RUN | READ | SHOWN, (
        f"{block.where}: mark it as one of {sorted(RUN | READ | SHOWN)}"
    )


@pytest.mark.parametrize(
    "block", [block for block in ALL if block.language in READ], ids=lambda block: block.where
)
def test_a_block_that_does_not_run_is_well_formed(block: Block) -> None:
    """Commands exist with their options, data can be parsed."""
    check = {"sh": _check_commands, "toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}
    check.get(block.language, _check_nothing)(block.text)
    if block.language == "mermaid":
        assert re.match(r"(flowchart|sequenceDiagram|stateDiagram-v2)\b", block.text), block.where


def _check_nothing(_: str) -> None:
    """Other forms have no parser here."""


_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _check_commands(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[:1] == ["make"]:
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= _TARGETS, f"{line}: the Makefile has {sorted(_TARGETS)}"
        elif saga := _saga_command(words):
            _parse(saga, line)


def _saga_command(words: list[str]) -> list[str] | None:
    """What follows the door to sagakit's commands, if the line goes through one."""
    if words[:1] == ["sagakit"]:
        return words[3:] if words[1:2] in (["--app"], ["-A"]) else words[1:]
    if words[:1] == ["celery"] and "saga" in words:
        return words[words.index("saga") + 1 :]
    if words[:3] == ["python", "manage.py", "saga"]:
        return words[3:]
    return None


def _parse(words: list[str], line: str) -> None:
    """Let click read the command, without running it."""
    command: Any = main.console.commands.get(words[0])
    assert command is not None, f"{line}: there is no command {words[0]!r}"
    try:
        command.make_context(words[0], list(words[1:]))
    except click.UsageError as exc:
        pytest.fail(f"{line}: {exc.format_message()}")
