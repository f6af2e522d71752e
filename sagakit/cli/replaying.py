"""``compensate``: undo what is not undone yet, of one saga or of a set of them."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from sagakit.cli import draw
from sagakit.cli.failures import Command, ExitCode, Failure
from sagakit.cli.invocation import Invocation, current_user, pass_invocation
from sagakit.cli.parameters import SagaIdType, actor, as_json, filters
from sagakit.cli.signs import SAGA_STYLES
from sagakit.cli.wording import count, printable
from sagakit.errors import NotAllowed, SagakitError
from sagakit.states import SagaState

if TYPE_CHECKING:
    from sagakit.client.operating import ReplayPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What to undo, and what the audit will say of it."""

    failed_only: bool
    step: str | None
    completed: bool
    reason: str | None
    actor: str


@click.command(cls=Command, short_help="Undo what is not yet undone, of one saga or of many.")
@click.argument("saga_id", metavar="[ID]", type=SagaIdType(), required=False)
@filters
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many."
)
@click.option("--failed-only", is_flag=True, help="Only compensations that failed for good.")
@click.option("--step", help="Only this step.")
@click.option("--completed", is_flag=True, help="Undo sagas that completed, too.")
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@click.option("--reason", help="Why; kept in the audit. Required, unless it is a --dry-run.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before undoing a set.")
@actor
@as_json
@pass_invocation
@click.pass_context
def compensate(
    ctx: click.Context,
    invocation: Invocation,
    saga_id: str | None,
    statuses: tuple[tuple[SagaState, ...], ...],
    name: str | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
    tags: tuple[tuple[str, str], ...],
    limit: int,
    failed_only: bool,
    step: str | None,
    completed: bool,
    dry_run: bool,
    reason: str | None,
    yes: bool,
    actor: str | None,
    as_json: bool,
) -> None:
    """Undo whatever is not yet successfully undone: of the saga ID, or of all that the filters choose.

    \b
    saga compensate order-42 --dry-run
    saga compensate order-42 --failed-only --reason "the payment provider is back"
    saga compensate --saga checkout --failed-only --reason "the payment provider is back"

    Without --status a set is those in compensation_failed, with --completed also those completed.
    """
    filtered = bool(statuses or name or older_than or newer_than or tags)
    if saga_id and filtered:
        raise Failure("give either an ID or filters, not both", ExitCode.USAGE)
    if not saga_id and not filtered:
        raise Failure(
            f"which sagas? Give an ID, or a filter such as --saga NAME; '{ctx.command_path} --help' shows them",
            ExitCode.USAGE,
        )
    if not reason and not dry_run:
        raise Failure('say why, for the audit: --reason "…" (or look first with --dry-run)', ExitCode.USAGE)
    request = _Request(
        failed_only=failed_only, step=step, completed=completed, reason=reason, actor=current_user(actor)
    )
    if saga_id:
        _one(invocation, saga_id, request, dry_run=dry_run, as_json=as_json)
        return
    chosen = statuses or ((SagaState.COMPENSATION_FAILED, *((SagaState.COMPLETED,) if completed else ())),)
    found = invocation.find(
        statuses=chosen, name=name, older_than=older_than, newer_than=newer_than, tags=tags, limit=limit + 1
    )
    ids = [summary.id for summary in found[:limit]]
    if len(found) > limit:
        invocation.note(
            f"more than {count(limit, 'saga')} fit: taking the newest; run it again, or raise --limit"
        )
    refused = _many(invocation, ids, request, dry_run=dry_run, yes=yes, as_json=as_json)
    ctx.exit(ExitCode.FAILED if refused else ExitCode.OK)


def _replay(invocation: Invocation, saga_id: str, request: _Request, *, dry_run: bool) -> "ReplayPlan":
    return invocation.ledger.get(saga_id).compensate(
        failed_only=request.failed_only,
        step=request.step,
        completed=request.completed,
        dry_run=dry_run,
        reason=request.reason or "dry run",
        actor=request.actor,
    )


