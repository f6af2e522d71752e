"""``python -m tests.docs.run_page PAGE``: runs a page's blocks in order, in the current folder.

Python blocks share one module; one with a directive ``<!-- file: name.py -->`` is written to that file and imported
from there. Commands of console blocks run in a shell, and their output is compared loosely. In a diff from one program
to another, the second one runs. Everything a saga does happens in the caller (``tests.docs.eager``) over a ledger in
SQLite.
"""

import contextlib
import importlib
import importlib.util
import io
import linecache
import os
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from tests.docs import loosely, prepare
from tests.docs.pages import Block, blocks, directives

_TIMEOUT = 60


class Broken(Exception):
    """A block does not do what the page says."""


class Page:
    """One page being run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = types.ModuleType("page")
        sys.modules["page"] = self.module
        self.printed: str | None = None
        self.count = 0

    def run(self) -> None:
        """Run all blocks."""
        if what := directives(self.name).get("prepared"):
            getattr(prepare, what)()
        for block in blocks(self.name):
            self._run(block)

    def _run(self, block: Block) -> None:
        if given := block.directives.get("given"):
            self.module.__dict__.update(getattr(prepare, given)())
        if block.language == "python":
            if self._lacks(block):
                return
            self.printed = self._python(block, block.text)
        elif block.language == "diff":
            self._diff(block)
        elif block.language == "console":
            self._console(block)
        elif block.language == "text" and "output" in block.marks:
            self._output(block)
        else:
            return
        self.count += 1

    @staticmethod
    def _lacks(block: Block) -> bool:
        needs = [mark.removeprefix("needs=") for mark in block.marks if mark.startswith("needs=")]
        compile(block.text, block.where, "exec")
        return any(importlib.util.find_spec(name) is None for name in needs)

    def _python(self, block: Block, source: str) -> str:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                if file := block.directives.get("file"):
                    self._import(file, source, block)
                else:
                    exec(self._compiled(block, source), self.module.__dict__)
        except Exception as exc:
            if "raises" in block.marks:
                printed.write(f"{type(exc).__qualname__}: {exc}\n")
                return printed.getvalue()
            raise Broken(f"{block.where}: {traceback.format_exc()}") from exc
        if "raises" in block.marks:
            raise Broken(f"{block.where}: this was to raise an error, and did not")
        return printed.getvalue()

    @staticmethod
    def _compiled(block: Block, source: str) -> types.CodeType:
        name = f"<{block.where}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        return compile(source, name, "exec")

    def _import(self, file: str, source: str, block: Block) -> None:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
        name = ".".join(path.with_suffix("").parts)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        if "unimported" not in block.marks:
            self.module.__dict__.update(
                {
                    key: value
                    for key, value in vars(importlib.import_module(name)).items()
                    if not key.startswith("__")
                }
            )

    def _diff(self, block: Block) -> None:
        lines = block.text.splitlines(keepends=True)
        for sign in "-+":
            version = "".join(line[1:] for line in lines if line[:1] in (" ", sign))
            compile(version, block.where, "exec")
        self.printed = self._python(block, version)

    def _output(self, block: Block) -> None:
        if self.printed is None:
            raise Broken(f"{block.where}: output of nothing")
        self._compare(block.where, block.text, self.printed)

    def _console(self, block: Block) -> None:
        commands: list[tuple[int, str, list[str]]] = []
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line.startswith("$ "):
                commands.append((number, line[2:], []))
            elif commands and commands[-1][1].endswith("\\") and not commands[-1][2]:
                commands[-1] = (commands[-1][0], f"{commands[-1][1][:-1]}{line.strip()}", [])
            elif commands:
                commands[-1][2].append(line)
            else:
                raise Broken(f"{block.where}: a console block begins with a command after '$ '")
        for number, command, shown in commands:
            where = f"{block.page}:{number}"
            done = subprocess.run(
                command,
                shell=True,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
            output = done.stdout + done.stderr
            if (done.returncode != 0) is not ("fails" in block.marks):
                raise Broken(f"{where}: {command!r} exited with {done.returncode}:\n{output}")
            self._compare(where, "\n".join(shown), output)

    @staticmethod
    def _compare(where: str, shown: str, actual: str) -> None:
        line = loosely.missing(shown, actual)
        if line is not None:
            raise Broken(
                f"{where}: the page shows\n{line}\nwhich is not in (or not in this order in)\n{actual}"
            )


def main(arguments: list[str]) -> Any:
    """Run one page."""
    importlib.import_module("tests.docs.eager")  # here, so that who imports this module keeps Celery as it is
    page = Page(arguments[0])
    sys.path.insert(0, os.getcwd())
    try:
        page.run()
    except Broken as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{page.count} blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
