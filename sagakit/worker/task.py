"""The Celery tasks: one for each step, compensation and probe, one for each saga, and ``sagakit.advance``."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from celery import Celery
from celery.app.task import Task
from celery.exceptions import Retry
from sqlalchemy.exc import DBAPIError

from sagakit.clock import duration
from sagakit.codec import to_python
from sagakit.coordinator.ledger import Limits
from sagakit.definition.retry import RetryPolicy
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import TaskFunction
from sagakit.dispatch.envelope import ADVANCE_TASK, find_header, read_delivery
from sagakit.errors import DefinitionError, InvalidInput, SagakitError
from sagakit.running import in_body
from sagakit.store import is_outage
from sagakit.worker.context import StepContext, StepRetry, current_step
from sagakit.worker.executor import Executed, Executor
from sagakit.worker.perform import Again, perform
from sagakit.worker.undisturbed import undisturbed

logger = logging.getLogger(__name__)

_CELERY_DEFAULT_RETRIES = 3
_NOTHING_TO_DO = "nothing to do"
_OUTAGE_PAUSE = 5.0
"""Seconds before a saga is tried to be started again while the database is away."""


class Runtime(Protocol):
    """What tasks need of the kit."""

    @property
    def executor(self) -> Executor: ...

    def ready(self) -> None:
        """Make sure this process may claim: outside a worker it needs an identity with a lease."""

    def advance(self, saga_id: str) -> None: ...

    def newest(self, name: str) -> SagaDefinition[Any, Any]: ...

    def start_from_task(
        self, definition: SagaDefinition[Any, Any], task_id: str, args: Any, kwargs: Any
    ) -> str: ...

    def start_from_call(
        self, definition: SagaDefinition[Any, Any], args: Any, kwargs: Any, options: Any
    ) -> Any: ...


class Hidden:
    """A value that goes through Celery's hooks without being shown in its logs and events."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__}>"