def _one(invocation: Invocation, saga_id: str, request: _Request, *, dry_run: bool, as_json: bool) -> None:
    plan = _replay(invocation, saga_id, request, dry_run=dry_run)
    if as_json:
        invocation.say_json(plan_json(plan, dry_run=dry_run))
        return
    _show(invocation, [plan])
    if dry_run:
        invocation.note("dry run: nothing was changed")
    elif plan.undo:
        invocation.note(
            f"undoing {count(len(plan.undo), 'step')}; follow it with: {invocation.command('watch', saga_id)}"
        )


def _many(
    invocation: Invocation, ids: Sequence[str], request: _Request, *, dry_run: bool, yes: bool, as_json: bool
) -> dict[str, str]:
    """Plan for all, ask, then act on each; the ids that were refused, and why."""
    plans, refused = _each(invocation, ids, request, dry_run=True)
    wanted = [plan for plan in plans if plan.undo]
    if not as_json:
        _show(invocation, wanted)
        _show_refused(invocation, refused)
        steps = sum(len(plan.undo) for plan in wanted)
        idle = len(plans) - len(wanted)
        rest = f"; {count(idle, 'other')} with nothing to undo" if idle else ""
        invocation.note(f"{count(len(wanted), 'saga')}, {count(steps, 'step')} to undo{rest}")
    if dry_run or not wanted:
        if as_json:
            invocation.say_json([*(plan_json(plan, dry_run=True) for plan in plans), *_refusals(refused)])
        return refused
    if not yes:
        _confirm(len(wanted), as_json)
    done, failed = _each(invocation, [plan.saga_id for plan in wanted], request, dry_run=False)
    refused |= failed
    if as_json:
        invocation.say_json([*(plan_json(plan, dry_run=False) for plan in done), *_refusals(refused)])
    else:
        _show_refused(invocation, failed)
        tail = f"; {count(len(refused), 'saga')} refused" if refused else ""
        follow = invocation.command("list", "--status", "compensating,compensation_failed")
        invocation.note(f"undoing {count(len(done), 'saga')}{tail}; follow them with: {follow}")
    return refused


def _each(
    invocation: Invocation, ids: Sequence[str], request: _Request, *, dry_run: bool
) -> "tuple[list[ReplayPlan], dict[str, str]]":
    plans: list[ReplayPlan] = []
    refused: dict[str, str] = {}
    for saga_id in ids:
        try:
            plans.append(_replay(invocation, saga_id, request, dry_run=dry_run))
        except SagakitError as exc:  # one saga's refusal must not stop the others
            if not isinstance(exc, NotAllowed) and not plans and not refused:
                raise  # the first already fails for another reason: so will all
            refused[saga_id] = str(exc)
    return plans, refused


def _confirm(number: int, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise Failure(
            f"undoing {count(number, 'saga')} needs a yes: add --yes (or look first with --dry-run)",
            ExitCode.USAGE,
        )
    if not click.confirm(f"Undo {count(number, 'saga')}?", err=True):
        raise Failure("nothing was changed")


def _show(invocation: Invocation, plans: "Sequence[ReplayPlan]") -> None:
    for plan in plans:
        head = Text(printable(plan.saga_id), style="bold")
        head.append(f"  {plan.state.value}", style=f"not bold {SAGA_STYLES[plan.state]}")
        invocation.say(head, wide=True)
        invocation.say(draw.plan(plan), wide=True)


def _show_refused(invocation: Invocation, refused: dict[str, str]) -> None:
    for saga_id, why in refused.items():
        invocation.note(f"{printable(saga_id)} refused: {printable(why)}")


def plan_json(plan: "ReplayPlan", *, dry_run: bool) -> dict[str, Any]:
    """A plan for programs."""
    return {
        "id": plan.saga_id,
        "state": plan.state.value,
        "dry_run": dry_run,
        "undo": [asdict(entry) for entry in plan.undo],
        "left": [asdict(entry) for entry in plan.left],
    }


def _refusals(refused: dict[str, str]) -> list[dict[str, Any]]:
    return [{"id": saga_id, "refused": why} for saga_id, why in refused.items()]
