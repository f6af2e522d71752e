"""Failures as one line on stderr and an exit code; never a traceback, unless it is asked for."""

import os
from enum import IntEnum
from typing import IO, Any

import click
from click.exceptions import Exit
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sagakit.cli.wording import first_line, printable
from sagakit.errors import (
    ConfigurationError,
    InvalidInput,
    NotDecodable,
    SagakitError,
    SagaNotFound,
    StepNotFound,
)


class ExitCode(IntEnum):
    """What the process exits with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNHEALTHY = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130


EXIT_CODES = """\b
Exit codes:
  0    done; a saga that was waited for completed
  1    the action failed or was refused, or the saga did not complete
  2    the command line or the input is wrong
  3    no such saga, saga name or step
  4    doctor found errors
  5    the application, its database or its broker cannot be used
  130  interrupted
"""

_CODES: tuple[tuple[type[SagakitError], ExitCode], ...] = (
    (SagaNotFound, ExitCode.NOT_FOUND),
    (StepNotFound, ExitCode.NOT_FOUND),
    (ConfigurationError, ExitCode.UNAVAILABLE),
    (InvalidInput, ExitCode.USAGE),
    (NotDecodable, ExitCode.USAGE),
)


class Failure(click.ClickException):
    """A command did not do what it was asked for; one line says why and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(" ".join(printable(message).split()))
        # Click reads it off the instance; the class says 1 for all.
        self.exit_code = int(code)  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to stderr."""
        click.echo(f"Error: {self.message}", file=file, err=file is None)


def debugging(ctx: click.Context | None) -> bool:
    """Whether tracebacks are wanted: ``--debug``, or ``SAGAKIT_DEBUG`` set to anything but ``0``."""
    if os.environ.get("SAGAKIT_DEBUG", "0") not in ("", "0"):
        return True
    while ctx is not None:
        if ctx.params.get("debug"):
            return True
        ctx = ctx.parent
    return False


def explain(exc: Exception) -> Failure:
    """The failure a command reports for an exception."""
    if isinstance(exc, SagakitError):
        code = next((code for kind, code in _CODES if isinstance(exc, kind)), ExitCode.FAILED)
        return Failure(str(exc) or type(exc).__name__, code)
    if isinstance(exc, SQLAlchemyError):
        return _database(exc)
    if isinstance(exc, BrokerError):
        return Failure(
            f"the broker cannot be reached: {first_line(str(exc))}; start it, or check broker_url",
            ExitCode.UNAVAILABLE,
        )
    return Failure(
        f"{type(exc).__name__}: {first_line(str(exc)) or 'no message'} (unexpected; --debug shows the traceback)"
    )


def _database(exc: SQLAlchemyError) -> Failure:
    # Below SQLAlchemy's own text, which repeats the statement and its parameters, is what the driver said.
    reason = first_line(str(exc.orig if isinstance(exc, DBAPIError) else exc)).removesuffix(".")
    return Failure(
        f"the database cannot be used: {reason}; check that it is up and that sagakit_database_url "
        "(or SAGAKIT_DATABASE_URL) is right",
        ExitCode.UNAVAILABLE,
    )


def usage(exc: click.UsageError, ctx: click.Context) -> click.ClickException:
    """A wrong command line in one line, with the command that explains it."""
    ctx = exc.ctx or ctx
    message = exc.format_message()
    option = getattr(exc, "option_name", None)
    if option in ("-A", "--app"):
        root = ctx.find_root().info_name or "sagakit"
        rest = ctx.command_path.removeprefix(root).strip()
        return Failure(
            f"{option} goes before the command: {root} {option} APP {rest}".rstrip() + " …", ExitCode.USAGE
        )
    see = " See" if message.endswith("?") else "; see"
    return Failure(f"{message.rstrip('.')}{see} '{ctx.command_path} --help'", ExitCode.USAGE)


class Command(click.Command):
    """A command whose failures are one line."""


class Group(click.Group):
    """A group whose commands fail in one line with a documented exit code.

    Celery's own group does not know of these failures: they become Click's before they leave this one.
    """

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which people need them."""
        return list(self.commands)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the group's own options."""
        try:
            return super().make_context(info_name, args, parent=parent, **extra)
        except click.UsageError as exc:
            if _is_help(exc):
                raise
            raise usage(exc, exc.ctx or click.Context(self, info_name=info_name, parent=parent)) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and put its failure into words."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            if _is_help(exc):
                raise
            raise usage(exc, ctx) from exc
        except (click.ClickException, Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(err=True)
            raise Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever read our output has seen enough; Click ends quietly
        except Exception as exc:
            if debugging(ctx):
                raise
            raise explain(exc) from exc


def _is_help(exc: click.UsageError) -> bool:
    """A group called without a command shows its help; Click raises it as a usage error."""
    return type(exc).__name__ == "NoArgsIsHelpError"
