"""A declared saga that can be started: what ``kit.saga`` and ``shared_saga`` return."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Never, NoReturn, Protocol, TypeVar

from sagakit.client.handle import SagaHandle
from sagakit.client.starting import IfExists
from sagakit.clock import Duration
from sagakit.codec import to_python
from sagakit.definition.saga import SagaDefinition
from sagakit.errors import ConfigurationError, UseAStep
from sagakit.running import in_body

In = TypeVar("In")
R = TypeVar("R")

_NO_INPUT: Any = None


class Starter(Protocol):
    """What starts sagas: implemented by the kit."""

    def start(self, definition: "StartableSaga[Any, R]", input: Any, **options: Any) -> SagaHandle[R]: ...

    async def astart(
        self, definition: "StartableSaga[Any, R]", input: Any, **options: Any
    ) -> SagaHandle[R]: ...

    def start_many(
        self, definition: "StartableSaga[Any, R]", inputs: Iterable[Any], **options: Any
    ) -> list[SagaHandle[R]]: ...

    def task(self, name: str) -> Any:
        """The Celery task of this name."""


class StartableSaga(SagaDefinition[In, R]):
    """A saga. Besides what is here it has all a Celery task has: attributes it lacks are those of its task."""

    find_starter: Callable[[], Starter] | None = None

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
        **unknown: Never,
    ) -> SagaHandle[R]:
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
            InvalidInput: the input does not fit the body's type, or there is no such option.
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
            **unknown,  # refused, with what to do instead
        )

    async def astart(self, input: In = _NO_INPUT, **options: Any) -> SagaHandle[R]:
        """:meth:`start` for async code; ``session`` may be an ``AsyncSession`` or ``AsyncConnection``."""
        return await self._starter.astart(self, input, **options)

    def start_many(self, inputs: Iterable[Any], **options: Any) -> list[SagaHandle[R]]:
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

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A saga is not called.

        Raises:
            UseAStep: always; it says how a saga is started.
        """
        raise UseAStep(
            f"{self.label} is a saga: start it with .start(input), or run its body in a test with "
            "sagakit.testing.run_saga()"
        )

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`start` under Celery's name: writes the saga's row here and now."""
        return self.task.delay(*args, **kwargs)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`start` under Celery's name; ``task_id`` becomes the saga's id."""
        return self.task.apply_async(*args, **kwargs)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The input as JSON values, since a signature may travel in a message of another task."""
        if len(args) + len(kwargs) != 1 or not self.takes_input:
            return args, kwargs

        def plain(value: Any) -> Any:
            return to_python(self.input_codec.dumps(value))

        return tuple(plain(value) for value in args), {name: plain(value) for name, value in kwargs.items()}

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature: for beat, or inside a chain. Run by a worker it starts the saga and returns its id."""
        args, kwargs = self._plain(args, kwargs)
        return self.task.s(*args, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """An immutable Celery signature."""
        args, kwargs = self._plain(args, kwargs)
        return self.task.si(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "registry":
            raise AttributeError(name)
        return getattr(self.task, name)
