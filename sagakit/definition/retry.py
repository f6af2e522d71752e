"""When a failed attempt is tried again, in Celery's own terms."""

import random
from dataclasses import dataclass
from datetime import timedelta

from sagakit.errors import StepError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a step is retried.

    Attributes:
        automatic: retry without being asked; otherwise only ``current_step.retry()`` does.
        max_retries: retries after the first attempt; ``None`` is for ever, 0 is never.
        default_retry_delay: wait before a retry where there is no back-off.
        retry_backoff: factor of an exponential back-off in seconds; 0 is none.
        retry_backoff_max: ceiling of the back-off.
        retry_jitter: pick a random wait between 0 and the back-off (full jitter).
        autoretry_for: only these exceptions are retried; empty means any.
        dont_autoretry_for: these never are.
        throws: declared business errors, never retried.
    """

    automatic: bool = False
    max_retries: int | None = 3
    default_retry_delay: timedelta = timedelta(minutes=3)
    retry_backoff: float = 0
    retry_backoff_max: timedelta = timedelta(minutes=10)
    retry_jitter: bool = True
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    throws: tuple[type[BaseException], ...] = ()

    def allows(self, exc: BaseException) -> bool:
        """Whether ``exc`` is of a kind that is retried without being asked."""
        if not self.automatic or isinstance(exc, (StepError, *self.throws, *self.dont_autoretry_for)):
            return False
        return isinstance(exc, self.autoretry_for or (Exception,))

    def delay(self, exc: BaseException, retries: int) -> timedelta | None:
        """How long to wait before the next attempt, or ``None`` if there is none.

        Args:
            exc: what the attempt raised.
            retries: how many retries there have been.
        """
        if not self.allows(exc) or self.exhausted(retries):
            return None
        return self.backoff(retries)

    def exhausted(self, retries: int) -> bool:
        """Whether ``retries`` are all there may be."""
        return self.max_retries is not None and retries >= self.max_retries

    def backoff(self, retries: int) -> timedelta:
        """The wait before retry number ``retries + 1``: exponential with full jitter, as Celery computes it.

        Source: "Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog, 2015.
        """
        if not self.retry_backoff:
            return self.default_retry_delay
        ceiling = self.retry_backoff_max.total_seconds()
        # Past 2**63 every back-off is at its ceiling anyway, and a float would overflow in the end.
        seconds = min(ceiling, self.retry_backoff * 2 ** min(retries, 63))
        return timedelta(seconds=random.uniform(0, seconds) if self.retry_jitter else seconds)
