"""Every error sagakit raises, and errors as data: how a failure is kept in the ledger.

An error in the ledger is never rebuilt from a class name found in it: only the ``StepError`` subclasses that the
step's own definition declares in ``throws`` come back as themselves, everything else as :class:`StepFailed`.
"""

import dataclasses
import json
import traceback as tracebacks
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self, dataclass_transform


class SagakitError(Exception):
    """Base of everything sagakit raises."""


class ConfigurationError(SagakitError):
    """The kit or its environment is set up wrongly."""


class DatabaseNotConfigured(ConfigurationError):
    """No database URL was given."""


class SchemaMismatch(ConfigurationError):
    """The database's tables and this code do not fit together."""


class DefinitionError(SagakitError):
    """A step or saga is declared wrongly; the message names the file and line."""


class UnknownOption(DefinitionError):
    """An option that does not exist."""


class StepNotFound(SagakitError):
    """The ledger names a step that this process does not define."""


class SagaNotFound(SagakitError):
    """No saga has this id or name."""


class InvalidInput(SagakitError):
    """Arguments or a saga's input do not fit the declared types."""


class NotEncodable(SagakitError):
    """A value cannot be stored as JSON and read back as itself."""


class NotDecodable(SagakitError):
    """Stored data no longer fits the declared types; the saga becomes stuck, nothing is lost."""


class PayloadTooLarge(SagakitError):
    """An argument or a result is over the size bound."""


class SagaIdConflict(SagakitError):
    """A saga of this id exists with another input or another definition."""


class SagaExists(SagakitError):
    """A saga of this id exists, and the caller asked to be told."""


class SessionMismatch(SagakitError):
    """The session given to ``start`` is not connected to the ledger's database."""


class NotAllowed(SagakitError):
    """The action does not fit the state the saga is in."""


class OutcomeTimeout(SagakitError, TimeoutError):
    """The saga had not ended when the time the caller gave was over. It runs on."""


class UseAStep(SagakitError):
    """Something was tried in a saga's body that only a step may do."""


class StepNotAwaited(SagakitError):
    """The body returned without awaiting a step it had started."""


class BodyDoesNotYield(SagakitError):
    """The body spins without ever waiting for a step or a timer."""


class BodyWaitsInVain(SagakitError):
    """The body waits for what no step and no timer will ever bring, such as an event that nobody sets."""


class LedgerTooLong(SagakitError):
    """The saga issued more commands than the ledger holds for one saga."""


class NonDeterminismError(SagakitError):
    """The body, run again over its ledger, did something else than the first time."""

    def __init__(self, message: str, *, expected: str, found: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_divergence, (str(self), self.expected, self.found)


def _rebuild_divergence(message: str, expected: str, found: str) -> NonDeterminismError:
    return NonDeterminismError(message, expected=expected, found=found)


def _rebuild(cls: "type[StepError]", fields: dict[str, Any]) -> "StepError":
    return cls(**fields)


_TAKEN = frozenset({"args", "fields", "ledger_info", "step"})


@dataclass_transform(kw_only_default=True)
class StepError(Exception):
    """Base of the business errors a step declares in ``throws``.

    Annotate fields as in a dataclass; they are stored, and the error is raised again as itself at the ``await``::

        class PaymentDeclined(StepError):
            reason: str

        raise PaymentDeclined(reason="insufficient funds")

    A declared error is never retried: it is an answer, not a fault.
    """

    if TYPE_CHECKING:
        step: str | None
        """Name of the step it came from; set when it arrives in the body."""
        ledger_info: "ErrorInfo | None"
        """The error as the ledger keeps it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(kw_only=True, repr=True, eq=False)(cls)
        taken = next((field.name for field in dataclasses.fields(cls) if field.name in _TAKEN), None)  # type: ignore[arg-type]
        if taken is not None:
            raise DefinitionError(
                f"{qualified_name(cls)}: a StepError's field cannot be called {taken!r}, which every StepError has "
                "already: choose another name"
            )

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.fields().items()) or type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields())

    def fields(self) -> dict[str, Any]:
        """The error's declared fields and their values."""
        if type(self) is StepError:
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


# Set on the instance when it arrives in a body; not annotations, which would be fields of every subclass.
StepError.step = None
StepError.ledger_info = None


class StepFailed(SagakitError):
    """A step failed for good with an error it had not declared.

    Attributes:
        step: name of the step.
        type: qualified name of the original exception's class.
        message: the original message.
        traceback: the original traceback as text, or ``None``.
    """

    def __init__(
        self, message: str, *, step: str | None = None, type: str = "", traceback: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.step = step
        self.type = type
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.step}: {self.type}: {self.message}" if self.type else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_failed, (type(self), self.message, self.step, self.type, self.traceback)


def _rebuild_failed(
    cls: type[StepFailed], message: str, step: str | None, type: str, traceback: str | None
) -> StepFailed:
    return cls(message, step=step, type=type, traceback=traceback)


class StepUnknown(StepFailed):
    """Nobody can say whether the step took effect: it timed out, or its worker was lost for good."""


class StepCancelled(StepFailed):
    """The step was withdrawn before it ran: revoked by an operator, or expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error as the ledger keeps it.

    Attributes:
        type: qualified class name, for people and for matching against declared errors.
        message: what ``str()`` of it said.
        traceback: the traceback as text, if there was one.
        fields: a declared error's fields as JSON values.
        step: the step it came from, if any.
    """

    type: str
    message: str
    traceback: str | None = None
    fields: Mapping[str, Any] | None = None
    step: str | None = None

    def dumps(self) -> str:
        """The error as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Self:
        """Read what :meth:`dumps` wrote."""
        return cls(**json.loads(text))

    @property
    def short_type(self) -> str:
        """The class name without its module."""
        return self.type.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.short_type}: {self.message}" if self.message else self.short_type


def qualified_name(cls: type) -> str:
    """``module.Class``, or the bare name for a builtin."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


_MAX_TEXT = 20_000


def _shorten(text: str) -> str:
    """Keep both ends: the cause of an error is at the end of a traceback, the call at its start."""
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n… {len(text) - _MAX_TEXT} characters left out …\n{text[-half:]}"


def describe(
    exc: BaseException,
    *,
    step: str | None = None,
    dump_fields: Callable[[StepError], Mapping[str, Any]] | None = None,
) -> ErrorInfo:
    """Turn an exception into data. Never fails: an exception whose own ``str()`` raises is described as such.

    Args:
        exc: the exception.
        step: the step it is attributed to; by default the one it carries.
        dump_fields: turns a declared error's fields into JSON values.
    """
    if isinstance(exc, StepFailed):
        return ErrorInfo(
            type=exc.type or qualified_name(type(exc)),
            message=exc.message,
            traceback=exc.traceback,
            step=step or exc.step,
        )
    try:
        message = str(exc)
    except Exception as broken:
        message = f"<its own str() raised {type(broken).__name__}>"
    fields = dump_fields(exc) if dump_fields and isinstance(exc, StepError) else None
    try:
        text = "".join(tracebacks.format_exception(exc))
    except (
        Exception
    ):  # a traceback is a courtesy; an object that cannot even be printed must not cost the outcome
        text = f"{qualified_name(type(exc))}: {message}"
    return ErrorInfo(
        type=qualified_name(type(exc)),
        message=_shorten(message),
        traceback=_shorten(text),
        fields=fields,
        step=step or (exc.step if isinstance(exc, StepError) else None),
    )


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known word, or all of them: `` did you mean 'x'?``."""
    words = sorted(known)
    near = get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(words)}" if words else "none is known"
