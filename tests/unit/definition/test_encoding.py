"""Values to JSON and back, exactly, or not at all."""

# ruff: noqa: DTZ001  (naive datetimes are values like any other)

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, computed_field
from typing_extensions import TypedDict

from sagakit.codec import Codec, bounded, build_adapter, canonical
from sagakit.definition.signature import FunctionSignature
from sagakit.definition.step import Step
from sagakit.errors import (
    ErrorInfo,
    InvalidInput,
    NotDecodable,
    NotEncodable,
    PayloadTooLarge,
    StepCancelled,
    StepError,
    StepFailed,
    StepUnknown,
    describe,
)
from tests.unit.coordinator.driving import StandInKit


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Kind(StrEnum):
    GIFT = "gift"


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Item:
    sku: str
    price: Decimal
    photo: bytes = b""


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


class Address(BaseModel):
    street: str
    zone: Literal["eu", "us"] = "eu"


class Order(BaseModel):
    id: UUID
    at: datetime
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    items: list[Item]
    address: Address | None = None
    colour: Colour = Colour.RED
    discounts: dict[str, Decimal] = Field(default_factory=dict)


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    order_id: int = Field(alias="orderId")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.order_id


class Row(TypedDict):
    number: int
    photo: bytes


ORDER = Order(
    id=UUID(int=7),
    at=datetime(2030, 3, 31, 2, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    items=[Item("cup", Decimal("6.50"), b"\x00\xff\xfe"), Item("pot", Decimal("24.90"))],
    address=Address(street="Ó\N{SNOWMAN}", zone="us"),
    discounts={"new": Decimal("0.10")},
)


def codec(kind: Any) -> Codec[Any]:
    return Codec(build_adapter(kind), "the value")


def arguments(function: Callable[..., Any]) -> Any:
    return FunctionSignature(function).arguments


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (None, None),
        (bool, True),
        (int, 2**80),
        (float, 0.1),
        (float, 1e308),
        (float, float("-inf")),
        (str, "a\x00b\N{SNOWMAN}\N{SMILING FACE WITH SUNGLASSES}"),
        (bytes, bytes(range(256))),
        (Decimal, Decimal("1.10")),
        (Decimal, Decimal("-1E+3")),
        (UUID, UUID(int=2**127)),
        (datetime, datetime(2030, 1, 1, 12, 0, 0, 1)),
        (datetime, datetime(2030, 1, 1, 12, 0, tzinfo=UTC)),
        (datetime, datetime(2030, 7, 1, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))),
        (datetime, datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
        (date, date(2030, 2, 28)),
        (time, time(23, 59, 59, 999_999)),
        (timedelta, timedelta(days=-1, seconds=5, microseconds=7)),
        (Colour, Colour.RED),
        (Size, Size.SMALL),
        (Kind, Kind.GIFT),
        (Right, Right.READ | Right.WRITE),
        (IPv4Address, IPv4Address("127.0.0.1")),
        (PurePosixPath, PurePosixPath("/a/b")),
        (list[Decimal], [Decimal("1.0"), Decimal("2")]),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (set[UUID], {UUID(int=1), UUID(int=2)}),
        (frozenset[str], frozenset({"a", "b"})),
        (dict[str, datetime], {"a": datetime(2030, 1, 1)}),
        (dict[int, str], {1: "a"}),
        (dict[Colour, Size], {Colour.RED: Size.SMALL}),
        (int | str, "1"),
        (int | float, 1.0),
        (Decimal | None, None),
        (Item, ORDER.items[0]),
        (Point, Point(0.1, float("inf"))),
        (Row, {"number": 1, "photo": b"\xff"}),
        (Address, ORDER.address),
        (Order, ORDER),
        (list[Order], [ORDER]),
        (Item | Address, ORDER.address),
        (Item | Address, ORDER.items[0]),
        (Aliased, Aliased(orderId=3)),
        (Any, {"a": [1, 2.5, None, True, "x", {"b": []}]}),
    ],
)
def test_round_trip(kind: Any, value: Any) -> None:
    """What goes in comes out, of the same type and equal."""
    found = codec(kind)
    back = found.loads(found.dumps(value))
    assert back == value
    assert type(back) is type(value)


