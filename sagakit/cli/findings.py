"""What the doctor found: each thing looked at, how bad it is, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sagakit.cli.signs import UNICODE, signs
from sagakit.cli.wording import count


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, in a word.
        message: how it is.
        remedy: what to do, if anything.
    """

    level: Level
    subject: str
    message: str
    remedy: str | None = None


def ok(subject: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(level=Level.OK, subject=subject, message=message)


def warning(subject: str, message: str, remedy: str) -> Finding:
    """Sagas move, but somebody should look."""
    return Finding(level=Level.WARNING, subject=subject, message=message, remedy=remedy)


def error(subject: str, message: str, remedy: str) -> Finding:
    """Sagas do not move."""
    return Finding(level=Level.ERROR, subject=subject, message=message, remedy=remedy)


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


@dataclass(frozen=True, slots=True)
class Report:
    """Findings as people read them."""

    findings: tuple[Finding, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = {Level.OK: "✓", Level.WARNING: "!", Level.ERROR: "✗"}
        arrow = "→"
        if signs(options) is not UNICODE:
            marks, arrow = {Level.OK: "+", Level.WARNING: "!", Level.ERROR: "x"}, "->"
        width = max((len(finding.subject) for finding in self.findings), default=0)
        for finding in self.findings:
            line = Text(marks[finding.level], style=_STYLES[finding.level])
            line.append(f" {finding.subject:<{width}}  {finding.message}", style="default not bold")
            yield line
            if finding.remedy:
                yield Text(f"{'':<{width + 4}}{arrow} {finding.remedy}")
        errors, warnings = (
            sum(finding.level is level for finding in self.findings) for level in (Level.ERROR, Level.WARNING)
        )
        yield Text(
            f"{count(errors, 'error')}, {count(warnings, 'warning')}", style="bold red" if errors else "dim"
        )


def report(findings: Sequence[Finding]) -> Report:
    """Findings as people read them."""
    return Report(tuple(findings))
