"""When a step is tried again: Celery's options, with Celery's meaning, but for any exception by default."""

from datetime import timedelta
from typing import Any

import pytest

from sagakit.definition.options import compensation_options, step_options
from sagakit.definition.retry import RetryPolicy
from sagakit.errors import StepError


class Declined(StepError):
    pass


class Throttled(Exception):
    pass


def policy(**options: Any) -> RetryPolicy:
    return step_options(options, "shop.py:1").retry


def test_nothing_given_retries_nothing() -> None:
    """As in Celery, a task without any retry option fails at its first error."""
    assert not policy().automatic
    assert policy().delay(OSError(), 0) is None


@pytest.mark.parametrize(
    "options",
    [{"max_retries": 3}, {"retry_backoff": True}, {"retry_backoff": 2}, {"autoretry_for": (OSError,)}],
)
def test_giving_any_retry_option_retries(options: dict[str, Any]) -> None:
    """Unlike in Celery, ``max_retries`` or a back-off is enough."""
    assert policy(**options).delay(OSError(), 0) is not None


@pytest.mark.parametrize(
    "options", [{"retry_backoff": False}, {"retry_jitter": True}, {"default_retry_delay": 5}]
)
def test_options_that_do_not_ask_for_retries(options: dict[str, Any]) -> None:
    """What only shapes a retry does not ask for one."""
    assert policy(**options).delay(OSError(), 0) is None


def test_business_errors_are_never_retried() -> None:
    """A ``StepError`` is an answer, and so is whatever is declared in ``throws``."""
    found = policy(max_retries=3, throws=(KeyError,))
    assert found.delay(Declined(), 0) is None
    assert found.delay(KeyError(), 0) is None
    assert found.delay(IndexError(), 0) is not None
    assert policy(autoretry_for=(StepError, KeyError), throws=(KeyError,)).delay(Declined(), 0) is None


def test_autoretry_for_narrows() -> None:
    """Only the named exceptions and their subclasses are retried."""
    found = policy(autoretry_for=(OSError,), max_retries=3)
    assert found.delay(ConnectionError(), 0) is not None
    assert found.delay(ValueError(), 0) is None


def test_autoretry_for_takes_one_class() -> None:
    """A single class will do."""
    assert policy(autoretry_for=OSError).autoretry_for == (OSError,)


def test_dont_autoretry_for_excludes() -> None:
    """Exceptions can be taken out of those that are retried."""
    found = policy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))
    assert found.delay(PermissionError(), 0) is not None
    assert found.delay(FileNotFoundError(), 0) is None


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit()])
def test_what_ends_the_process_is_not_retried(exc: BaseException) -> None:
    """Without ``autoretry_for``, any ``Exception`` is retried, not what ends the process."""
    assert policy(max_retries=3).delay(exc, 0) is None


def test_max_retries_counts_retries() -> None:
    """``max_retries=2`` makes three attempts at most."""
    found = policy(max_retries=2)
    assert [found.delay(OSError(), retries) is not None for retries in range(4)] == [True, True, False, False]


def test_max_retries_zero_and_none() -> None:
    """Zero is never, ``None`` is for ever."""
    assert policy(max_retries=0).delay(OSError(), 0) is None
    assert policy(max_retries=None).delay(OSError(), 1_000_000) is not None


def test_default_retry_delay() -> None:
    """Without a back-off every wait is the same: three minutes, as in Celery, or what is given."""
    assert policy(max_retries=3).delay(OSError(), 2) == timedelta(minutes=3)
    assert policy(max_retries=3, default_retry_delay="10s").delay(OSError(), 2) == timedelta(seconds=10)
    assert policy(max_retries=3, default_retry_delay=0).delay(OSError(), 2) == timedelta(0)


def test_backoff_doubles_up_to_its_ceiling() -> None:
    """A back-off doubles from its factor, ``True`` being one second, and stops at ``retry_backoff_max``."""

    def waits(**options: Any) -> list[float]:
        found = policy(max_retries=None, retry_jitter=False, **options)
        return [found.backoff(retries).total_seconds() for retries in (0, 1, 2, 9, 10, 100_000)]

    assert waits(retry_backoff=True) == [1, 2, 4, 512, 600, 600]
    assert waits(retry_backoff=3, retry_backoff_max=20) == [3, 6, 12, 20, 20, 20]
    assert waits(retry_backoff=True, retry_backoff_max=0) == [0] * 6


def test_jitter_stays_below_the_backoff() -> None:
    """With jitter, the default, the wait is anywhere between nothing and the back-off."""
    found = policy(retry_backoff=8)
    waits = [found.backoff(1).total_seconds() for _ in range(500)]
    assert min(waits) >= 0
    assert max(waits) <= 16
    assert min(waits) < 4 < 12 < max(waits)


def test_compensations_retry_by_default() -> None:
    """A compensation is repeated with a back-off, unless told otherwise."""
    by_default = compensation_options({}, "shop.py:1").retry
    assert by_default.automatic
    assert (by_default.max_retries, by_default.retry_backoff) == (8, 1)
    assert by_default.retry_backoff_max == timedelta(minutes=5)
    assert compensation_options({"max_retries": 0}, "shop.py:1").retry.delay(OSError(), 0) is None
