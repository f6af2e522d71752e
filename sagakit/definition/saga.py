"""A declared saga: its body, its input and result types, its version."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sagakit.codec import Codec
from sagakit.definition.signature import FunctionSignature, location
from sagakit.errors import DefinitionError, suggest

if TYPE_CHECKING:
    from sagakit.definition.registry import Registry

In = TypeVar("In")
R = TypeVar("R")


class SagaDefinition(Generic[In, R]):
    """A saga as declared with ``kit.saga`` or ``shared_saga``.

    Attributes:
        body: the ``async def`` function.
        name: Celery task name.
        version: the version new instances start with.
        where: ``file:line`` of the body.
        hash: of the body's code, kept with each instance.
        registry: where it is registered, with the steps it may use.
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
        self.registry: Registry | None = None
        self.__name__ = body.__name__
        self.__doc__ = body.__doc__
        self.__module__ = body.__module__
        self.__wrapped__ = body

    @property
    def label(self) -> str:
        """The body's plain name."""
        return self.body.__name__

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