class StepTask(Task):
    """The Celery task of a step, compensation or probe: mixed into the task class the user chose."""

    abstract = True
    typing = False
    Request = "sagakit.worker.request:StepRequest"
    sagakit_function: TaskFunction[..., Any]
    sagakit_runtime: Runtime
    sagakit_policy: RetryPolicy | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly:
            return self.sagakit_function(*args, **kwargs)
        header = find_header(request)
        if header is None:
            return self._run_plainly(request, args, kwargs)
        delivery = read_delivery(header)
        if delivery is None:
            logger.error("a message for %s is refused: its sagakit header is garbled", self.name)
            return _NOTHING_TO_DO
        self.sagakit_runtime.ready()
        executed = self.sagakit_runtime.executor.execute(delivery, self.policy, request)
        if executed is None:
            return _NOTHING_TO_DO
        request.sagakit_executed = executed
        return _report(executed)

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy in force: the step's own, as Celery's base classes and annotations may have changed it."""
        if self.sagakit_policy is None:
            type(self).sagakit_policy = policy_of(self, self.sagakit_function.options.retry)
        assert self.sagakit_policy is not None
        return self.sagakit_policy

    def _run_plainly(self, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The task was sent with ``.delay()``, outside any saga: run it as Celery would."""
        arguments = self.sagakit_function.signature.arguments
        args, kwargs = arguments.loads(arguments.dumps(args, kwargs))
        context = StepContext(
            saga_id=None,
            saga_name=None,
            step_name=self.sagakit_function.label,
            position=None,
            attempt=(request.retries or 0) + 1,
            idempotency_key=request.id,
            request=request,
        )
        ended = perform(
            self.sagakit_function,
            args,
            kwargs,
            context,
            policy=self.policy,
            retries=request.retries or 0,
            tainted=False,
            limits=Limits(),
        )
        if isinstance(ended, Again):
            self._retry_plainly(ended)
        if ended.raised is not None:
            raise ended.raised
        return to_python(ended.result or "null")  # what a chain or a result backend can carry

    def _retry_plainly(self, again: Again) -> NoReturn:
        """There is no row to record a retry on: send the task again, as Celery does."""
        raised = again.raised
        if isinstance(raised, Retry) and not isinstance(raised, StepRetry):
            raise raised  # Celery's own, which has sent the message or wants none sent
        cause = raised.exc if isinstance(raised, StepRetry) else raised
        raise super().retry(
            exc=cause, countdown=again.delay.total_seconds(), max_retries=self.policy.max_retries
        )

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send it as an ordinary task, outside any saga; its arguments are encoded by their declared types."""
        function = self.sagakit_function
        function._refuse_in_body("sent with .apply_async()")
        args, kwargs = function.signature.arguments.plain(tuple(args or ()), dict(kwargs or {}))
        if function.options.queue is not None:
            options.setdefault("queue", function.options.queue)  # as a task attribute it is deprecated
        return super().apply_async(args, kwargs, *more, **options)

    def retry(
        self, *args: Any, exc: BaseException | None = None, countdown: Any = None, eta: Any = None, **kw: Any
    ) -> Any:
        """``self.retry()`` of a step: durable, recorded on its row."""
        if find_header(self.request) is None:
            return super().retry(*args, exc=exc, countdown=countdown, eta=eta, **kw)
        current_step.retry(exc, countdown=countdown, eta=eta)

    # Celery calls these with the message's arguments, which are none: pass on the real ones.

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        value = retval.value if isinstance(retval, Hidden) else retval
        super().on_success(value, task_id, *self._real(args, kwargs))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        super().on_failure(exc, task_id, *self._real(args, kwargs), einfo)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        super().on_retry(exc, task_id, *self._real(args, kwargs), einfo)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        value = retval.value if isinstance(retval, Hidden) else retval
        super().after_return(status, value, task_id, *self._real(args, kwargs), einfo)

    def _real(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        executed = getattr(self.request, "sagakit_executed", None)
        return (executed.args, executed.kwargs) if isinstance(executed, Executed) else (args, kwargs)


def _report(executed: Executed) -> Any:
    """Tell Celery what became of the step, in its own terms: a value, an exception, or ``Retry``."""
    ended = executed.ended
    if isinstance(ended, Again):
        if isinstance(ended.raised, Retry):
            raise ended.raised
        raise Retry(exc=ended.raised, when=ended.delay.total_seconds()) from ended.raised
    if ended.raised is not None:
        raise ended.raised
    return Hidden(ended.returned)


def policy_of(task: Any, own: RetryPolicy) -> RetryPolicy:
    """The retry policy of a Celery task: its attributes, which base classes and ``task_annotations`` may set."""

    def given(name: str, default: Any) -> Any:
        value = getattr(task, name, None)
        return default if value is None else value

    def period(name: str, default: timedelta) -> timedelta:
        return duration(given(name, default))

    backoff = given("retry_backoff", own.retry_backoff)
    autoretry_for = tuple(given("autoretry_for", own.autoretry_for))
    max_retries = getattr(task, "max_retries", own.max_retries)
    return RetryPolicy(
        automatic=own.automatic or bool(autoretry_for or backoff) or max_retries != _CELERY_DEFAULT_RETRIES,
        max_retries=max_retries,
        default_retry_delay=period("default_retry_delay", own.default_retry_delay),
        retry_backoff=float(backoff),
        retry_backoff_max=period("retry_backoff_max", own.retry_backoff_max),
        retry_jitter=bool(given("retry_jitter", own.retry_jitter)),
        autoretry_for=autoretry_for,
        dont_autoretry_for=tuple(given("dont_autoretry_for", own.dont_autoretry_for)),
        throws=tuple(given("throws", own.throws)),
    )


def _attributes(function: TaskFunction[..., Any]) -> dict[str, Any]:
    """A step's options as Celery task attributes, where ``task_annotations`` can reach them."""
    options, retry = function.options, function.options.retry
    attributes: dict[str, Any] = {
        "max_retries": retry.max_retries,
        "default_retry_delay": retry.default_retry_delay.total_seconds(),
        "throws": retry.throws,
        "acks_late": options.acks_late,
        # The message of a step whose worker died is not requeued: its row is freed at once and sent anew, under a
        # new token, so that a redelivered copy and the new one cannot both run.
        "reject_on_worker_lost": False,
        "acks_on_failure": True,
        "acks_on_timeout": True,
    }
    if retry.automatic:
        attributes |= {
            "retry_backoff": retry.retry_backoff,
            "retry_backoff_max": retry.retry_backoff_max.total_seconds(),
            "retry_jitter": retry.retry_jitter,
        }
    return attributes


def create_step_task(app: Celery, function: TaskFunction[..., Any], runtime: Runtime) -> Any:
    """Register the Celery task of a step, compensation or probe under its real name.

    Raises:
        DefinitionError: a task of the app's own has this name.
    """
    _refuse_taken(app, function.name, function.where, StepTask)
    base = function.options.base or app.Task
    attributes: dict[str, Any] = {
        "abstract": True,
        "sagakit_function": function,
        "sagakit_runtime": runtime,
        "__module__": function.__module__,
        "__call__": StepTask.__call__,
    }
    cls = type(f"{function.label}_task", (StepTask, base), attributes)
    return app.task(
        name=function.name, base=cls, lazy=False, shared=False, **_attributes_for(base, function)
    )(function.function)


def _refuse_taken(app: Celery, name: str, where: str, ours: type[Task]) -> None:
    taken = app.tasks.get(name)
    if taken is not None and not isinstance(taken, ours):
        raise DefinitionError(
            f"{where}: the app has a Celery task named {name!r} already ({type(taken).__module__}): remove it, or give "
            "one of them another name=..."
        )


def _attributes_for(base: type, function: TaskFunction[..., Any]) -> dict[str, Any]:
    """Attributes to set, except those the user's own task class sets and the step leaves alone."""
    attributes = _attributes(function)
    if not function.options.retry.automatic:
        for name in ("max_retries", "default_retry_delay"):
            attributes.pop(name)
    return attributes


