"""What a saga's body is given: the ``Saga`` object."""

import random
import sys
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from sagakit.coordinator.futures import StepFuture
from sagakit.definition.step import Compensation, Probe, Step
from sagakit.errors import UseAStep

if TYPE_CHECKING:
    from sagakit.coordinator.commands import CommandLog
    from sagakit.coordinator.ledger import SagaRow

P = ParamSpec("P")
R = TypeVar("R")


class Saga:
    """The running saga, as its body sees it.

    Everything here is recorded or derived from what is recorded, so that the body does the same at every replay. Of
    plain asyncio, ``gather``, ``TaskGroup``, ``wait``, ``as_completed``, ``sleep``, ``timeout``, ``wait_for`` and
    ``create_task`` work and are durable.
    """

    __slots__ = ("_commands", "_random", "_row")

    def __init__(self, row: "SagaRow", commands: "CommandLog") -> None:
        self._row = row
        self._commands = commands
        # Seeding with a string is stable over processes; hash() of one is not.
        self._random = random.Random(f"{row.id}:{row.created_at.isoformat()}")

    @property
    def id(self) -> str:
        """The saga's id."""
        return self._row.id

    @property
    def name(self) -> str:
        """The saga's name."""
        return self._row.name

    @property
    def version(self) -> int:
        """The version of the body this instance started with."""
        return self._row.version

    def step(self, step: Step[P, R], *args: P.args, **kwargs: P.kwargs) -> StepFuture[R]:
        """Run a step as a Celery task, durably, and await its result.

        Args:
            step: the step; ``step.set(...)`` changes options for this call.
            args: the step's own arguments.
            kwargs: the step's own keyword arguments.

        Returns:
            An awaitable future of the step's result.

        Raises:
            InvalidInput: the arguments do not fit the step's signature or types.
            NotEncodable: an argument cannot be stored as JSON.
            PayloadTooLarge: the arguments are over the size bound.
            StepError: at the ``await``, a business error the step declares in ``throws``.
            StepFailed: at the ``await``, any other error, once retries are exhausted.
            StepUnknown: at the ``await``, nobody knows whether the step took effect.
            StepCancelled: at the ``await``, the step was revoked or expired before it ran.
        """
        if not isinstance(step, Step):
            raise UseAStep(_not_a_step(step))
        frame = sys._getframe(1)
        return self._commands.issue_step(step, args, dict(kwargs), (frame.f_code.co_filename, frame.f_lineno))

    def now(self) -> datetime:
        """The saga's own time, in UTC: monotonic, and the same at every replay."""
        return self._commands.time_at(self._commands.loop.time())

    def uuid4(self) -> uuid.UUID:
        """A random UUID that is the same at every replay."""
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    def random(self) -> float:
        """A random number from 0 to 1 that is the same at every replay."""
        return self._random.random()

    def __repr__(self) -> str:
        return f"<Saga {self.name} {self.id}>"


def _not_a_step(given: Any) -> str:
    if isinstance(given, Compensation | Probe):
        kind = type(given).__name__.lower()
        return f"{given.label} is a {kind}: sagakit runs it when needed; await the step {given.step.label} instead"
    if hasattr(given, "apply_async"):
        return f"{getattr(given, 'name', given)!s} is a plain Celery task: declare it with kit.step to use it in a saga"
    name = getattr(given, "__name__", repr(given))
    return f"saga.step() takes a step, not {cast(str, name)}: declare it with kit.step"
