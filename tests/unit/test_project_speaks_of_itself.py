"""What is in the repository speaks of the project: not of one machine, nor of how it was written."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Written so that this file does not contain what it looks for.
PATHS = re.compile(r"(?<![\w.}$-])/(?:wo[r]k/|ro[o]t/(?!project/)|home/\w+/|Users/\w+/)")
"""Of root's home, ``project`` is an example that stands for any."""
MAKING = re.compile(
    r"\b(?:A[I]|L[L]M|Clau[d]e|Cha[t]GPT|Copi[l]ot|Anthro[p]ic|Open[A]I|langua[g]e model|sub-?ag[e]nts?|"
    r"(?:this|another|earlier|last|next|previous) ses[s]ion of (?:the )?pro[j]ect|prom[p]t engineering)\b"
)
TEXT = {
    "",
    ".py",
    ".md",
    ".toml",
    ".yml",
    ".yaml",
    ".sql",
    ".sh",
    ".mako",
    ".lock",
    ".cfg",
    ".ini",
    ".json",
    ".txt",
}


def _tracked() -> list[Path]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix in TEXT and path.is_file()]


def _found(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in _tracked():
        text = path.read_text("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    return found


def test_no_path_of_one_machine() -> None:
    """A path that exists on one machine only is of no use to anybody else."""
    assert _found(PATHS) == []


def test_no_word_about_how_it_is_made() -> None:
    """The repository tells what the project is."""
    assert _found(MAKING) == []


@pytest.mark.parametrize(
    "line", ["see /wo" + "rk/main", "cd /ro" + "ot/x", "in /home/" + "ann/code", 'path = "/Users/' + 'ann/x"']
)
def test_paths_are_recognised(line: str) -> None:
    """The pattern finds what it is there to find."""
    assert PATHS.search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/work/x", "./work/x", "docs/root/x", "${HOME}/work/x", "a/home/b/c"]
)
def test_other_paths_are_not(line: str) -> None:
    """Addresses and relative paths are nobody's machine."""
    assert not PATHS.search(line)
