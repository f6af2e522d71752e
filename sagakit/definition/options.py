"""The options of steps, compensations and probes: Celery's names, Celery's meaning, checked at definition time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sagakit.clock import duration
from sagakit.definition.retry import RetryPolicy
from sagakit.errors import DefinitionError, UnknownOption, suggest

STEP_OPTIONS = frozenset(
    {
        "name",
        "queue",
        "max_retries",
        "default_retry_delay",
        "retry_backoff",
        "retry_backoff_max",
        "retry_jitter",
        "autoretry_for",
        "dont_autoretry_for",
        "throws",
        "priority",
        "base",
        "bind",
        "expires",
        "acks_late",
        "unknown_for",
        "time_limit",
    }
)
COMPENSATION_OPTIONS = STEP_OPTIONS - {"unknown_for", "acks_late", "expires", "throws"}
"""A compensation always runs at least once and has no business errors: it is repeated until it holds."""
_CELERY_ONLY = frozenset(
    {
        "rate_limit",
        "soft_time_limit",
        "track_started",
        "send_events",
        "compression",
        "exchange",
        "routing_key",
    }
)
_THROUGH_CELERY = "set it on a task class given as base=..., or through task_annotations"

CALL_OPTIONS = frozenset({"name", "queue", "priority", "expires", "time_limit"})
"""What ``step.set(...)`` may change for one call."""

_CELERY_DEFAULT_MAX_RETRIES = 3

_COMPENSATION_DEFAULTS: Mapping[str, Any] = {"max_retries": 8, "retry_backoff": 1, "retry_backoff_max": 300}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """Checked options of one task.

    Attributes:
        name: the Celery task name, or ``None`` for the function's qualified name.
        queue: where it is sent; ``None`` leaves it to Celery's routing.
        retry: when a failed attempt is tried again.
        priority: message priority.
        base: Celery task class to build on.
        bind: pass the step's context as the first argument.
        expires: it must start within this time, or it is cancelled.
        time_limit: it may run this long, then its outcome is unknown.
        acks_late: a lost attempt is run again; if false, it is ``unknown`` and never repeated.
        unknown_for: exceptions after which nobody knows whether the step took effect.
    """

    name: str | None = None
    queue: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    priority: int | None = None
    base: type | None = None
    bind: bool = False
    expires: timedelta | None = None
    time_limit: timedelta | None = None
    acks_late: bool = True
    unknown_for: tuple[type[BaseException], ...] = ()


def check_names(given: Mapping[str, Any], known: frozenset[str], what: str, where: str) -> None:
    """Refuse options that do not exist.

    Raises:
        UnknownOption: names the option, the place and the nearest real name.
    """
    for name in given:
        if name not in known:
            hint = _THROUGH_CELERY if name in _CELERY_ONLY else suggest(name, known)
            raise UnknownOption(f"{where}: {what} has no option {name!r}; {hint}")


def step_options(given: Mapping[str, Any], where: str) -> StepOptions:
    """Check the options of ``kit.step``.

    Raises:
        DefinitionError: an unknown option, or a value that does not fit.
    """
    check_names(given, STEP_OPTIONS, "a step", where)
    return _build(given, where)


def compensation_options(given: Mapping[str, Any], where: str, what: str = "a compensation") -> StepOptions:
    """Check the options of a compensation or probe; these retry by default.

    Raises:
        DefinitionError: an unknown option, or a value that does not fit.
    """
    check_names(given, COMPENSATION_OPTIONS, what, where)
    return _build({**_COMPENSATION_DEFAULTS, **given}, where)


def call_options(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the options of ``step.set``; the result holds only those given, converted.

    Raises:
        DefinitionError: an unknown option, or a value that does not fit.
    """
    check_names(given, CALL_OPTIONS, "step.set()", where)
    read = _Reader(given, where)
    readers = {
        "name": read.text,
        "queue": read.text,
        "priority": read.priority,
        "expires": read.optional_duration,
        "time_limit": read.optional_duration,
    }
    return {name: readers[name](name) for name in given}


def _build(given: Mapping[str, Any], where: str) -> StepOptions:
    read = _Reader(given, where)
    base = given.get("base")
    if base is not None and not isinstance(base, type):
        raise DefinitionError(f"{where}: base must be a Celery task class, not {base!r}")
    return StepOptions(
        name=read.text("name"),
        queue=read.text("queue"),
        retry=_retry(read),
        priority=read.priority("priority"),
        base=base,
        bind=read.flag("bind", False),
        expires=read.optional_duration("expires"),
        time_limit=read.optional_duration("time_limit"),
        acks_late=read.flag("acks_late", True),
        unknown_for=read.exceptions("unknown_for"),
    )


def _retry(read: "_Reader") -> RetryPolicy:
    given = read.given
    max_retries = given.get("max_retries", _CELERY_DEFAULT_MAX_RETRIES)
    if max_retries is not None and (type(max_retries) is not int or max_retries < 0):
        raise DefinitionError(
            f"{read.where}: max_retries must be a whole number from 0, or None for no limit, not {max_retries!r}"
        )
    defaults = RetryPolicy()
    return RetryPolicy(
        automatic=bool("max_retries" in given or given.get("retry_backoff") or given.get("autoretry_for")),
        max_retries=max_retries,
        default_retry_delay=read.duration("default_retry_delay", defaults.default_retry_delay),
        retry_backoff=read.factor("retry_backoff"),
        retry_backoff_max=read.duration("retry_backoff_max", defaults.retry_backoff_max),
        retry_jitter=read.flag("retry_jitter", True),
        autoretry_for=read.exceptions("autoretry_for"),
        dont_autoretry_for=read.exceptions("dont_autoretry_for"),
        throws=read.exceptions("throws"),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads typed values out of the given options; every refusal names option and place."""

    given: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str | None:
        value = self.given.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise DefinitionError(f"{self.where}: {name} must be a non-empty string, not {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.given.get(name, default)
        if not isinstance(value, bool):
            raise DefinitionError(f"{self.where}: {name} must be True or False, not {value!r}")
        return value

    def priority(self, name: str) -> int | None:
        value = self.given.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= 255):
            raise DefinitionError(f"{self.where}: {name} must be a whole number from 0 to 255, not {value!r}")
        return value

    def factor(self, name: str) -> float:
        value = self.given.get(name, 0)
        if isinstance(value, bool):
            return 1.0 if value else 0.0
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise DefinitionError(
                f"{self.where}: {name} must be True, False or a factor in seconds, not {value!r}"
            )
        return float(value)

    def optional_duration(self, name: str) -> timedelta | None:
        value = self.given.get(name)
        if value is None:
            return None
        try:
            return duration(value)
        except ValueError as exc:
            raise DefinitionError(f"{self.where}: {name}: {exc}") from exc

    def duration(self, name: str, default: timedelta) -> timedelta:
        value = self.optional_duration(name)
        return default if value is None else value

    def exceptions(self, name: str) -> tuple[type[BaseException], ...]:
        value = self.given.get(name) or ()
        given = value if isinstance(value, tuple | list) else (value,)
        for item in given:
            if not (isinstance(item, type) and issubclass(item, BaseException)):
                raise DefinitionError(f"{self.where}: {name} must hold exception classes, not {item!r}")
        return tuple(given)
