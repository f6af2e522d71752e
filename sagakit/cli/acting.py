"""Commands that act on one saga: ``start``, ``cancel`` and ``resume``."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from sagakit.cli.failures import Command, ExitCode, Failure
from sagakit.cli.invocation import Invocation, current_user, pass_invocation
from sagakit.cli.parameters import DurationType, JsonInput, SagaIdType, TagType, actor, as_json, saga_id
from sagakit.cli.watching import follow
from sagakit.cli.wording import first_line, printable, short_names
from sagakit.codec import explain
from sagakit.errors import NotDecodable
from sagakit.states import SagaState

if TYPE_CHECKING:
    from sagakit.client.startable import StartableSaga
    from sagakit.client.starting import IfExists


@click.command(cls=Command)
@click.argument("name")
@click.option(
    "--input", "text", type=JsonInput(), help="The saga's input as JSON; @file reads a file, - reads stdin."
)
@click.option(
    "--id", "given_id", type=SagaIdType(), help="The saga's id, for example order-42.  [default: a new UUID]"
)
@click.option("--tag", "tags", type=TagType(), multiple=True, help="Tags to find it by; repeat for several.")
@click.option("--priority", type=int, help="Message priority.")
@click.option(
    "--deadline", type=DurationType(), help="It must complete within this time, or is undone, e.g. 48h."
)
@click.option(
    "--if-exists",
    type=click.Choice(["return", "raise", "restart_if_compensated"]),
    default="return",
    show_default=True,
    help="What to do if a saga of this id exists.",
)
@click.option("--wait", is_flag=True, help="Watch it until it ends; exit with 1 if it does not complete.")
@click.option("--timeout", type=float, metavar="SECONDS", help="With --wait: wait so long at most.")
@as_json
@pass_invocation
@click.pass_context
def start(
    ctx: click.Context,
    invocation: Invocation,
    name: str,
    text: str | None,
    given_id: str | None,
    tags: tuple[tuple[str, str], ...],
    priority: int | None,
    deadline: timedelta | None,
    if_exists: "IfExists",
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Start the saga NAME.

    \b
    saga start checkout --input '{"id": 42, "total": 99}' --id order-42 --wait
    saga start checkout --input @order.json
    jq -c .order event.json | saga start checkout --input -
    """
    definition = invocation.ledger.saga_named(name)
    handle = definition.start(
        _input(definition, text, invocation),
        saga_id=given_id,
        tags=dict(tags) or None,
        priority=priority,
        deadline=deadline,
        if_exists=if_exists,
    )
    if not wait:
        state = handle.status()
        if as_json:
            invocation.say_json({"id": handle.id, "saga": definition.name, "state": state.value})
        else:
            invocation.say(handle.id, wide=True)
            invocation.note(f"{state.value}; follow it with: {invocation.command('watch', handle.id)}")
        return
    record = follow(invocation, handle, timeout=timeout, as_json=as_json)
    ctx.exit(ExitCode.OK if record.state is SagaState.COMPLETED else ExitCode.FAILED)


def _input(definition: "StartableSaga[Any, Any]", text: str | None, invocation: Invocation) -> Any:
    """The input as the saga's body wants it, from JSON text."""
    (label,) = short_names([definition.name]).values()
    if not definition.takes_input:
        if text is not None and text.strip() != "null":
            raise Failure(f"{label} takes no input: leave --input out", ExitCode.USAGE)
        return None
    if text is None:
        raise Failure(
            f"{label} takes an input: give it as --input JSON, --input @file or --input - ({definition.where})",
            ExitCode.USAGE,
        )
    try:
        return definition.input_codec.loads(text)
    except NotDecodable as exc:
        cause = exc.__cause__
        reason = explain(cause) if isinstance(cause, ValidationError) else first_line(str(exc))
        raise Failure(
            f"the input does not fit {label}: {reason} ({definition.where})", ExitCode.USAGE
        ) from exc


@click.command(cls=Command, short_help="Cancel a saga: what it has done is undone.")
@saga_id
@click.option("--reason", required=True, help="Why; kept in the audit.")
@actor
@as_json
@pass_invocation
def cancel(invocation: Invocation, saga_id: str, reason: str, actor: str | None, as_json: bool) -> None:
    """Cancel a saga: what it has done is undone, in reverse order."""
    handle = invocation.ledger.get(saga_id)
    handle.cancel(reason=reason, actor=current_user(actor))
    _report(invocation, saga_id, handle.status(), "cancelled", as_json)


@click.command(cls=Command, short_help="Go on with a stuck saga, after a fix.")
@saga_id
@click.option("--reason", help="Why; kept in the audit.")
@actor
@as_json
@pass_invocation
def resume(
    invocation: Invocation, saga_id: str, reason: str | None, actor: str | None, as_json: bool
) -> None:
    """Go on with a stuck saga, after its code fits its ledger again."""
    handle = invocation.ledger.get(saga_id)
    handle.resume(reason=reason, actor=current_user(actor))
    _report(invocation, saga_id, handle.status(), "resumed", as_json)


def _report(invocation: Invocation, saga_id: str, state: SagaState, done: str, as_json: bool) -> None:
    if as_json:
        invocation.say_json({"id": saga_id, "done": done, "state": state.value})
        return
    invocation.say(f"{printable(saga_id)} {done}, now {state.value}", wide=True)
    invocation.note(f"follow it with: {invocation.command('watch', saga_id)}")
