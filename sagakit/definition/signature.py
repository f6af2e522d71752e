"""A declared function's parameters: read from its signature and annotations, and encoded as one JSON object."""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FrameType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from sagakit.codec import Codec, PlainJson, build_adapter, build_fields_adapter, to_python
from sagakit.errors import DefinitionError, InvalidInput, NotDecodable

MISSING = inspect.Parameter.empty


def location(function: Callable[..., Any]) -> str:
    """``file:line`` of a function, for errors."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def caller_frame(depth: int) -> FrameType | None:
    """The frame ``depth`` calls above the caller; local classes in annotations are looked up there."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        return None


class FunctionSignature:
    """Names, types and defaults of a function's parameters, its first ``skip`` ones left out.

    Args:
        function: the user's function.
        skip: leading parameters that sagakit fills (the bound context, the ``Saga``).
        frame: where the function was declared.
        concerns: the step whose compensation or probe this is; parameters that are not annotated have its types.
        takes_result: the first parameter receives the result of that step.

    Raises:
        DefinitionError: a type cannot be resolved or handled, or there are too few parameters.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        skip: int = 0,
        frame: FrameType | None = None,
        concerns: "FunctionSignature | None" = None,
        takes_result: bool = False,
    ) -> None:
        self.name = function.__name__
        self.where = location(function)
        self._hints = self._read_hints(function, frame)
        signature = inspect.signature(function)
        everything = list(signature.parameters.values())
        if len(everything) < skip:
            raise DefinitionError(
                f"{self.where}: {self.name} needs a first parameter for what sagakit passes to it"
            )
        self.parameters = {p.name: p for p in everything[skip:]}
        self._signature = signature.replace(parameters=everything[skip:], return_annotation=MISSING)
        self.inferred: set[str] = set()
        if concerns is not None:
            self._inherit(concerns, takes_result)
        self.arguments = self._argument_codec()

    def _read_hints(self, function: Callable[..., Any], frame: FrameType | None) -> dict[str, Any]:
        try:
            return get_type_hints(
                function, localns=dict(frame.f_locals) if frame else None, include_extras=True
            )
        except Exception as exc:
            raise DefinitionError(
                f"{self.where}: an annotation of {self.name} cannot be resolved: {exc}"
            ) from exc

    def _inherit(self, step: "FunctionSignature", takes_result: bool) -> None:
        """Give parameters that are not annotated the step's types, so that they receive what the step did."""
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in self._hints:
                continue
            self.inferred.add(name)
            kind = step.returns if index == 0 and takes_result else step.annotation(name)
            if kind is not Any:
                self._hints[name] = kind | None if parameter.default is None else kind

    def annotation(self, name: str) -> Any:
        """The type of a parameter as declared; ``Any`` if it is not annotated."""
        return self._hints.get(name, Any)

    @property
    def returns(self) -> Any:
        """The declared return type; ``Any`` if there is none."""
        return self._hints.get("return", Any)

    def codec(self, annotation: Any, what: str) -> Codec[Any]:
        """A codec for one of the function's types.

        Raises:
            DefinitionError: pydantic cannot handle the type.
        """
        return Codec(self._adapter(lambda: build_adapter(annotation), what), what)

    def _adapter(self, build: Callable[[], TypeAdapter[Any]], what: str) -> TypeAdapter[Any]:
        try:
            return build()
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError, NameError) as exc:
            reason = str(exc).partition("\n")[0]
            raise DefinitionError(f"{self.where}: {what} has a type that cannot be stored: {reason}") from exc

    def _argument_codec(self) -> "ArgumentCodec":
        fields: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            kind = self.annotation(name)
            if kind is Any:
                kind = PlainJson
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                kind = list[kind]  # type: ignore[valid-type]
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kind = dict[str, kind]  # type: ignore[valid-type]
            self._adapter(partial(build_adapter, kind), f"parameter {name!r} of {self.name}")
            fields[name] = kind
        adapter = self._adapter(lambda: build_fields_adapter(fields), f"{self.name}()")
        return ArgumentCodec(self._signature, Codec(adapter, f"the call {self.name}()"))


class ArgumentCodec:
    """The arguments of a call as one JSON object keyed by parameter, and back."""

    __slots__ = ("_codec", "_signature")

    def __init__(self, signature: inspect.Signature, codec: Codec[dict[str, Any]]) -> None:
        self._signature = signature
        self._codec = codec

    def dumps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Encode the arguments of a call; defaults are stored too, so that a later default cannot change them.

        Raises:
            InvalidInput: they do not fit the signature or its types.
            NotEncodable: JSON cannot hold one of them.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise InvalidInput(f"{self._codec.what} does not fit: {exc}") from None
        bound.apply_defaults()
        return self._codec.dumps(bound.arguments)

    def loads(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode into positional and keyword arguments.

        Raises:
            NotDecodable: the stored arguments no longer fit the signature.
        """
        return self._spread(self._codec.loads(text))

    def plain(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call as plain JSON values, for a message of Celery's own.

        Raises:
            InvalidInput: they do not fit the signature or its types.
            NotEncodable: JSON cannot hold one of them.
        """
        return self._spread(to_python(self.dumps(args, kwargs)))

    def _spread(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(values[name])
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(values[name])
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = values[name]
            else:
                args.append(values[name])
        return tuple(args), kwargs

    def choose(self, stored: str, *, result: str | None = None) -> str:
        """Pick this function's arguments out of another call's stored ones, by name.

        Args:
            stored: the other call's arguments, as :meth:`dumps` wrote them.
            result: encoded value for the first parameter, or ``None`` if that too is picked by name.

        Raises:
            NotDecodable: an argument this function needs is not among the stored ones.
        """
        given = json.loads(stored)
        parts = []
        for index, name in enumerate(self._signature.parameters):
            if index == 0 and result is not None:
                parts.append(f"{json.dumps(name)}:{result}")
            elif name in given:
                parts.append(f"{json.dumps(name)}:{json.dumps(given[name])}")
            else:
                raise NotDecodable(f"{self._codec.what} needs {name!r}, which the step was not called with")
        return "{" + ",".join(parts) + "}"


def admits_none(signature: FunctionSignature, name: str) -> bool:
    """Whether a parameter's declared type admits ``None``."""
    annotation = signature.annotation(name)
    if annotation is Any:
        return signature.parameters[name].default is None
    return type(None) in _members(annotation)


def fits(given: Any, wanted: Any) -> bool:
    """Whether a value of the type ``given`` may be passed as ``wanted``; true where classes alone cannot tell."""
    source = _class_of(given)
    options = [_class_of(member) for member in _members(wanted)]
    return source is None or any(option is None or _is_subclass(source, option) for option in options)


def _is_subclass(source: type, target: type) -> bool:
    try:
        return issubclass(source, target) or (target is float and source is int)
    except TypeError:  # a TypedDict or a protocol
        return True


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    annotation = _bare(annotation)
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _class_of(annotation: Any) -> type | None:
    """The class behind a type such as ``list[int]``; ``None`` if there is none, as for a union or ``Any``."""
    annotation = _bare(annotation)
    kind = get_origin(annotation) or annotation
    return kind if isinstance(kind, type) and kind not in (Any, Union, UnionType) else None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def type_name(annotation: Any) -> str:
    """A type as people write it."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def listed(names: Iterable[str]) -> str:
    """Names for an error message."""
    return ", ".join(names) or "none"
