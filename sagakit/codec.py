"""Values to JSON text and back, by their declared types, exactly.

An annotated value goes through pydantic; an unannotated one must be plain JSON already, since nothing says what it
should come back as. JSON is the only format: nothing stored or received is ever unpickled.
"""

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypedDict

from sagakit.errors import InvalidInput, NotDecodable, NotEncodable, PayloadTooLarge

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONFIG = ConfigDict(
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
)


def _plain(value: Any) -> Any:
    """Let plain JSON through and nothing else."""
    fault = _fault(value, "")
    if fault:
        raise ValueError(f"{fault}; annotate the parameter with its type, or pass plain JSON")
    return value


def _fault(value: Any, where: str) -> str | None:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return None
    if kind is float:
        return None if math.isfinite(value) else f"{value!r}{where} is not JSON"
    if kind is list:
        entries: Any = enumerate(value)
    elif kind is dict:
        odd = next((key for key in value if type(key) is not str), None)
        if odd is not None:
            return f"the key {odd!r}{where} is not a string"
        entries = value.items()
    else:
        return f"a {kind.__name__}{where} is not plain JSON"
    for key, item in entries:
        fault = _fault(item, f"{where or ' at '}[{key!r}]")
        if fault:
            return fault
    return None


PlainJson = Annotated[Any, BeforeValidator(_plain)]
"""The type of what is not annotated."""


def build_adapter(annotation: Any) -> TypeAdapter[Any]:
    """A pydantic adapter for one annotation.

    Raises:
        pydantic.PydanticSchemaGenerationError: pydantic cannot handle the type.
    """
    if annotation is Any:
        annotation = PlainJson
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError as exc:
        if exc.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model or dataclass brings its own configuration


def build_fields_adapter(fields: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """A pydantic adapter for named values, such as the arguments of one call."""
    annotations = {name: PlainJson if kind is Any else kind for name, kind in fields.items()}
    record = TypedDict("record", annotations)  # type: ignore[operator]
    record.__pydantic_config__ = _CONFIG
    return TypeAdapter(record)


class Codec(Generic[T]):
    """Encodes and decodes values of one declared type.

    Args:
        adapter: the pydantic adapter.
        what: names the value in errors, e.g. ``"the result of charge_payment"``.
    """

    __slots__ = ("_adapter", "what")

    def __init__(self, adapter: TypeAdapter[T], what: str) -> None:
        self._adapter = adapter
        self.what = what

    def check(self, value: Any) -> T:
        """Validate a value given by a caller.

        Raises:
            InvalidInput: it does not fit the type; the message names the field.
        """
        try:
            return self._adapter.validate_python(value)
        except ValidationError as exc:
            raise InvalidInput(f"{self.what} does not fit: {explain(exc)}") from exc

    def dumps(self, value: Any) -> str:
        """Encode.

        Raises:
            InvalidInput: the value does not fit the declared type.
            NotEncodable: it fits, but JSON cannot hold it.
        """
        checked = self.check(value)
        try:
            return self._adapter.dump_json(checked, warnings="error").decode()
        except (PydanticSerializationError, UnicodeError, ValueError) as exc:
            raise NotEncodable(f"{self.what} cannot be stored as JSON: {exc}") from exc

    def loads(self, text: str) -> T:
        """Decode.

        Raises:
            NotDecodable: the stored text no longer fits the declared type.
        """
        try:
            return self._adapter.validate_json(text)
        except ValidationError as exc:
            raise NotDecodable(f"{self.what}, as stored, no longer fits its type: {explain(exc)}") from exc


def explain(exc: ValidationError) -> str:
    """A validation error on one line: where, what was wrong, what was given."""
    parts = []
    for error in exc.errors(include_url=False)[:3]:
        where = ".".join(str(item) for item in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        given = "" if error["type"] in ("missing", "json_invalid") else f" (got {type(error['input']).__name__})"
        parts.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    more = exc.error_count() - 3
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def canonical(text: str) -> Any:
    """JSON text as a value that compares equal however its keys were ordered."""
    return to_python(text)


def to_python(text: str) -> Any:
    """Plain JSON text as plain Python values."""
    return _ANY.validate_json(text)


def to_text(value: Any) -> str:
    """Plain Python values as JSON text."""
    return to_json(value, inf_nan_mode="strings", bytes_mode="base64").decode()


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def bounded(text: str, what: str, *, limit: int, warning: int) -> str:
    """Return ``text`` if it is within the size bound.

    Args:
        text: the encoded value.
        what: names it in the error.
        limit: bytes above which it is refused.
        warning: bytes above which it is logged.

    Raises:
        PayloadTooLarge: it is over ``limit``.
    """
    if len(text) <= warning // 4:  # UTF-8 takes four bytes a character at most: no need to count
        return text
    size = len(text.encode())
    if size > limit:
        raise PayloadTooLarge(
            f"{what} is {size:,} bytes of JSON, over the limit of {limit:,}: store it elsewhere and pass a reference, "
            "or raise sagakit_payload_limit"
        )
    if size > warning:
        logger.warning("%s is large: %s bytes of JSON", what, f"{size:,}")
    return text
