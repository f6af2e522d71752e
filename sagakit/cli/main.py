"""The doors to the commands: ``celery -A app saga …``, ``sagakit --app app …`` and ``manage.py saga …``."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from sagakit.cli.acting import cancel, resume, start
from sagakit.cli.failures import EXIT_CODES, ExitCode, Group
from sagakit.cli.invocation import Invocation
from sagakit.cli.reading import list_sagas, show, watch
from sagakit.cli.replaying import compensate
from sagakit.cli.running import demo, doctor, migrate

COMMANDS = (migrate, start, list_sagas, show, watch, cancel, resume, compensate, doctor)

# Read off the context where a failure is put into words.
_debug = click.option("--debug", is_flag=True, help="Show tracebacks. SAGAKIT_DEBUG=1 does, too.")
_SETTINGS = {"help_option_names": ["-h", "--help"]}


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    try:
        click.echo(f"sagakit {version('sagakit')}")
    except PackageNotFoundError:
        click.echo("sagakit, run from a checkout that is not installed")
    ctx.exit()


@click.group(cls=Group, epilog=EXIT_CODES, context_settings=_SETTINGS)
@_debug
@click.pass_context
def saga(ctx: click.Context, debug: bool) -> None:
    """See, start and repair durable sagas."""
    if isinstance(ctx.obj, Invocation):  # manage.py, or a test, has prepared everything
        return
    # Celery's own context: the application is loaded, and --no-color and -A are in it.
    root = ctx.find_root()
    name = root.params.get("app")
    words = [
        root.info_name or "celery",
        *(["-A", name] if isinstance(name, str) else []),
        ctx.info_name or "saga",
    ]
    ctx.obj = Invocation(
        app=ctx.obj.app,
        door=" ".join(words),
        color=False if getattr(ctx.obj, "no_color", False) else None,
        way_out=None
        if name
        else f"name the app, as in '{root.info_name} -A workers.app {ctx.info_name} list'",
    )


@click.group(cls=Group, epilog=EXIT_CODES, context_settings=_SETTINGS)
@click.option(
    "-A",
    "--app",
    "app_name",
    envvar="SAGAKIT_APP",
    metavar="APP",
    help="The Celery application, as for 'celery -A': workers.app, or workers.app:celery.  [env: SAGAKIT_APP]",
)
@click.option("--no-color", is_flag=True, help="No colours. NO_COLOR=1 does, too.")
@_debug
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def console(ctx: click.Context, app_name: str | None, no_color: bool, debug: bool) -> None:
    """See, start and repair durable sagas on Celery."""
    if ctx.obj is None:
        given = ctx.get_parameter_source("app_name") is click.core.ParameterSource.COMMANDLINE
        door = f"sagakit --app {app_name}" if given else "sagakit"
        ctx.obj = Invocation(app_name=app_name, door=door, color=False if no_color else None)


for _command in COMMANDS:
    saga.add_command(_command)
    console.add_command(_command)
console.add_command(demo)


def main(arguments: list[str] | None = None) -> Any:
    """The console script ``sagakit``."""
    return console.main(args=arguments, prog_name="sagakit")


__all__ = ["ExitCode", "console", "main", "saga"]

if __name__ == "__main__":
    sys.exit(main())