def test_round_trip_of_nan() -> None:
    """NaN is equal to nothing, and still comes back."""
    found = codec(list[float])
    assert str(found.loads(found.dumps([float("nan")]))) == "[nan]"


def test_offset_of_a_time_zone_is_kept() -> None:
    """A datetime comes back with its offset from UTC, not only as the same instant."""
    berlin = datetime(2030, 7, 1, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    found = codec(datetime)
    assert found.loads(found.dumps(berlin)).isoformat() == "2030-07-01T12:00:00+02:00"


def test_digits_of_a_decimal_are_kept() -> None:
    """1.10 does not become 1.1."""
    found = codec(Decimal)
    assert str(found.loads(found.dumps(Decimal("1.10")))) == "1.10"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (SecretStr, SecretStr("s3cret"), "SecretStr comes back as another SecretStr"),
        (list[float | str], [float("nan")], "0: float comes back as str"),
        (UUID | str, str(UUID(int=1)), "str comes back as UUID"),
        (dict, {1: 2}, "dict comes back as another dict"),
        (list, [(1, 2)], "0: tuple comes back as list"),
        (dict[str, Any], {"at": datetime(2030, 1, 1)}, "at: datetime comes back as str"),
    ],
)
def test_what_would_come_back_as_something_else(kind: Any, value: Any, message: str) -> None:
    """A type too wide to say what its JSON means is refused for such a value, and the value is not shown."""
    with pytest.raises(NotEncodable) as caught:
        codec(kind).dumps(value)
    assert str(caught.value) == (
        f"the value does not come back from JSON as itself: {message}; declare its type more narrowly"
    )


def test_what_could_not_be_read_back() -> None:
    """Better an error in the step that returns it than a saga that is stuck at its next replay."""

    class Measured(BaseModel):  # a model's own configuration writes NaN as null
        value: float

    with pytest.raises(
        NotEncodable, match="the value can be stored as JSON, but not read back: value: Input"
    ):
        codec(Measured).dumps(Measured(value=float("nan")))
    with pytest.raises(NotEncodable, match="but not read back: 1,2"):
        codec(dict[tuple[int, int], int]).dumps({(1, 2): 3})
    with pytest.raises(NotEncodable, match=r"the value cannot be stored as JSON: .*surrogates not allowed"):
        codec(str).dumps("\ud800")


def test_bytes_in_a_model() -> None:
    """A model writes its own bytes as UTF-8 unless told otherwise; what is not UTF-8 is refused, with the way out."""

    class Scan(BaseModel):
        photo: bytes

    assert codec(Scan).loads(codec(Scan).dumps(Scan(photo=b"abc"))) == Scan(photo=b"abc")
    with pytest.raises(
        NotEncodable, match=r"invalid utf-8 .*: give the model `model_config = ConfigDict\(ser_json_bytes="
    ):
        codec(Scan).dumps(Scan(photo=b"\xff"))


def test_private_state_is_no_part_of_a_value() -> None:
    """What a model keeps for itself need not come back."""

    class Cached(BaseModel):
        number: int
        _seen: int = PrivateAttr(default=0)

    value = Cached(number=1)
    value._seen = 5
    assert codec(Cached).loads(codec(Cached).dumps(value)).number == 1


def test_lost_field_is_noticed() -> None:
    """A field that JSON does not carry, and its default would replace, is noticed."""

    @dataclass
    class Counted:
        number: int
        seen: int = field(init=False, default=0)

    value = Counted(1)
    value.seen = 9
    with pytest.raises(NotEncodable, match="seen: int comes back as another int"):
        codec(Counted).dumps(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (datetime(2030, 1, 1), "a datetime is not plain JSON"),
        ({"a": [1, {2}]}, "a set at ['a'][1] is not plain JSON"),
        ((1, 2), "a tuple is not plain JSON"),
        ({1: 2}, "the key 1 is not a string"),
        (float("nan"), "nan is not JSON"),
        (Size.SMALL, "a Size is not plain JSON"),
        (object(), "a object is not plain JSON"),
    ],
)
def test_unannotated_values_are_plain_json(value: Any, message: str) -> None:
    """Where nothing says what a value should come back as, it must be plain JSON already."""
    with pytest.raises(InvalidInput) as caught:
        codec(Any).dumps(value)
    assert str(caught.value).startswith(
        f"the value does not fit: {message}; annotate the parameter with its type, or pass plain JSON"
    )


