"""Values to JSON text and back, by their declared types, exactly.

An annotated value goes through pydantic; an unannotated one must be plain JSON already, since nothing says what it
should come back as. JSON is the only format: nothing stored or received is ever unpickled.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypeAliasType, TypedDict

from sagakit.errors import InvalidInput, NotDecodable, NotEncodable, PayloadTooLarge

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONFIG = ConfigDict(
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
)


_HINT = ": give the model `model_config = ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')`"
"""Where the configuration above does not reach: a model brings its own."""


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
    # An alias takes the configuration where a bare dataclass would not: a value must be encoded in the same way
    # wherever it stands, since a step's result becomes an argument of its compensation.
    alias: Any = TypeAliasType("value", annotation)
    return TypeAdapter(alias, config=_CONFIG)


def build_fields_adapter(fields: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """A pydantic adapter for named values, such as the arguments of one call."""
    annotations = {name: PlainJson if kind is Any else kind for name, kind in fields.items()}
    record = cast(Any, TypedDict)("record", annotations)  # mypy wants the keys spelled out
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
            text = self._adapter.dump_json(
                checked, by_alias=False, round_trip=True, warnings="error"
            ).decode()
        except (PydanticSerializationError, UnicodeError, ValueError) as exc:
            raise NotEncodable(
                f"{self.what} cannot be stored as JSON: {exc}{_HINT if 'utf-8 seq' in str(exc) else ''}"
            ) from exc
        self._require_round_trip(checked, text)
        return text

    def _require_round_trip(self, value: T, text: str) -> None:
        """Refuse what JSON text would not give back: a secret, a NaN in a model, a UUID where a string is as good."""
        try:
            back = self._adapter.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as exc:
            raise NotEncodable(
                f"{self.what} can be stored as JSON, but not read back: {explain(exc)}"
            ) from exc
        if not _same(value, back):
            raise NotEncodable(
                f"{self.what} does not come back from JSON as itself: {_difference(value, back)}; declare its type "
                "more narrowly"
            )

    def loads(self, text: str) -> T:
        """Decode.

        Raises:
            NotDecodable: the stored text no longer fits the declared type.
        """
        try:
            return self._adapter.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as exc:
            raise NotDecodable(f"{self.what}, as stored, no longer fits its type: {explain(exc)}") from exc


def _same(one: Any, other: Any) -> bool:
    try:
        if one == other:
            return True
    except Exception:  # an array, say, whose comparison is no yes or no: then the type knows best
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.isnan(one) and math.isnan(other)
    parts = _parts(one, other)
    if parts is None:
        return getattr(type(one), "__eq__", None) is object.__eq__
    return all(_same(mine, theirs) for _, mine, theirs in parts)


def _difference(one: Any, other: Any, where: str = "") -> str:
    """Where two values first differ, and how; without the values, which may be nobody's business."""
    for key, mine, theirs in _parts(one, other) or () if type(one) is type(other) else ():
        if not _same(mine, theirs):
            return _difference(mine, theirs, f"{where}.{key}" if where else str(key))
    before, after = type(one).__name__, type(other).__name__
    return f"{where + ': ' if where else ''}{before} comes back as {'another ' if before == after else ''}{after}"


def _parts(one: Any, other: Any) -> list[tuple[Any, Any, Any]] | None:
    """The named parts of two values of one type, side by side; ``None`` if they have none, or not the same."""
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [(index, mine, theirs) for index, (mine, theirs) in enumerate(zip(one, other, strict=True))]
    if isinstance(one, dict) and one.keys() == other.keys():
        return [(key, one[key], other[key]) for key in one]
    names: list[str] = []
    if isinstance(one, BaseModel):  # its private attributes are no part of it
        names = [*type(one).model_fields, "__pydantic_extra__"]
    elif is_dataclass(one):
        names = [field.name for field in fields(one)]
    return [(name, getattr(one, name), getattr(other, name)) for name in names] if names else None


def explain(exc: ValidationError) -> str:
    """A validation error on one line: where, what was wrong, what was given."""
    parts = []
    for error in exc.errors(include_url=False)[:3]:
        where = ".".join(str(item) for item in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        given = (
            "" if error["type"] in ("missing", "json_invalid") else f" (got {type(error['input']).__name__})"
        )
        parts.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    more = exc.error_count() - 3
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def canonical(text: str) -> Any:
    """JSON text as a value that compares equal however its keys were ordered and its numbers written."""
    return _without_bools(to_python(text))


def _without_bools(value: Any) -> Any:
    """``value`` with its booleans replaced, since to Python ``True == 1``, but not to JSON."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_without_bools(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_bools(item) for key, item in value.items()}
    return value


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
            f"{what}: {size:,} bytes of JSON, over the limit of {limit:,}; store it elsewhere and pass a reference, "
            "or raise sagakit_payload_limit"
        )
    if size > warning:
        logger.warning("%s: %s bytes of JSON is a lot", what, f"{size:,}")
    return text
