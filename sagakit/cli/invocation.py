"""What one call of the command line carries: the application and its kit, the terminal, who acts."""

import getpass
import json
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import click
from celery import Celery
from rich.console import Console, RenderableType

from sagakit.cli.failures import ExitCode, Failure, debugging
from sagakit.cli.loading import broken_import, load_app
from sagakit.cli.wording import schema_fault
from sagakit.errors import ConfigurationError, SagaNotFound
from sagakit.states import SagaState

if TYPE_CHECKING:
    from datetime import timedelta

    from sagakit.app import SagaKit
    from sagakit.history import SagaSummary

_WIDE = 10_000


class Invocation:
    """One call.

    Args:
        app: the Celery application, if the door already has it.
        app_name: what ``--app`` said, otherwise.
        door: the words before a command, as they would be typed again: ``celery -A workers.app saga``.
        kit: the kit, if the caller already has it.
        color: ``False`` to print no colours in any case.
        way_out: what to do if the application, which nobody named, turns out to have no kit.
    """

    def __init__(
        self,
        *,
        app: Any = None,
        app_name: str | None = None,
        door: str = "sagakit",
        kit: "SagaKit | None" = None,
        color: bool | None = None,
        way_out: str | None = None,
    ) -> None:
        self._app = app
        self._app_name = app_name
        self._kit = kit
        self._way_out = way_out
        self.door = door
        self.color = color

    # --- the application ---

    @cached_property
    def app(self) -> Celery:
        """The Celery application."""
        if self._app is not None:
            return self._app
        if not self._app_name:
            raise Failure(
                "which application? Say --app, as in 'sagakit --app workers.app list', or set SAGAKIT_APP",
                ExitCode.USAGE,
            )
        return load_app(self._app_name)

    @cached_property
    def kit(self) -> "SagaKit":
        """The application's kit, with all its sagas and steps known."""
        if self._kit is not None:
            return self._kit
        app = self.app
        try:
            # Sagas and steps may live in modules that only a worker would import.
            app.loader.import_default_modules()
        except Exception as exc:
            if debugging(click.get_current_context(silent=True)):
                raise
            raise broken_import(self._app_name or app.main or "the application", exc) from exc
        from sagakit.app import SagaKit

        try:
            return SagaKit.of(app)
        except ConfigurationError as exc:
            if self._way_out is None:
                raise
            raise ConfigurationError(f"{exc}; {self._way_out}") from exc

    @cached_property
    def ledger(self) -> "SagaKit":
        """The kit, once its database is known to have the tables this code needs."""
        status = self.kit.schema_status()
        if not status.usable:
            fault, remedy = schema_fault(status, self.command("migrate"))
            raise ConfigurationError(f"{fault}; {remedy}")
        return self.kit

    def command(self, *words: str) -> str:
        """A command as it can be typed."""
        return " ".join((self.door, *words))

    @property
    def worker(self) -> str:
        """The command that starts a worker."""
        words = self.door.split()
        named = {word: following for word, following in pairwise(words) if word in ("-A", "--app")}
        name = next(iter(named.values()), None) or self._app_name or "APP"
        return f"celery -A {name} worker"

    def saga_name(self, name: str | None) -> str | None:
        """The full name for a short one. A name this code does not define stays: the ledger may still know it."""
        if name is None:
            return None
        try:
            return str(self.kit.saga_named(name).name)
        except SagaNotFound:
            return name

    def find(
        self,
        *,
        statuses: Sequence[tuple[SagaState, ...]],
        name: str | None,
        older_than: "timedelta | None",
        newer_than: "timedelta | None",
        tags: Sequence[tuple[str, str]],
        limit: int,
    ) -> "list[SagaSummary]":
        """The sagas that the filters choose, newest first."""
        full_name = self.saga_name(name)
        by_id = {
            summary.id: summary
            for reading in readings(tags)
            for summary in self.ledger.find(
                states=[state for group in statuses for state in group] or None,
                name=full_name,
                older_than=older_than,
                newer_than=newer_than,
                tags=reading or None,
                limit=limit,
            )
        }
        newest = sorted(by_id.values(), key=lambda summary: (summary.created_at, summary.id), reverse=True)
        found = newest[:limit]
        if not found and name is not None:
            self.kit.saga_named(name)  # a name that nobody knows is an error, not an empty list
        return found

    # --- the terminal ---

    @cached_property
    def console(self) -> Console:
        """Standard output. Colours only on a terminal; a pipe gets lines as long as they are."""
        console = Console(
            file=sys.stdout, no_color=self.color is False or None, highlight=False, markup=False
        )
        if not console.is_terminal:
            console = Console(
                file=sys.stdout,
                color_system=None,
                highlight=False,
                markup=False,
                width=_columns(),
                emoji=False,
            )
        return console

    def say(self, renderable: RenderableType, *, wide: bool = False) -> None:
        """Print for people.

        Args:
            renderable: what to print.
            wide: where the output is no terminal, never break a line.
        """
        width = _WIDE if wide and not self.console.is_terminal else None
        self.console.print(renderable, width=width, soft_wrap=wide)

    def say_json(self, value: Any, *, indent: int | None = 2) -> None:
        """Print for programs."""
        text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
        try:
            click.echo(text)
        except UnicodeEncodeError:
            click.echo(json.dumps(value, indent=indent, default=str))

    def note(self, text: str) -> None:
        """Print a remark that is not the output: to stderr."""
        click.echo(text, err=True)

    def error(self, message: str | None = None, **style: Any) -> None:
        """What Celery's patched "no such option" expects of the object it finds; our groups never let it print."""
        self.note(message or "")


pass_invocation = click.make_pass_decorator(Invocation)


def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else 100


def current_user(actor: str | None) -> str:
    """Who acts: as given, or the user of this process."""
    if actor:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's bare uid has no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def readings(tags: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """What tags written as text may mean: ``customer=7`` is found whether the saga bears ``7`` or ``"7"``."""
    alternatives = [[(key, value) for value in _values(text)] for key, text in tags]
    return [dict(chosen) for chosen in product(*alternatives)]


def _values(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    return [text] if isinstance(value, str | list | dict) else [text, value]
