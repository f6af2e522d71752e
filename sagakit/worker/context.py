"""What a running step knows about itself: ``current_step``."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from celery.exceptions import Retry

from sagakit.clock import Duration, duration, utcnow
from sagakit.errors import UseAStep
from sagakit.running import step_context

Outcome = Literal["succeeded", "unknown"]


class StepRetry(Retry):
    """Raised by ``current_step.retry()``; the executor records the retry, Celery reports it."""

    def __init__(self, exc: BaseException | None, delay: timedelta | None) -> None:
        super().__init__(message="retry requested", exc=exc, when=delay.total_seconds() if delay else None)
        self.delay = delay

    def __reduce__(self) -> Any:
        # To the main process it is Celery's own, whose arguments are others; what it cannot load ends the worker.
        return Retry, (self.message, self.exc, self.when)


class StepLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the saga and the step before each message, and into ``extra``."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return f"{extra['saga_id']} {extra['step_name']}: {msg}", kwargs


@dataclass(slots=True, kw_only=True)
class StepContext:
    """The step that is running.

    Attributes:
        saga_id: the saga's id; ``None`` when the step was sent as a plain task.
        saga_name: the saga's Celery task name.
        step_name: the step's name in the ledger.
        position: its position in the ledger.
        attempt: 1 for the first attempt, counted when a worker claims the step.
        idempotency_key: the same over all attempts of this step; hand it to the services you call.
        outcome: in a compensation, whether the step is known to have ``succeeded`` or is ``unknown``.
        request: Celery's own request.
        session: the database session of a transactional step.
    """

    saga_id: str | None
    saga_name: str | None
    step_name: str
    position: int | None
    attempt: int
    idempotency_key: str
    outcome: Outcome | None = None
    request: Any = None
    session: Any = None
    report: Callable[[str], None] | None = field(default=None, repr=False)

    def retry(
        self,
        exc: BaseException | None = None,
        *,
        countdown: Duration | None = None,
        eta: datetime | None = None,
    ) -> NoReturn:
        """Give up this attempt and try again, within the step's ``max_retries``; the retry is durable.

        Args:
            exc: the reason; the current exception by default.
            countdown: how long to wait, by default the step's own back-off.
            eta: or when to try again.

        Raises:
            StepRetry: always.
        """
        delay = duration(countdown) if countdown is not None else None
        if eta is not None:
            delay = max(timedelta(0), eta - utcnow())
        raise StepRetry(exc, delay)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell how far the step is; shown by ``saga show`` and ``saga watch``."""
        if self.report is not None:
            share = f"{done:g}/{total:g}" if total is not None else f"{done:g}"
            self.report(f"{share} {message}".strip())

    @property
    def log(self) -> StepLogger:
        """A logger that names the saga and the step."""
        names: Mapping[str, object] = {"saga_id": self.saga_id or "-", "step_name": self.step_name}
        return StepLogger(logging.getLogger("sagakit.step"), dict(names))


@contextmanager
def running_step(context: StepContext) -> Iterator[StepContext]:
    """Make ``context`` the current step for the block."""
    token = step_context.set(context)
    try:
        yield context
    finally:
        step_context.reset(token)


class _CurrentStep:
    """Stands for the context of the step that runs here, as Celery's ``current_task`` does for tasks."""

    __slots__ = ()

    def _get(self) -> StepContext:
        context = step_context.get(None)
        if context is None:
            raise UseAStep(
                "current_step is only there while a step runs; in a unit test, call the step inside "
                "`with sagakit.testing.step_context():`"
            )
        return cast(StepContext, context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def __repr__(self) -> str:
        context = step_context.get(None)
        return repr(context) if context is not None else "<current_step: none>"


if TYPE_CHECKING:
    current_step: StepContext
else:
    current_step = _CurrentStep()
