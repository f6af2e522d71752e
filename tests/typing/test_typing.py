"""The public API as type checkers see it: mypy --strict and pyright over what users write.

In ``cases/``, a line that both must complain about ends in ``# E`` (``# E-1``: the line before it, which is the
decorator's); they may complain about nothing else. ``assert_type`` says what types are.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = sorted((HERE / "cases").glob("*.py"))

Complaints = Mapping[str, Mapping[int, list[str]]]


@pytest.fixture(scope="module")
def mypy() -> Complaints:
    """What mypy says, by file and line."""
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", HERE / "mypy.ini", *CASES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    complaints: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in found.stdout.splitlines():
        if match := re.fullmatch(r"(.*?):(\d+): error: (.*)", line):
            complaints[Path(match[1]).name][int(match[2])].append(match[3])
    return complaints


@pytest.fixture(scope="module")
def pyright() -> Complaints:
    """What pyright says, by file and line."""
    program = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    assert program, "pyright is not installed: make setup"
    found = subprocess.run(
        [program, "--project", HERE, "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    complaints: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in json.loads(found.stdout)["generalDiagnostics"]:
        if entry["severity"] == "error":
            line = entry["range"]["start"]["line"] + 1
            complaints[Path(entry["file"]).name][line].append(entry["message"])
    return complaints


def expected(case: Path) -> set[int]:
    """The lines that are marked."""
    marked = set()
    for number, line in enumerate(case.read_text().splitlines(), start=1):
        if match := re.search(r"# E(-\d+)?$", line):
            marked.add(number + int(match[1] or 0))
    return marked


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_types(case: Path, checker: str, request: pytest.FixtureRequest) -> None:
    """The checker complains about the marked lines, and about no other."""
    complaints = request.getfixturevalue(checker)[case.name]
    told = "\n".join(
        f"{case.name}:{line}: {text}" for line in sorted(complaints) for text in complaints[line]
    )
    assert set(complaints) == expected(case), f"{checker} says:\n{told}"