def test_invalid_input_names_the_field() -> None:
    """The error says where, what was wrong, and of what type the value was, but not the value."""
    with pytest.raises(InvalidInput) as caught:
        codec(Order).check({"id": "x", "at": "2030-01-01", "items": [{"sku": "cup"}]})
    assert "the value does not fit: id: Input should be a valid UUID" in str(caught.value)
    assert "items.0.price: Field required" in str(caught.value)
    with pytest.raises(
        InvalidInput, match=r"the value does not fit: Input should be a valid integer.* \(got str\)"
    ):
        codec(int).dumps("card 4111")


def test_stored_data_that_no_longer_fits() -> None:
    """After a change of types a saga is stuck, and says what of its data no longer fits."""
    with pytest.raises(
        NotDecodable, match="the value, as stored, no longer fits its type: street: Field required"
    ):
        codec(Address).loads("{}")
    with pytest.raises(NotDecodable, match="the value, as stored, no longer fits its type: Invalid JSON"):
        codec(Address).loads("{")


def test_input_written_by_people_may_use_aliases() -> None:
    """What is stored has the fields' names; what is typed at a console may have their aliases."""
    assert codec(Aliased).dumps(Aliased(orderId=1)) == '{"order_id":1}'
    assert codec(Aliased).loads('{"orderId":1}') == codec(Aliased).loads('{"order_id":1}')


# Arguments


def test_arguments_round_trip() -> None:
    """Positional, variadic and keyword-only parameters, each as its own type."""

    def charge(
        order: Order, /, amount: Decimal, *rest: Point, at: datetime = datetime(2030, 1, 1), **tags: UUID
    ) -> None: ...

    found = arguments(charge)
    text = found.dumps(
        (ORDER, Decimal("1.0"), Point(1, 2), Point(3, 4)), {"a": UUID(int=1), "b": UUID(int=2)}
    )
    assert found.loads(text) == (
        (ORDER, Decimal("1.0"), Point(1, 2), Point(3, 4)),
        {"at": datetime(2030, 1, 1), "a": UUID(int=1), "b": UUID(int=2)},
    )


def test_defaults_are_stored() -> None:
    """A default that changes later does not change what was called before."""

    def charge(amount: int, currency: str = "EUR", *, urgent: bool = False) -> None: ...
    def later(amount: int, currency: str = "USD", *, urgent: bool = True) -> None: ...

    text = arguments(charge).dumps((5,), {})
    assert json.loads(text) == {"amount": 5, "currency": "EUR", "urgent": False}
    assert arguments(later).loads(text) == ((5, "EUR"), {"urgent": False})


def test_no_arguments() -> None:
    """A function of nothing takes nothing."""

    def charge() -> None: ...

    assert arguments(charge).dumps((), {}) == "{}"
    assert arguments(charge).loads("{}") == ((), {})


def test_untyped_variadic_arguments_are_plain_json() -> None:
    """``*args`` and ``**kwargs`` without types are held to the same rule as any other parameter."""

    def charge(*args, **kwargs): ...  # type: ignore[no-untyped-def]

    found = arguments(charge)
    assert found.loads(found.dumps((1, ["a"]), {"b": None})) == ((1, ["a"]), {"b": None})
    with pytest.raises(
        InvalidInput, match=r"the call charge\(\) does not fit: args.0: a datetime is not plain JSON"
    ):
        found.dumps((datetime(2030, 1, 1),), {})
    with pytest.raises(InvalidInput, match=r"kwargs.x: a object is not plain JSON"):
        found.dumps((), {"x": object()})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'amount'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"amount": 2}, "multiple values for argument 'amount'"),
        ((1,), {"curency": "EUR"}, "got an unexpected keyword argument 'curency'"),
        (
            ("much",),
            {},
            "amount: Input should be a valid integer, unable to parse string as an integer (got str)",
        ),
    ],
)
def test_calls_that_do_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    """A wrong call is told as Python would."""

    def charge(amount: int, currency: str = "EUR") -> None: ...

    with pytest.raises(InvalidInput) as caught:
        arguments(charge).dumps(args, kwargs)
    assert str(caught.value) == f"the call charge() does not fit: {message}"


