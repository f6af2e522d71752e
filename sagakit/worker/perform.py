"""One attempt of one task function: decode, call, encode, and say what became of it. No database, no broker."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from celery.exceptions import Retry

from sagakit.clock import utcnow
from sagakit.codec import bounded
from sagakit.coordinator.ledger import Limits
from sagakit.definition.retry import RetryPolicy
from sagakit.definition.step import Compensation, Happened, NotHappened, Probe, Step, TaskFunction
from sagakit.errors import ErrorInfo, NotDecodable, SagakitError, StepFailed, describe
from sagakit.running import is_shutdown
from sagakit.states import StepState
from sagakit.worker.context import StepContext, StepRetry, running_step

_LONGEST_DELAY = timedelta(days=3650)
"""A longer one is a slip, and some are beyond what a database can add to a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The attempt was the last one.

    Attributes:
        raised: what the function raised, for Celery to report.
        returned: what the function returned, for Celery's ``on_success``.
    """

    state: StepState
    result: str | None = None
    error: ErrorInfo | None = None
    raised: BaseException | None = None
    returned: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """There will be another attempt after ``delay``.

    Attributes:
        tainted: this attempt may have taken effect.
    """

    delay: timedelta
    error: ErrorInfo
    raised: BaseException
    tainted: bool


def perform(
    function: TaskFunction[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: StepContext,
    *,
    policy: RetryPolicy,
    retries: int,
    tainted: bool,
    limits: Limits,
    run: Callable[..., Any] | None = None,
) -> Ended | Again:
    """Run one attempt.

    Args:
        function: what to run.
        args: its positional arguments.
        kwargs: its keyword arguments.
        context: becomes ``current_step``.
        policy: when to try again.
        retries: how many retries there have been.
        tainted: an earlier attempt may have taken effect, so that failing now does not mean nothing happened.
        limits: bounds on the result's size.
        run: called instead of the user's function, for tests.
    """
    try:
        with running_step(context):
            returned = _call(function, run or function.function, args, kwargs, context)
    except BaseException as exc:
        if is_shutdown(exc):
            raise
        exc.__traceback__ = _from_user_code(exc.__traceback__)
        return _after_error(function, exc, policy=policy, retries=retries, tainted=tainted)
    try:
        text = bounded(
            encode_result(function, returned),
            f"the result of {function.label}",
            limit=limits.payload,
            warning=limits.payload_warning,
        )
    except Exception as exc:  # its type's own code may raise anything
        # The function ran to its end: its effect stands, only its result cannot be told.
        return Ended(state=StepState.UNKNOWN, error=describe(exc, step=function.label), raised=exc)
    return Ended(state=StepState.SUCCEEDED, result=text, returned=returned)


def _from_user_code(tb: TracebackType | None) -> TracebackType | None:
    """The traceback without this module's own frames at its top: people look for their function."""
    first = tb
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb or first


def _call(
    function: TaskFunction[..., Any],
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: StepContext,
) -> Any:
    if function.options.bind:
        args = (context, *args)
    returned = run(*args, **kwargs)
    return _run_coroutine(returned) if asyncio.iscoroutine(returned) else returned


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    if asyncio._get_running_loop() is None:
        return asyncio.run(coroutine)
    # An application or test that is async itself runs its sagas eagerly: its loop is taken.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(copy_context().run, asyncio.run, coroutine).result()


def _after_error(
    function: TaskFunction[..., Any], exc: BaseException, *, policy: RetryPolicy, retries: int, tainted: bool
) -> Ended | Again:
    unknown = isinstance(exc, function.options.unknown_for)
    asked = isinstance(exc, Retry)
    cause = exc
    delay: timedelta | None
    if isinstance(exc, Retry):
        delay = None if policy.exhausted(retries) else _asked_delay(exc, policy, retries)
        cause = (
            exc.exc
            if isinstance(exc.exc, Exception)
            else exc.__context__
            if isinstance(exc.__context__, Exception)
            else exc
        )
        unknown = isinstance(cause, function.options.unknown_for)
    else:
        delay = policy.delay(exc, retries)
    error = _describe(function, cause)
    if delay is not None:
        return Again(delay=delay, error=error, raised=exc, tainted=unknown)
    state = StepState.UNKNOWN if unknown or tainted else StepState.FAILED
    raised = cause if asked else exc
    if not isinstance(raised, Exception):
        # Celery takes a SystemExit or CancelledError of a task for the end of its process.
        raised = StepFailed(error.message, step=function.label, type=error.type, traceback=error.traceback)
    return Ended(state=state, error=error, raised=raised)


def _asked_delay(exc: Retry, policy: RetryPolicy, retries: int) -> timedelta:
    if isinstance(exc, StepRetry) and exc.delay is not None:
        return min(exc.delay, _LONGEST_DELAY)
    if isinstance(exc.when, int | float):
        return timedelta(seconds=exc.when)
    if isinstance(exc.when, datetime):
        when = exc.when if exc.when.tzinfo is not None else exc.when.replace(tzinfo=UTC)
        return max(timedelta(0), when - utcnow())
    return policy.backoff(retries)


def _describe(function: TaskFunction[..., Any], exc: BaseException) -> ErrorInfo:
    if not isinstance(function, Step):
        return describe(exc, step=function.label)
    try:
        return function.describe_error(exc)
    except SagakitError:
        # A declared error whose fields do not fit its own types is told as text; its step still failed with it.
        return describe(exc, step=function.label)


def encode_result(function: TaskFunction[..., Any], returned: Any) -> str:
    """The result of a step, or the answer of a probe, as JSON text; a compensation's is not kept.

    Raises:
        InvalidInput, NotEncodable: it does not fit the declared type.
    """
    if isinstance(function, Step):
        return function.result_codec.dumps(returned)
    if isinstance(function, Compensation):
        return "null"
    assert isinstance(function, Probe)
    if isinstance(returned, Happened):
        return f'{{"happened":true,"result":{function.step.result_codec.dumps(returned.result)}}}'
    if isinstance(returned, NotHappened) or returned is NotHappened:
        return '{"happened":false}'
    raise NotDecodable(
        f"{function.label} is a probe: it answers Happened(result) or NotHappened(), not {returned!r}"
    )


def decode_arguments(
    function: TaskFunction[..., Any], args: str, result: str | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for one call.

    Args:
        function: a step, or the compensation or probe of one.
        args: the step's stored arguments.
        result: the step's stored result; ``None`` if it is not known.

    Raises:
        NotDecodable: stored data no longer fits the function.
    """
    arguments = function.signature.arguments
    if isinstance(function, Compensation):
        return arguments.loads(
            arguments.choose(args, result=(result or "null") if function.takes_result else None)
        )
    if isinstance(function, Probe):
        return arguments.loads(arguments.choose(args))
    return arguments.loads(args)
