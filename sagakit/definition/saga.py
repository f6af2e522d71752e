"""A declared saga: its body, its input and result types, and the ways to start it."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from types import CodeType, FrameType
from typing import Any, Generic, Literal, Protocol, TypeVar

from sagakit.clock import Duration
from sagakit.codec import Codec
from sagakit.definition.signature import FunctionSignature, location
from sagakit.errors import ConfigurationError, DefinitionError, UseAStep, suggest
from sagakit.running import in_body

In = TypeVar("In")
R = TypeVar("R")

IfExists = Literal["return", "raise", "restart_if_compensated"]


_NO_INPUT: Any = None


class Starter(Protocol):
    """What starts sagas: implemented by the kit."""

    def start(self, definition: "SagaDefinition[Any, Any]", input: Any, **options: Any) -> Any:
        """See :meth:`SagaDefinition.start`."""

    async def astart(self, definition: "SagaDefinition[Any, Any]", input: Any, **options: Any) -> Any:
        """See :meth:`SagaDefinition.astart`."""

    def start_many(
        self, definition: "SagaDefinition[Any, Any]", inputs: Iterable[Any], **options: Any
    ) -> Any:
        """See :meth:`SagaDefinition.start_many`."""

    def task(self, name: str) -> Any:
        """The Celery task of this name."""


class SagaDefinition(Generic[In, R]):
    """A saga as declared with ``kit.saga`` or ``shared_saga``.

    Attributes:
        body: the ``async def`` function.
        name: Celery task name.
        version: the version new instances start with.
        where: ``file:line`` of the body.
        hash: of the body's code, kept with each instance.
    """

    def __init__(
        self,
        body: Callable[..., Awaitable[R]],
        *,
        name: str,
        version: int = 1,
        frame: FrameType | None = None,
    ) -> None:
        self.where = location(body)
        self.body = body
        self.name = name
        self.version = version
        if not inspect.iscoroutinefunction(body):
            raise DefinitionError(
                f"{self.where}: the body of saga {body.__name__} must be `async def`, so that it can await its steps"
            )
        if type(version) is not int or version < 1:
            raise DefinitionError(f"{self.where}: version must be a whole number from 1, not {version!r}")
        signature = FunctionSignature(body, skip=1, frame=frame)
        if len(signature.parameters) > 1:
            raise DefinitionError(
                f"{self.where}: saga {body.__name__} takes {len(signature.parameters)} inputs "
                f"({', '.join(signature.parameters)}); a saga takes one: put them into one model or dataclass"
            )
        self.takes_input = bool(signature.parameters)
        input_type = (
            signature.annotation(next(iter(signature.parameters), "")) if self.takes_input else type(None)
        )
        self.input_codec: Codec[Any] = signature.codec(input_type, f"the input of {body.__name__}")
        self.result_codec: Codec[Any] = signature.codec(signature.returns, f"the result of {body.__name__}")
        self.hash = code_hash(body)
        self.find_starter: Callable[[], Starter] | None = None
        self.__name__ = body.__name__
        self.__doc__ = body.__doc__
        self.__module__ = body.__module__
        self.__wrapped__ = body

    @property
    def label(self) -> str:
        """The body's plain name."""
        return self.body.__name__

    @property
    def _starter(self) -> Starter:
        if in_body():
            raise UseAStep(
                f"{self.label} was started directly in a saga's body, where it would start again at every replay: "
                "start it in a step"
            )
        if self.find_starter is None:
            raise ConfigurationError(f"{self.name} belongs to no Celery app yet: create SagaKit(app) first")
        return self.find_starter()

    def start(
        self,
        input: In = _NO_INPUT,
        *,
        saga_id: str | None = None,
        session: Any = None,
        deadline: Duration | datetime | None = None,
        priority: int | None = None,
        tags: Mapping[str, Any] | None = None,
        if_exists: IfExists = "return",
    ) -> Any:
        """Start the saga; with ``session``, if and only if the session's transaction commits.

        Args:
            input: the body's input.
            saga_id: the saga's id; a fresh UUIDv7 by default. The same id with the same input is the same saga.
            session: a SQLAlchemy ``Session`` or ``Connection`` on the ledger's database, whose transaction is joined.
            deadline: when the saga must have completed, as a time or a duration from now; past it, it is compensated.
            priority: message priority of the saga's own messages.
            tags: plain JSON values to search by.
            if_exists: ``"return"`` the existing saga's handle, ``"raise"``, or ``"restart_if_compensated"``.

        Returns:
            The saga's handle.

        Raises:
            InvalidInput: the input does not fit the body's type.
            SagaIdConflict: the id is taken by a saga with another input or of another name.
            SagaExists: the id is taken, and ``if_exists`` is ``"raise"``.
            SessionMismatch: ``session`` is not on the ledger's database.
        """
        return self._starter.start(
            self,
            input,
            saga_id=saga_id,
            session=session,
            deadline=deadline,
            priority=priority,
            tags=tags,
            if_exists=if_exists,
        )

    async def astart(self, input: In = _NO_INPUT, **options: Any) -> Any:
        """:meth:`start` for async code; ``session`` may be an ``AsyncSession`` or ``AsyncConnection``."""
        return await self._starter.astart(self, input, **options)

    def start_many(self, inputs: Iterable[Any], **options: Any) -> Any:
        """Start many at once, in a few statements.

        Args:
            inputs: inputs, or pairs of an input and a mapping of its own options (``saga_id``, ``tags``, …).
            options: options for all of them, as in :meth:`start`.

        Returns:
            Their handles, in order.
        """
        return self._starter.start_many(self, inputs, **options)

    @property
    def task(self) -> Any:
        """The saga's Celery task."""
        return self._starter.task(self.name)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`start` under Celery's name: writes the saga's row here and now."""
        return self.task.delay(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`start` under Celery's name; ``task_id`` becomes the saga's id."""
        return self.task.apply_async(*args, **kwargs)

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature: for beat, or inside a chain. Run by a worker it starts the saga and returns its id."""
        return self.task.s(*args, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """An immutable Celery signature."""
        return self.task.si(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "find_starter":
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        return f"<saga {self.name} v{self.version}>"


_SAGA_OPTIONS = frozenset({"name", "version"})


def check_saga_options(given: Mapping[str, Any], where: str) -> None:
    """Refuse options of ``kit.saga`` that do not exist.

    Raises:
        DefinitionError: names the option and the nearest real one.
    """
    for name in given:
        if name not in _SAGA_OPTIONS:
            raise DefinitionError(f"{where}: a saga has no option {name!r}; {suggest(name, _SAGA_OPTIONS)}")


def code_hash(body: Callable[..., Any]) -> str:
    """A short hash of a body's compiled code, the same in every process that runs the same source."""
    digest = hashlib.sha256()

    def feed(code: CodeType) -> None:
        digest.update(code.co_code)
        digest.update(repr(code.co_names).encode())
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                feed(constant)
            elif not isinstance(constant, frozenset):  # its repr depends on the hash seed
                digest.update(repr(constant).encode())

    feed(body.__code__)
    return digest.hexdigest()[:16]
