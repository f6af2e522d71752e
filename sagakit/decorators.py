"""The decorators: ``step`` and ``saga`` of a kit, ``shared_step`` and ``shared_saga`` of every kit."""

from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from celery import current_app

from sagakit.client.startable import StartableSaga, Starter
from sagakit.coordinator.context import Saga
from sagakit.definition.options import step_options
from sagakit.definition.registry import Declaration, shared
from sagakit.definition.saga import check_saga_options
from sagakit.definition.signature import caller_frame, location
from sagakit.definition.step import AsyncStep, Step, TaskFunction
from sagakit.errors import ConfigurationError
from sagakit.worker.context import StepContext

P = ParamSpec("P")
R = TypeVar("R")
In = TypeVar("In")

Namer = Callable[[Callable[..., Any]], str]


class StepDecorator(Protocol):
    """What ``kit.step(...)`` returns: makes a step of a function, sync or async."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


class BoundStepDecorator(Protocol):
    """What ``kit.step(bind=True, ...)`` returns: the function's first parameter is the step's context."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[StepContext, P], Coroutine[Any, Any, R]], /
    ) -> AsyncStep[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[StepContext, P], R], /) -> Step[P, R]: ...


class SagaDecorator(Protocol):
    """What ``kit.saga(...)`` returns: makes a saga of an ``async def`` body."""

    @overload
    def __call__(self, body: Callable[[Saga, In], Coroutine[Any, Any, R]], /) -> StartableSaga[In, R]: ...
    @overload
    def __call__(self, body: Callable[[Saga], Coroutine[Any, Any, R]], /) -> StartableSaga[None, R]: ...


class Declaring:
    """The decorators, over whatever takes what they make.

    Args:
        take: receives each definition.
        name: makes the Celery task name of a function.
    """

    def __init__(self, take: Callable[[Declaration], None], name: Namer) -> None:
        self._hand_over = take
        self._task_name = name

    @overload
    def step(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...
    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(self, /, *, bind: Literal[True], **options: Any) -> BoundStepDecorator: ...
    @overload
    def step(self, /, **options: Any) -> StepDecorator: ...

    def step(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a step: a function that runs as a Celery task, with durable outcome.

        Options bear Celery's names and meaning: ``name queue max_retries default_retry_delay retry_backoff
        retry_backoff_max retry_jitter autoretry_for dont_autoretry_for throws priority base bind expires acks_late
        time_limit``, and ``unknown_for``: exceptions after which nobody knows whether the step took effect. Giving
        ``max_retries`` or a back-off retries any exception but declared ones; ``autoretry_for`` narrows that.

        Raises:
            DefinitionError: the declaration cannot work; names file and line.
        """
        frame = caller_frame(1)
        if function is not None:
            return self._step(function, options, frame)
        return lambda function: self._step(function, options, frame)

    def _step(
        self, function: Callable[..., Any], given: dict[str, Any], frame: FrameType | None
    ) -> Step[..., Any]:
        options = step_options(given, location(function))
        step: Step[..., Any] = Step(
            function, options, name=options.name or self._task_name(function), frame=frame
        )
        if step.is_async:
            step.__class__ = AsyncStep
        step.name_task = self._task_name
        self._hand_over(step)
        step.on_declared = cast("Callable[[TaskFunction[..., Any]], None]", self._hand_over)
        return step

    @overload
    def saga(self, body: Callable[[Saga, In], Coroutine[Any, Any, R]], /) -> StartableSaga[In, R]: ...
    @overload
    def saga(self, body: Callable[[Saga], Coroutine[Any, Any, R]], /) -> StartableSaga[None, R]: ...
    @overload
    def saga(self, /, *, name: str | None = None, version: int = 1) -> SagaDecorator: ...

    def saga(self, body: Any = None, /, **options: Any) -> Any:
        """Declare a saga: an ``async def`` body that takes the :class:`Saga` and at most one input.

        Args:
            body: the body.
            name: Celery task name; the function's qualified name by default.
            version: whole number from 1. An instance keeps the version it started with.

        Raises:
            DefinitionError: the declaration cannot work; names file and line.
        """
        frame = caller_frame(1)
        if body is not None:
            return self._saga(body, options, frame)
        return lambda body: self._saga(body, options, frame)

    def _saga(
        self, body: Callable[..., Awaitable[Any]], given: dict[str, Any], frame: FrameType | None
    ) -> StartableSaga[Any, Any]:
        check_saga_options(given, location(body))
        definition: StartableSaga[Any, Any] = StartableSaga(
            body,
            name=given.get("name") or self._task_name(body),
            version=given.get("version", 1),
            frame=frame,
        )
        self._hand_over(definition)
        return definition


def _shared_name(function: Callable[..., Any]) -> str:
    name: str = current_app.gen_task_name(function.__name__, function.__module__)
    return name


def _share(definition: Declaration) -> None:
    if isinstance(definition, StartableSaga):
        definition.find_starter = _current_kit
    elif isinstance(definition, TaskFunction):
        definition.find_task = lambda name: _current_kit().task(name)
    shared.declare(definition)


def _current_kit() -> Starter:
    kit: Starter | None = getattr(current_app, "sagakit", None)
    if kit is None:
        raise ConfigurationError(
            f"the current Celery app {current_app.main!r} has no SagaKit: add `kit = SagaKit(app)` where it is made, "
            "and make sure that this process imports it"
        )
    return kit


_sharing = Declaring(_share, _shared_name)

shared_step = _sharing.step
"""``kit.step`` for code that has no app: every app with a ``SagaKit`` gets the step, as with ``shared_task``."""

shared_saga = _sharing.saga
"""``kit.saga`` for code that has no app: every app with a ``SagaKit`` gets the saga, as with ``shared_task``."""