class SagaTask(Task):
    """The Celery task of a saga: sent by beat or in a chain, it starts one; so does the caller in Python."""

    abstract = True
    typing = False
    # Until the row is written the message is all there is of the saga: it must outlive its process and an outage.
    acks_late = True
    reject_on_worker_lost = True
    max_retries = None
    sagakit_runtime: Runtime

    @property
    def sagakit_definition(self) -> SagaDefinition[Any, Any]:
        """The saga in its newest version: versions share one task, and new instances start with the newest."""
        return self.sagakit_runtime.newest(self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        task_id = self.request.id
        if task_id is None or self.request.called_directly:
            raise InvalidInput(
                f"{self.name} is a saga: start it with .start(input), or run its body in a test with "
                "sagakit.testing.run_saga()"
            )
        try:
            return self.sagakit_runtime.start_from_task(self.sagakit_definition, task_id, args, kwargs)
        except DBAPIError as exc:
            if not is_outage(exc):
                raise
            raise self.retry(exc=exc, countdown=_OUTAGE_PAUSE) from exc

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Start the saga here and now; a message is sent only where Celery needs one: from beat, or inside a canvas."""
        if in_body():
            raise SagakitError(f"{self.name} was started directly in a saga's body: start it in a step")
        options = {
            name: value for name, value in options.items() if value is not None
        }  # Celery's own defaults
        if _needs_message(options):
            args, kwargs = tuple(args or ()), dict(kwargs or {})
            try:
                text = _input_text(self.sagakit_definition, args, kwargs)
                args, kwargs = (to_python(text),) if text is not None else (), {}
            except InvalidInput:
                # Sent by a worker for a task that has succeeded: not that one is to fail, but this one, as it runs.
                if not options.get("parent_id"):
                    raise
            return super().apply_async(args, kwargs, *more, **options)
        return self.sagakit_runtime.start_from_call(self.sagakit_definition, args, kwargs, options)


# What Celery itself adds where it dispatches: beat, the members of a canvas, the next link of a chain, a retry.
_MESSAGE_OPTIONS = (
    "link", "link_error", "chain", "chord", "group_id", "producer", "connection", "retries",
    "reply_to", "parent_id", "root_id", "group_index", "stamped_headers",
)  # fmt: skip


def _needs_message(options: Mapping[str, Any]) -> bool:
    return any(options.get(name) for name in _MESSAGE_OPTIONS)


def _input_text(
    definition: SagaDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    given = saga_input(definition, args, kwargs)
    return definition.input_codec.dumps(given) if definition.takes_input else None


def saga_input(definition: SagaDefinition[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The one input of a saga out of a call's arguments.

    Raises:
        InvalidInput: there are more or fewer.
    """
    values = [*args, *kwargs.values()]
    wanted = 1 if definition.takes_input else 0
    if len(values) != wanted:
        raise InvalidInput(f"saga {definition.label} takes {wanted} input(s), {len(values)} given")
    return values[0] if values else None


def create_saga_task(app: Celery, definition: SagaDefinition[Any, Any], runtime: Runtime) -> Any:
    """Register the Celery task of a saga under its real name; its versions share it."""
    _refuse_taken(app, definition.name, definition.where, SagaTask)
    if definition.name in app.tasks:
        return app.tasks[definition.name]
    cls = type(
        f"{definition.label}_saga",
        (SagaTask, app.Task),
        {
            "abstract": True,
            "sagakit_runtime": runtime,
            "__module__": definition.__module__,
            "__call__": SagaTask.__call__,
        },
    )
    return app.task(name=definition.name, base=cls, lazy=False, shared=False)(_named(definition))


def _named(definition: SagaDefinition[Any, Any]) -> Callable[..., Any]:
    def start(*args: Any, **kwargs: Any) -> None:
        """Replaced by ``SagaTask.__call__``; Celery wants a function."""

    start.__name__ = start.__qualname__ = definition.label
    start.__doc__ = definition.__doc__
    start.__module__ = definition.__module__
    return start


def create_advance_task(app: Celery, runtime: Runtime) -> Any:
    """Register ``sagakit.advance``, which lets a worker look at a saga."""

    @app.task(
        name=ADVANCE_TASK,
        lazy=False,
        shared=False,
        bind=True,
        acks_late=True,
        ignore_result=True,
        Request=StepTask.Request,  # tells the sweep how far its queue has been read
    )
    def advance(task: Any) -> None:
        header = find_header(task.request)
        saga_id = header.get("saga_id") if isinstance(header, Mapping) else None
        if not isinstance(saga_id, str):
            logger.error("a message for %s is refused: its sagakit header is garbled", ADVANCE_TASK)
            return
        runtime.ready()
        with undisturbed():
            runtime.advance(saga_id)

    return advance