def test_choosing_arguments_for_a_compensation() -> None:
    """A compensation is called with the result and the stored arguments it names, whatever their order."""

    def refund(payment: Item, currency: str, order: Order) -> None: ...
    def ask(order: Order) -> None: ...
    def other(payment: Item, customer: str) -> None: ...

    def charge(order: Order, amount: int, currency: str = "EUR") -> Item: ...

    stored = arguments(charge).dumps((ORDER, 5), {})
    item = ORDER.items[0]
    chosen = arguments(refund).choose(stored, result=codec(Item).dumps(item))
    assert arguments(refund).loads(chosen) == ((item, "EUR", ORDER), {})
    assert arguments(ask).loads(arguments(ask).choose(stored)) == ((ORDER,), {})
    with pytest.raises(
        NotDecodable, match=r"the call other\(\) needs 'customer', which the step was not called with"
    ):
        arguments(other).choose(stored, result="null")


@pytest.mark.parametrize(
    "value",
    [Item("a", Decimal(1), b"\xff"), Point(float("nan"), 1.0), {"number": 1, "photo": b"\xff"}, ORDER],
)
def test_a_result_is_encoded_as_an_argument_is(value: Any) -> None:
    """A step's result becomes its compensation's argument, so both must be written alike."""
    kind = Row if isinstance(value, dict) else type(value)

    def refund(result: Any) -> None: ...

    refund.__annotations__["result"] = kind
    found = arguments(refund)
    args, _ = found.loads(found.choose("{}", result=codec(kind).dumps(value)))
    assert args[0] == value or repr(args[0]) == repr(value)


# Sizes


def test_sizes(caplog: pytest.LogCaptureFixture) -> None:
    """A large payload is logged, one over the limit refused; sizes are bytes, not characters."""
    with caplog.at_level(logging.WARNING, "sagakit.codec"):
        assert bounded("x" * 100, "the result of charge", limit=1000, warning=100) == "x" * 100
        assert not caplog.records
        bounded("\N{SNOWMAN}" * 100, "the result of charge", limit=1000, warning=100)
    assert caplog.messages == ["the result of charge: 300 bytes of JSON is a lot"]
    with pytest.raises(PayloadTooLarge) as caught:
        bounded("\N{SNOWMAN}" * 400, "the result of charge", limit=1000, warning=100)
    assert str(caught.value) == (
        "the result of charge: 1,200 bytes of JSON, over the limit of 1,000; store it elsewhere and pass a "
        "reference, or raise sagakit_payload_limit"
    )


# Canonical input


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a":1,"b":[1,2]}', '{ "b": [1, 2], "a": 1 }', True),
        ('{"a":{"x":1,"y":2}}', '{"a":{"y":2,"x":1}}', True),
        ("1.0", "1", True),
        ("1e2", "100.0", True),
        ('"\\u00e9"', '"é"', True),
        ("[1,2]", "[2,1]", False),
        ("1", '"1"', False),
        ("true", "1", False),
        ('{"a":[false]}', '{"a":[0]}', False),
        ("null", "0", False),
        ('{"a":null}', "{}", False),
    ],
)
def test_canonical_comparison(one: str, other: str, same: bool) -> None:
    """The same input is the same however its keys are ordered and its numbers written; a boolean is no number."""
    assert (canonical(one) == canonical(other)) is same


# Business errors


class PaymentDeclined(StepError):
    reason: str
    item: Item | None = None


class Bare(StepError):
    pass


def test_business_errors_are_data() -> None:
    """Fields as in a dataclass: keyword-only, with defaults, shown by ``str``."""
    error = PaymentDeclined(reason="no funds")
    assert (error.reason, error.item) == ("no funds", None)
    assert error.fields() == {"reason": "no funds", "item": None}
    assert str(error) == "reason='no funds', item=None"
    assert repr(error) == "PaymentDeclined(reason='no funds', item=None)"
    assert str(Bare()) == "Bare"
    assert (error.step, error.ledger_info) == (None, None)
    with pytest.raises(TypeError):
        PaymentDeclined("no funds")  # type: ignore[misc]


