"""The checks of the documentation find what is wrong."""

from pathlib import Path

import pytest

from tests.docs import loosely
from tests.docs.pages import blocks, prose
from tests.docs.run_page import Broken, Page


def page(folder: Path, text: str) -> str:
    """A page of its own; ``~`` stands for a backtick."""
    path = folder / "page.md"
    path.write_text(text.replace("~", "`"), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~~~python\nprint(1)\n~~~\n~~~text output\n2\n~~~\n", "the page shows\n2"),
        ("~~~python\nassert False\n~~~\n", "AssertionError"),
        ("~~~python\nx = 1\n~~~\n~~~python\nassert x == 2\n~~~\n", "AssertionError"),
        ("~~~python raises\nx = 1\n~~~\n", "was to raise an error"),
        ("~~~console\n$ false\n~~~\n", "exited with 1"),
        ("~~~console fails\n$ true\n~~~\n", "exited with 0"),
        ("~~~console\n$ echo a\nb\n~~~\n", "the page shows\nb"),
        ("~~~console\necho a\n~~~\n", "begins with a command"),
        ("~~~diff\n-a = 1\n+a = 1 / 0\n~~~\n", "ZeroDivisionError"),
        ("~~~text output\n1\n~~~\n", "output of nothing"),
    ],
)
def test_a_wrong_page_is_found_out(text: str, message: str, tmp_path: Path) -> None:
    """What a page claims and does not do is named."""
    with pytest.raises(Broken) as found:
        Page(page(tmp_path, text)).run()
    assert message in str(found.value)


def test_a_right_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are shared, files are importable, times and ``…`` do not matter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "~~~python\nx = 2\n~~~\n"
        "<!-- file: doubling_of_the_page.py -->\n~~~python\ndef double(y):\n    return 2 * y\n~~~\n"
        "~~~python\nprint('took 12ms', double(x), 'and more')\n~~~\n~~~text output\ntook 3.1s 4 …\n~~~\n"
        "~~~console\n$ echo a; echo b; \\\n    echo c\n…\nc\n~~~\n"
        "~~~diff\n-nothing = here\n+x = 3\n~~~\n"
    )
    running = Page(page(tmp_path, text))
    running.run()
    assert (running.count, running.module.x) == (6, 3)


def test_blocks_and_prose_are_told_apart(tmp_path: Path) -> None:
    """Marks, directives and line numbers; a fence inside a longer fence is content."""
    name = page(tmp_path, "one\n<!-- given: x -->\n~~~python raises\na\n~~~\n\n~~~~text\n~~~\n~~~~\ntwo\n")
    first, second = blocks(name)
    assert (first.language, first.marks, first.directives, first.line) == (
        "python",
        {"raises"},
        {"given": "x"},
        4,
    )
    assert second.text == "```\n"
    assert "a" not in prose(name).split()


@pytest.mark.parametrize(
    ("shown", "real", "missing"),
    [
        ("a\nb", "a\nx\nb", None),
        ("b\na", "a\nb", "a"),
        ("done in 5ms", "done  in 12.3s", None),
        ("at 2026-11-20 14:22:29 +00:00", "at 2030-01-01 00:00:00 +01:00", None),
        ("a … d", "a b c d", None),
        ("a … d", "a b c", "a … d"),
    ],
)
def test_output_is_compared_loosely(shown: str, real: str, missing: str | None) -> None:
    """Order and words matter, spaces and times do not."""
    assert loosely.missing(shown, real) == missing
