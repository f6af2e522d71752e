"""How a saga ended, as values to ``match`` on, and the error that carries them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from sagakit.errors import ErrorInfo, SagakitError

R = TypeVar("R")


# Without match_args=False, pyright takes the empty ones of this class for those of its subclasses.
@dataclass(frozen=True, slots=True, kw_only=True, match_args=False)
class Outcome(Generic[R]):
    """What every outcome tells.

    Attributes:
        saga_id: the saga.
        failed_step: name of the step whose error ended the body, if a step's error did.
        error: why the saga did not complete.
        compensated: names of the steps that were undone, in the order they were undone.
        not_compensated: names of the steps that took effect and could not be undone.
        unknown: names of the steps of which nobody can say whether they took effect.
        duration: from start to end.
    """

    saga_id: str
    failed_step: str | None = None
    error: ErrorInfo | None = None
    compensated: tuple[str, ...] = ()
    not_compensated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    duration: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Outcome[R]):
    """Everything was done. ``result`` is what the body returned."""

    __match_args__ = ("result",)
    result: R


@dataclass(frozen=True, slots=True, kw_only=True)
class Compensated(Outcome[R]):
    """Everything that took effect was undone, in reverse order."""

    __match_args__ = ("failed_step", "error", "compensated")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompensationFailed(Outcome[R]):
    """Something could not be undone; ``not_compensated`` and ``unknown`` say what. An operator can replay it."""

    __match_args__ = ("failed_step", "error", "compensated", "not_compensated", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck(Outcome[R]):
    """The code no longer fits the ledger. Nothing is lost; after a fix, ``resume`` goes on."""

    __match_args__ = ("error",)


AnyOutcome = Completed[R] | Compensated[R] | CompensationFailed[R] | Stuck[R]


class SagaFailed(SagakitError):
    """A saga did not complete; ``outcome`` is the whole account.

    Attributes:
        outcome: :class:`Compensated`, :class:`CompensationFailed` or :class:`Stuck`.
    """

    def __init__(self, outcome: Outcome[Any]) -> None:
        self.outcome = outcome
        super().__init__(self._tell())

    def __reduce__(self) -> tuple[Any, ...]:
        return SagaFailed, (self.outcome,)

    def _tell(self) -> str:
        outcome = self.outcome
        why = f" at step {outcome.failed_step}" if outcome.failed_step else ""
        cause = f": {outcome.error}" if outcome.error else ""
        account = []
        for label, names in (
            ("compensated", outcome.compensated),
            ("NOT compensated", outcome.not_compensated),
            ("unknown", outcome.unknown),
        ):
            if names:
                account.append(f"{label}: {', '.join(names)}")
        tail = f" ({'; '.join(account)})" if account else ""
        word = {
            "Compensated": "failed and was compensated",
            "CompensationFailed": "failed and is not fully undone",
        }
        return f"saga {outcome.saga_id} {word.get(type(outcome).__name__, 'is stuck')}{why}{cause}{tail}"
