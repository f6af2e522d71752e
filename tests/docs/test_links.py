"""Links lead somewhere: files, headings, tests."""

import re
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT

_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_PATH = re.compile(r"`(?P<path>(?:sagakit|workers|tests|docs|deploy)/[\w./-]*\w/?)(?:::(?P<test>\w+))?`")
_ELSEWHERE = ("http://", "https://", "mailto:")


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain.replace("`", "")).replace(" ", "-")
        number = 1
        while anchor in found:
            anchor = f"{anchor}-{number}"
            number += 1
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", pages.all_pages())
def test_links_inside_the_project_lead_somewhere(page: str) -> None:
    """Every relative link names a file that is there, and a heading in it."""
    broken = []
    for match in _LINK.finditer(pages.prose(page)):
        target = match["target"]
        if target.startswith(_ELSEWHERE):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        fits = (
            not anchor
            or file.suffix != ".md"
            or (file.is_file() and anchor in _anchors(file.read_text("utf-8")))
        )
        if not file.exists() or not fits:
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", pages.all_pages())
def test_paths_named_in_a_page_are_there(page: str) -> None:
    """A file, folder or test that a page names in code style exists."""
    broken = []
    for match in _PATH.finditer(pages.prose(page)):
        path = ROOT / match["path"]
        names = match["test"] is None or (
            path.is_file() and f"def {match['test']}(" in path.read_text("utf-8")
        )
        if not path.exists() or not names:
            broken.append(match[0])
    assert not broken


def test_every_page_is_linked_from_somewhere() -> None:
    """No page is an island."""
    linked: set[Path] = set()
    for page in pages.all_pages():
        for match in _LINK.finditer(pages.prose(page)):
            target = match["target"].partition("#")[0]
            if target and not target.startswith(_ELSEWHERE):
                linked.add(((ROOT / page).parent / target).resolve())
    islands = [
        page for page in pages.all_pages() if (ROOT / page).resolve() not in linked and page != "README.md"
    ]
    assert not islands