def test_business_errors_pickle() -> None:
    """They go through Celery's own result backends and process pools."""
    error = pickle.loads(pickle.dumps(PaymentDeclined(reason="no funds", item=ORDER.items[0])))
    assert type(error) is PaymentDeclined
    assert error.item == ORDER.items[0]


@pytest.mark.parametrize("cls", [StepFailed, StepUnknown, StepCancelled])
def test_step_failures_pickle(cls: type[StepFailed]) -> None:
    """So do failures of steps, with all they carry."""
    error = pickle.loads(pickle.dumps(cls("boom", step="charge", type="OSError", traceback="…")))
    assert type(error) is cls
    assert (error.message, error.step, error.type, error.traceback) == ("boom", "charge", "OSError", "…")
    assert str(error) == "charge: OSError: boom"


@pytest.fixture
def charge() -> Step[..., None]:
    step: Step[..., None] = StandInKit().step(throws=(PaymentDeclined, Bare, StepError, KeyError))(
        lambda: None
    )
    return step


def test_business_errors_round_trip(charge: Step[..., None]) -> None:
    """A declared error is stored by its fields' types and comes back as itself."""
    info = charge.describe_error(PaymentDeclined(reason="no funds", item=ORDER.items[0]))
    assert info.type.endswith("test_encoding.PaymentDeclined")
    back = charge.rebuild_error(ErrorInfo.loads(info.dumps()))
    assert isinstance(back, PaymentDeclined)
    assert back.item == ORDER.items[0]
    assert isinstance(charge.rebuild_error(charge.describe_error(Bare())), Bare)
    assert type(charge.rebuild_error(charge.describe_error(StepError()))) is StepError


def test_subclass_of_a_declared_error(charge: Step[..., None]) -> None:
    """An undeclared subclass comes back as the class that is declared."""

    class Worse(PaymentDeclined):
        code: int

    info = charge.describe_error(Worse(reason="x", code=3))
    assert info.type.endswith("test_encoding.PaymentDeclined")
    assert type(charge.rebuild_error(info)) is PaymentDeclined


def test_undeclared_errors_are_text(charge: Step[..., None]) -> None:
    """Only declared ``StepError`` classes come back; nothing is ever built from a name the ledger holds."""
    info = charge.describe_error(KeyError("a"))
    assert (info.type, info.message, info.fields) == ("KeyError", "'a'", None)
    assert charge.rebuild_error(info) is None
    assert charge.rebuild_error(ErrorInfo(type="os.system", message="", fields={"command": "true"})) is None


def test_business_error_that_no_longer_fits(charge: Step[..., None]) -> None:
    """A declared error whose fields have changed is data that no longer decodes."""
    info = charge.describe_error(PaymentDeclined(reason="x"))
    with pytest.raises(NotDecodable, match="reason: Field required"):
        charge.rebuild_error(ErrorInfo(type=info.type, message="", fields={"item": None}))


def test_error_fields_are_checked(charge: Step[..., None]) -> None:
    """A field of the wrong type is the step's own fault, and said so."""
    with pytest.raises(InvalidInput, match="reason: Input should be a valid string"):
        charge.describe_error(PaymentDeclined(reason=3))  # type: ignore[arg-type]


def test_describing_never_fails() -> None:
    """Whatever is raised becomes data, with both ends of a long text."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(Broken()).message == "<its own str() raised ValueError>"
    long = describe(ValueError("a" * 30_000 + "end")).message
    assert long.startswith("aaa")
    assert long.endswith("end")
    assert "10003 characters left out" in long
    assert len(long) < 20_100


def test_describing_keeps_the_traceback() -> None:
    """The traceback is kept as text."""
    try:
        raise ValueError("boom")
    except ValueError as exc:
        info = describe(exc, step="charge")
    assert "test_encoding.py" in (info.traceback or "")
    assert (info.type, info.message, info.step, str(info)) == (
        "ValueError",
        "boom",
        "charge",
        "ValueError: boom",
    )
