"""The documentation's pages and their fenced blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The root of the checkout."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_DIRECTIVE = re.compile(r"^<!-- (?P<name>[a-z]+): (?P<value>.+?) -->$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file it stands in, relative to the checkout.
        line: line number of its first line of content.
        language: the first word after the fence.
        marks: the words after that.
        directives: ``<!-- name: value -->`` comments right before it.
        text: its content.
    """

    page: str
    line: int
    language: str
    marks: frozenset[str]
    directives: dict[str, str]
    text: str

    @property
    def where(self) -> str:
        """``page:line``."""
        return f"{self.page}:{self.line}"


def all_pages() -> list[str]:
    """Every page, relative to the checkout."""
    top = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md"]
    return [str(path.relative_to(ROOT)) for path in [*top, *sorted((ROOT / "docs").rglob("*.md"))]]


def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """A page's blocks, in order."""
    return list(_blocks(page, read(page)))


def directives(page: str) -> dict[str, str]:
    """The directives in the page's first lines, which concern the whole page."""
    found = {}
    for line in read(page).splitlines()[:5]:
        if match := _DIRECTIVE.match(line):
            found[match["name"]] = match["value"]
    return found


def _blocks(page: str, text: str) -> Iterator[Block]:
    opened: re.Match[str] | None = None
    started, content, pending = 0, [], {}
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, started, content = fence, number + 1, []
            elif match := _DIRECTIVE.match(line):
                pending[match["name"]] = match["value"]
            elif line.strip():
                pending = {}
        elif fence and not fence["info"].strip() and len(fence["ticks"]) >= len(opened["ticks"]):
            language, *marks = opened["info"].split() or [""]
            yield Block(
                page=page,
                line=started,
                language=language,
                marks=frozenset(marks),
                directives=pending,
                text="".join(f"{kept}\n" for kept in content),
            )
            opened, pending = None, {}
        else:
            content.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"{page}:{started}: this block is never closed")


def prose(page: str) -> str:
    """The page without the content of its blocks; lines keep their numbers."""
    lines = read(page).splitlines()
    for block in blocks(page):
        first = block.line - 1
        for number in range(first, first + block.text.count("\n")):
            lines[number] = ""
    return "\n".join("" if _FENCE.match(line) else line for line in lines)
