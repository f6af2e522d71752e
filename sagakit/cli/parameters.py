"""What commands accept: durations, tags, JSON, states, and the options several of them share."""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from sagakit.clock import duration
from sagakit.errors import suggest
from sagakit.ids import check_saga_id
from sagakit.states import SagaState

F = TypeVar("F", bound=Callable[..., Any])


# Click made ParamType generic only lately: under its older versions it cannot be subscripted.


class DurationType(click.ParamType):  # type: ignore[type-arg]
    """``48h``, ``90s``, ``1h30m`` or seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        try:
            return duration(float(value) if isinstance(value, str) and _is_number(value) else value)
        except (ValueError, OverflowError) as exc:
            self.fail(str(exc), param, ctx)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class TagType(click.ParamType):  # type: ignore[type-arg]
    """``key=value``."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not a tag: write it as key=value, for example region=eu", param, ctx)
        return key, text


class StatusType(click.ParamType):  # type: ignore[type-arg]
    """One or several saga states, parted by commas."""

    name = "state"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[SagaState, ...]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        states = []
        for word in str(value).split(","):
            try:
                states.append(SagaState(word.strip().lower().replace("-", "_")))
            except ValueError:
                hint = suggest(word, [state.value for state in SagaState])
                self.fail(f"{word!r} is not a state of a saga: {hint}", param, ctx)
        return tuple(states)


class SagaIdType(click.ParamType):  # type: ignore[type-arg]
    """A saga's id."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that it can be one."""
        try:
            return check_saga_id(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class JsonInput(click.ParamType):  # type: ignore[type-arg]
    """JSON text, ``@file`` or ``-`` for standard input; the value is the JSON text, known to be well formed."""

    name = "json|@file|-"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it and check that it is JSON."""
        text, where = self._read(str(value), param, ctx)
        try:
            json.loads(text, parse_constant=_no_constant)
        except RecursionError:
            self.fail(f"{where} is nested too deeply", param, ctx)
        except ValueError as exc:
            hint = "; write for example '{\"id\": 42}', @order.json, or - for standard input"
            self.fail(f"{where} is not JSON: {exc}{hint}", param, ctx)
        return text

    def _read(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if value == "-":
            return sys.stdin.read(), "standard input"
        if not value.startswith("@"):
            return value, "the text given"
        try:
            return Path(value[1:]).expanduser().read_text("utf-8"), value[1:]
        except OSError as exc:
            self.fail(f"cannot read {value[1:]}: {exc.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{value[1:]} is not UTF-8 text", param, ctx)


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


saga_id = click.argument("saga_id", metavar="ID", type=SagaIdType())
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
actor = click.option(
    "--actor", envvar="SAGAKIT_ACTOR", help="Who acts, for the audit.  [default: the user of this process]"
)


def filters(command: F) -> F:
    """The options that choose sagas."""
    for option in reversed(
        (
            click.option(
                "--status",
                "statuses",
                type=StatusType(),
                multiple=True,
                help="Only sagas in this state; several: repeat it, or part them by commas.",
            ),
            click.option("--saga", "name", help="Only sagas of this name; the last part is enough."),
            click.option("--older-than", type=DurationType(), help="Only sagas started longer ago, e.g. 2h."),
            click.option("--newer-than", type=DurationType(), help="Only sagas started since, e.g. 30m."),
            click.option(
                "--tag", "tags", type=TagType(), multiple=True, help="Only sagas that bear this tag."
            ),
        )
    ):
        command = option(command)
    return command
