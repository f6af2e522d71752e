"""Commands that only look: ``list``, ``show`` and ``watch``."""

from datetime import timedelta

import click

from sagakit.cli import draw
from sagakit.cli.failures import Command, ExitCode
from sagakit.cli.invocation import Invocation, pass_invocation
from sagakit.cli.parameters import as_json, filters, saga_id
from sagakit.cli.watching import follow
from sagakit.cli.wording import count
from sagakit.states import SagaState


@click.command("list", cls=Command)
@filters
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many."
)
@as_json
@pass_invocation
def list_sagas(
    invocation: Invocation,
    statuses: tuple[tuple[SagaState, ...], ...],
    name: str | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
    tags: tuple[tuple[str, str], ...],
    limit: int,
    as_json: bool,
) -> None:
    """List sagas, newest first.

    \b
    saga list --status compensation_failed
    saga list --saga checkout --newer-than 2h --tag region=eu --json
    """
    found = invocation.find(
        statuses=statuses, name=name, older_than=older_than, newer_than=newer_than, tags=tags, limit=limit + 1
    )
    shown = found[:limit]
    if as_json:
        invocation.say_json([summary.to_json() for summary in shown])
    elif shown:
        invocation.say(draw.table(shown, whole=not invocation.console.is_terminal), wide=True)
    else:
        invocation.note(
            "no saga fits" if statuses or name or older_than or newer_than or tags else "no saga yet"
        )
    if len(found) > limit:
        invocation.note(f"… and more: showing the newest {count(limit, 'saga')}; --limit shows more")


@click.command(cls=Command, short_help="Show one saga, and what was undone.")
@saga_id
@click.option("--timeline", is_flag=True, help="Draw it over time as well.")
@click.option(
    "--payloads", is_flag=True, help="Show input, arguments and results. They may hold personal data."
)
@click.option("--traceback", "tracebacks", is_flag=True, help="Show whole tracebacks.")
@as_json
@pass_invocation
def show(
    invocation: Invocation, saga_id: str, timeline: bool, payloads: bool, tracebacks: bool, as_json: bool
) -> None:
    """Show one saga: steps, attempts, times, errors, and what was undone.

    --json always has everything, payloads and tracebacks included.
    """
    record = invocation.ledger.get(saga_id).history()
    if as_json:
        invocation.say_json(record.to_json())
        return
    invocation.say(draw.tree(record, payloads=payloads, tracebacks=tracebacks))
    if timeline:
        invocation.say("")
        invocation.say(draw.timeline(record, titled=False))
    hint = _next(invocation, saga_id, record.state)
    if hint:
        invocation.note(hint)


def _next(invocation: Invocation, saga_id: str, state: SagaState) -> str | None:
    """What an operator would type now, if anything."""
    if state is SagaState.COMPENSATION_FAILED:
        replay = invocation.command("compensate", saga_id, "--failed-only", "--reason", "'…'")
        return f"once the cause is mended: {replay}"
    if state is SagaState.STUCK:
        return f"once the code fits again: {invocation.command('resume', saga_id)}"
    return None


@click.command(cls=Command)
@saga_id
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Stop watching after so long; the saga runs on."
)
@as_json
@pass_invocation
@click.pass_context
def watch(
    ctx: click.Context, invocation: Invocation, saga_id: str, timeout: float | None, as_json: bool
) -> None:
    """Watch one saga live until it ends. In a pipe: a line for each change; with --json, one object a line."""
    record = follow(invocation, invocation.ledger.get(saga_id), timeout=timeout, as_json=as_json)
    hint = _next(invocation, saga_id, record.state)
    if hint and not as_json:
        invocation.note(hint)
    ctx.exit(ExitCode.OK if record.state is SagaState.COMPLETED else ExitCode.FAILED)
