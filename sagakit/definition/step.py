"""Steps with their compensations and probes, as the decorators return them."""

import copy
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from types import FrameType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, cast, overload

from sagakit.codec import Codec
from sagakit.definition.options import StepOptions, call_options, compensation_options
from sagakit.definition.signature import (
    FunctionSignature,
    admits_none,
    caller_frame,
    fits,
    listed,
    location,
    type_name,
)
from sagakit.errors import (
    ConfigurationError,
    DefinitionError,
    ErrorInfo,
    StepError,
    UseAStep,
    describe,
    qualified_name,
)
from sagakit.running import in_body, step_context

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Happened(Generic[R]):
    """A probe's answer: the step took effect, and this is its result."""

    result: R


class NotHappened:
    """A probe's answer: the step did not take effect."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NotHappened()"


class TaskFunction(Generic[P, R]):
    """A user's function that runs as a Celery task on behalf of a saga.

    Called directly it is the ordinary function. Everything a Celery task has (``name``, ``delay``, ``apply_async``,
    ``s``, ``rate_limit`` …) is reached through it too: attributes it lacks are those of its Celery task.

    Attributes:
        function: the user's function.
        options: its checked options.
        name: Celery task name.
        where: ``file:line`` it was declared at.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: StepOptions,
        *,
        name: str,
        frame: FrameType | None = None,
        concerns: FunctionSignature | None = None,
        takes_result: bool = False,
    ) -> None:
        self.function = function
        self.options = options
        self.name = name
        self.where = location(function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = FunctionSignature(
            function, skip=1 if options.bind else 0, frame=frame, concerns=concerns, takes_result=takes_result
        )
        self.find_task: Callable[[str], Any] | None = None
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    @property
    def label(self) -> str:
        """The short name shown in the ledger."""
        return self.function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, outside any saga."""
        self._refuse_in_body("called")
        if self.options.bind:
            context = step_context.get(None)
            if context is None:
                raise UseAStep(
                    f"{self.label} is declared with bind=True and needs a step's context: in a test, call it inside "
                    "`with sagakit.testing.step_context():`"
                )
            return cast(R, self.function(context, *args, **kwargs))
        return cast(R, self.function(*args, **kwargs))

    def _refuse_in_body(self, verb: str) -> None:
        if in_body():
            raise UseAStep(
                f"{self.label} was {verb} directly in a saga's body, where it would run again at every replay: "
                f"write `await saga.step({self.label}, ...)`"
            )

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Send it as an ordinary Celery task, outside any saga."""
        self._refuse_in_body("sent with .delay()")
        return self.task.delay(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Send it as an ordinary Celery task, outside any saga."""
        self._refuse_in_body("sent with .apply_async()")
        return self.task.apply_async(*args, **kwargs)

    @property
    def task(self) -> Any:
        """The Celery task.

        Raises:
            ConfigurationError: no app with a ``SagaKit`` has registered it yet.
        """
        if self.find_task is None:
            raise ConfigurationError(f"{self.name} belongs to no Celery app yet: create SagaKit(app) first")
        return self.find_task(self.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "find_task":
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Compensation(TaskFunction[P, R]):
    """Undoes a step: receives the step's result, then those of the step's arguments that it names."""

    def __init__(self, step: "Step[..., Any]", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, concerns=step.signature, takes_result=True)
        self.step = step
        names = list(self.signature.parameters)
        self.takes_result = bool(names)
        self.accepts_none = not names or admits_none(self.signature, names[0])
        _require_arguments_of(step, self, names[1:])
        if names:
            self._check_first(names[0])

    def _check_first(self, name: str) -> None:
        wanted, result = self.signature.annotation(name), self.step.signature.returns
        inferred = result in (type(None), Any) or name in self.signature.inferred
        if name in self.step.signature.parameters and inferred:
            what = f"returns {type_name(result)}"
            if result in (type(None), Any):
                what = "declares no result" if result is Any else "returns nothing"
            first = "_: None" if result is type(None) else "result"
            raise DefinitionError(
                f"{self.where}: {self.step.label} {what}, and the first parameter of a compensation receives "
                f"the step's result: declare {self.label}({first}, {name}, ...)"
            )
        if not fits(result, wanted):
            raise DefinitionError(
                f"{self.where}: the first parameter of {self.label} receives what {self.step.label} returns, "
                f"{type_name(result)}, but {name!r} is declared as {type_name(wanted)}; "
                f"write the result first, then the arguments of {self.step.label} you need"
            )


class Probe(TaskFunction[P, R]):
    """Finds out whether a step of unknown outcome took effect: answers ``Happened(result)`` or ``NotHappened()``."""

    def __init__(self, step: "Step[..., Any]", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, concerns=step.signature)
        self.step = step
        _require_arguments_of(step, self, list(self.signature.parameters))


def _require_arguments_of(step: "Step[..., Any]", function: TaskFunction[..., Any], names: list[str]) -> None:
    known = step.signature.parameters
    for name in names:
        if name not in known:
            raise DefinitionError(
                f"{function.where}: {function.label} asks for {name!r}, which is not an argument of {step.label} "
                f"(it has: {listed(known)})"
            )
        if not fits(step.signature.annotation(name), function.signature.annotation(name)):
            raise DefinitionError(
                f"{function.where}: {function.label} declares {name!r} as "
                f"{type_name(function.signature.annotation(name))}, but {step.label} declares it as "
                f"{type_name(step.signature.annotation(name))}"
            )


class Step(TaskFunction[P, R]):
    """One step of a saga: a Celery task with, where it has effects, a compensation.

    Attributes:
        undo: the declared compensation, if there is one.
        find_out: the declared probe, if there is one.
        overrides: options of this call only, see :meth:`set`.
    """

    def __init__(
        self, function: Callable[..., Any], options: StepOptions, *, name: str, frame: FrameType | None = None
    ) -> None:
        super().__init__(function, options, name=name, frame=frame)
        self.result_codec: Codec[Any] = self.signature.codec(
            self.signature.returns, f"the result of {self.label}"
        )
        self.errors = {
            qualified_name(cls): ErrorCodec(cls, self.where, frame) for cls in _step_errors(options)
        }
        self.undo: Compensation[..., Any] | None = None
        self.find_out: Probe[..., Any] | None = None
        self.overrides: Mapping[str, Any] = {}
        self.on_declared: Callable[[TaskFunction[..., Any]], None] | None = None
        self.name_task: Callable[[Callable[..., Any]], str] | None = None

    def describe_error(self, exc: BaseException) -> ErrorInfo:
        """An exception of this step as data: a declared error with its fields, any other as text.

        Raises:
            InvalidInput, NotEncodable: a field of a declared error does not fit its declared type.
        """
        declared = next((codec for codec in self._codecs_for(exc)), None)
        if declared is None:
            return describe(exc, step=self.label)
        info = describe(exc, step=self.label, dump_fields=lambda error: json.loads(declared.dumps(error)))
        return replace(info, type=qualified_name(declared.cls))

    def _codecs_for(self, exc: BaseException) -> list["ErrorCodec"]:
        """Codecs of the declared errors that ``exc`` is an instance of, its own class first."""
        matching = [codec for codec in self.errors.values() if isinstance(exc, codec.cls)]
        return sorted(matching, key=lambda codec: type(exc) is not codec.cls)

    def rebuild_error(self, info: ErrorInfo) -> StepError | None:
        """The declared error that ``info`` describes, or ``None`` if this step declares none of that name.

        Raises:
            NotDecodable: its stored fields no longer fit.
        """
        codec = self.errors.get(info.type)
        if codec is None or info.fields is None:
            return None
        return codec.loads(json.dumps(dict(info.fields)))

    @overload
    def compensation(self, function: Callable[Q, S], /) -> Compensation[Q, S]: ...
    @overload
    def compensation(
        self, /, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, Q], S]], Compensation[Q, S]]: ...
    @overload
    def compensation(self, /, **options: Any) -> Callable[[Callable[Q, S]], Compensation[Q, S]]: ...

    def compensation(self, function: Any = None, /, **options: Any) -> Any:
        """Declare what undoes this step.

        The compensation receives the step's result, then those of the step's arguments it names. It is retried by
        default. Options are those of ``kit.step``, without ``expires``, ``acks_late``, ``throws`` and ``unknown_for``.

        Raises:
            DefinitionError: its parameters do not fit, or the step has one already.
        """
        return self._declare(function, options, Compensation, "undo", "compensation", caller_frame(1))

    @overload
    def probe(self, function: Callable[Q, S], /) -> Probe[Q, S]: ...
    @overload
    def probe(
        self, /, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, Q], S]], Probe[Q, S]]: ...
    @overload
    def probe(self, /, **options: Any) -> Callable[[Callable[Q, S]], Probe[Q, S]]: ...

    def probe(self, function: Any = None, /, **options: Any) -> Any:
        """Declare how to find out whether this step took effect, for when its outcome is unknown.

        The probe receives those of the step's arguments it names, and answers :class:`Happened` with the result or
        :class:`NotHappened`.

        Raises:
            DefinitionError: its parameters do not fit, or the step has one already.
        """
        return self._declare(function, options, Probe, "find_out", "probe", caller_frame(1))

    def _declare(
        self,
        function: Callable[..., Any] | None,
        given: Mapping[str, Any],
        kind: type[Compensation[..., Any]] | type[Probe[..., Any]],
        slot: str,
        what: str,
        frame: FrameType | None,
    ) -> Any:
        def declare(function: Callable[..., Any]) -> Any:
            where = location(function)
            existing = getattr(self, slot)
            if existing is not None:
                raise DefinitionError(
                    f"{where}: {self.label} has a {what} already, declared at {existing.where}"
                )
            options = compensation_options(given, where, f"a {what}")
            name = options.name or (self.name_task or _plain_name)(function)
            declared = kind(self, function, options, name=name, frame=frame)
            declared.find_task = self.find_task
            if self.on_declared is not None:
                self.on_declared(declared)
            setattr(self, slot, declared)
            return declared

        return declare if function is None else declare(function)

    def set(self, **options: Any) -> Self:
        """This step with options of its own for one call: ``name queue priority expires time_limit``.

        Raises:
            UnknownOption: there is no such option for one call.
        """
        changed = copy.copy(self)
        changed.overrides = {**self.overrides, **call_options(options, f"{self.label}.set()")}
        return changed

    @property
    def row_name(self) -> str:
        """The name of this call in the ledger."""
        return cast(str, self.overrides.get("name", self.label))

    @property
    def expires(self) -> timedelta | None:
        """How long this call may wait to be started."""
        return cast("timedelta | None", self.overrides.get("expires", self.options.expires))

    @property
    def time_limit(self) -> timedelta | None:
        """How long this call may run."""
        return cast("timedelta | None", self.overrides.get("time_limit", self.options.time_limit))

    @property
    def queue(self) -> str | None:
        """The queue of this call, or ``None`` for Celery's routing."""
        return cast("str | None", self.overrides.get("queue", self.options.queue))

    @property
    def priority(self) -> int | None:
        """The message priority of this call."""
        return cast("int | None", self.overrides.get("priority", self.options.priority))


class AsyncStep(Step[P, R]):
    """A step whose function is ``async def``; called directly it returns the coroutine."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:  # type: ignore[override]
        """Call the function itself, outside any saga."""
        return cast("Awaitable[R]", super().__call__(*args, **kwargs))


class ErrorCodec:
    """Stores and rebuilds one declared business error by its fields' types."""

    __slots__ = ("_arguments", "cls")

    def __init__(self, cls: type[StepError], where: str, frame: FrameType | None = None) -> None:
        self.cls = cls
        try:
            # A field-less StepError has Exception's own __init__, which takes no fields.
            self._arguments = (
                FunctionSignature(cls.__init__, skip=1, frame=frame).arguments
                if cls is not StepError
                else None
            )
        except DefinitionError as exc:
            raise DefinitionError(
                f"{where}: a field of the declared error {cls.__name__} cannot be stored: {exc}"
            ) from exc

    def dumps(self, error: StepError) -> str:
        """The error's fields as JSON text.

        Raises:
            InvalidInput, NotEncodable: a field does not fit its declared type.
        """
        if self._arguments is None:
            return "{}"
        own = {field.name for field in fields(self.cls)}  # type: ignore[arg-type]  # a subclass may have more
        return self._arguments.dumps(
            (), {name: value for name, value in error.fields().items() if name in own}
        )

    def loads(self, text: str) -> StepError:
        """The error rebuilt from its stored fields.

        Raises:
            NotDecodable: the stored fields no longer fit.
        """
        if self._arguments is None:
            return self.cls()
        args, kwargs = self._arguments.loads(text)
        return self.cls(*args, **kwargs)


def _step_errors(options: StepOptions) -> list[type[StepError]]:
    return [cls for cls in options.retry.throws if issubclass(cls, StepError)]


def _plain_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__name__}"
