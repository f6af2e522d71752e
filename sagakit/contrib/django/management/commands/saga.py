"""``manage.py saga …``: hands its arguments to the same commands as ``celery saga …``."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import click
from celery import current_app
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from sagakit.cli.failures import Group
from sagakit.cli.invocation import Invocation
from sagakit.cli.main import saga

# Django's own options; those with a value are followed by it. Only before the first word of ours are they Django's,
# except for the two that choose the settings, which manage.py reads wherever they stand.
_ANYWHERE = ("--settings", "--pythonpath")
_VALUED = (*_ANYWHERE, "-v", "--verbosity")
_FLAGS = ("--traceback", "--no-color", "--force-color", "--skip-checks")


class Command(BaseCommand):
    """See, start and repair durable sagas."""

    help = "See, start and repair durable sagas; 'manage.py saga --help' lists the commands."
    requires_system_checks: Sequence[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """A parser that takes Django's options and hands on all others, which argparse must not judge."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parse = parser.parse_args

        def parse_args(args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Any:
            django, ours = split(sys.argv[2:] if args is None else args)
            return parse([*django, "--", *ours], namespace)

        parser.parse_args = parse_args
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take whatever comes."""
        parser.add_argument("arguments", nargs="*")

    def handle(self, *_: Any, arguments: Sequence[str], **options: Any) -> None:
        """Run the command.

        Raises:
            CommandError: it failed; the exit code is the documented one.
        """
        named = getattr(settings, "SAGAKIT_APP", None) or current_app._get_current_object()
        app, app_name = (None, named) if isinstance(named, str) else (named, None)
        invocation = Invocation(
            app=app,
            app_name=app_name,
            door="python manage.py saga",
            color=False if options.get("no_color") else None,
            way_out="if that is not the project's app, name it in settings.SAGAKIT_APP",
        )
        out: Any = self.stdout
        out.ending = ""  # what comes through is whole text, not lines that still need their end
        with redirect_stdout(out):
            code = run(saga, arguments, invocation)
        if code:
            sys.exit(code)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part ``manage.py``'s own options from the arguments of the command."""
    django: list[str] = []
    ours: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in _ANYWHERE or (not ours and name in (*_VALUED, *_FLAGS)):
            django.append(word)
            if name in _VALUED and not equals:
                django.extend([following for following in [next(rest, None)] if following is not None])
        else:
            ours.append(word)
    return django, ours


def run(group: Group, arguments: Sequence[str], invocation: Invocation) -> int:
    """Run a command of the group; its exit code.

    Raises:
        CommandError: it failed.
    """
    try:
        code = group.main(
            args=list(arguments), prog_name=invocation.door, standalone_mode=False, obj=invocation
        )
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message())
        return exc.exit_code
    except click.ClickException as exc:
        raise CommandError(exc.format_message(), returncode=exc.exit_code) from exc
    except click.Abort as exc:
        raise CommandError("aborted", returncode=1) from exc
    return code if isinstance(code, int) else 0
