"""What is declared wrongly is an error at definition time that names file, line and the way out."""

import gc
import inspect
import threading
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol
from weakref import ref

import pytest
from typing_extensions import TypedDict

from sagakit.coordinator.context import Saga
from sagakit.definition.registry import Registry, SharedDefinitions
from sagakit.definition.step import Happened, Step
from sagakit.errors import (
    ConfigurationError,
    DefinitionError,
    SagaNotFound,
    StepError,
    StepNotFound,
    UnknownOption,
    UseAStep,
)
from tests.unit.coordinator.driving import StandInKit


@dataclass
class Order:
    id: str
    total: Decimal


@dataclass
class Payment:
    id: str


class Weird:
    """A class pydantic knows nothing about."""


@pytest.fixture
def kit() -> StandInKit:
    return StandInKit()


@pytest.fixture
def charge(kit: StandInKit) -> Step[..., Payment]:
    @kit.step
    def charge(order: Order, currency: str = "EUR") -> Payment:
        return Payment(f"{order.id}-{currency}")

    return charge


def line(offset: int = 0) -> str:
    """``file:line`` of the caller, some lines on."""
    frame = inspect.stack()[1]
    return f"{frame.filename}:{frame.lineno + offset}"


# Bodies


def test_body_must_be_async(kit: StandInKit) -> None:
    """A body that is no ``async def`` cannot await its steps."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @kit.saga
        def checkout(saga: Saga, order: Order) -> None: ...

    assert str(caught.value) == (
        f"{where}: the body of saga checkout must be `async def`, so that it can await its steps"
    )


def test_saga_takes_one_input(kit: StandInKit) -> None:
    """Several inputs belong into one model; the error lists them."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @kit.saga
        async def checkout(saga: Saga, order: Order, customer: str) -> None: ...

    assert str(caught.value) == (
        f"{where}: saga checkout takes 2 inputs (order, customer); a saga takes one: put them into one model or "
        "dataclass"
    )


def test_body_needs_the_saga(kit: StandInKit) -> None:
    """A body without any parameter has no place for the saga."""
    with pytest.raises(
        DefinitionError, match=r"test_declaring.py:\d+: checkout needs a first parameter for what"
    ):

        @kit.saga
        async def checkout() -> None: ...


@pytest.mark.parametrize("version", [0, -1, 1.0, "1", True])
def test_version_is_a_whole_number(kit: StandInKit, version: Any) -> None:
    """Versions count from 1."""
    with pytest.raises(
        DefinitionError, match=r"test_declaring.py:\d+: version must be a whole number from 1, not "
    ):

        @kit.saga(version=version)
        async def checkout(saga: Saga) -> None: ...


def test_input_type_pydantic_cannot_handle(kit: StandInKit) -> None:
    """An input that could not be stored is refused at once."""
    with pytest.raises(
        DefinitionError, match=r"test_declaring.py:\d+: .* has a type that cannot be stored: .*Weird"
    ):

        @kit.saga
        async def checkout(saga: Saga, order: Weird) -> None: ...


def test_result_type_pydantic_cannot_handle(kit: StandInKit) -> None:
    """So is a result."""
    with pytest.raises(
        DefinitionError,
        match=r"test_declaring.py:\d+: the result of checkout has a type that cannot be stored: .*Weird",
    ):

        @kit.saga
        async def checkout(saga: Saga) -> Weird: ...


def test_same_code_has_the_same_hash(kit: StandInKit) -> None:
    """The hash of a body tells of its code: constants, names, nested functions; not of where it stands."""

    def declare(body: Any) -> str:
        return StandInKit().saga(body).hash

    async def one(saga: Saga) -> Any:
        return [n for n in (1, 2) if n in {"a", "b"}]

    async def other(saga: Saga) -> Any:
        return [n for n in (1, 2) if n in {"a", "b"}]

    async def changed(saga: Saga) -> Any:
        return [n for n in (1, 3) if n in {"a", "b"}]

    assert declare(one) == declare(other) != declare(changed)


# Steps


def test_unknown_option_names_the_nearest(kit: StandInKit) -> None:
    """An option that does not exist is never ignored."""
    where = line(+3)
    with pytest.raises(UnknownOption) as caught:

        @kit.step(max_retry=3)
        def charge(order: Order) -> Payment: ...

    assert str(caught.value) == f"{where}: a step has no option 'max_retry'; did you mean 'max_retries'?"


def test_unknown_option_lists_all_when_none_is_near(kit: StandInKit) -> None:
    """Where no real name is near, all are listed."""
    with pytest.raises(
        UnknownOption, match=r"a step has no option 'xyz'; known: acks_late, autoretry_for, base"
    ):

        @kit.step(xyz=1)
        def charge(order: Order) -> Payment: ...


@pytest.mark.parametrize("option", ["unknown_for", "acks_late", "expires", "throws"])
def test_compensation_lacks_what_makes_no_sense(charge: Step[..., Payment], option: str) -> None:
    """A compensation runs until it holds: it has no business errors, and is never given up as expired."""
    with pytest.raises(UnknownOption, match=f"a compensation has no option '{option}'; "):

        @charge.compensation(**{option: ()})
        def refund(payment: Payment) -> None: ...


def test_options_of_one_call(charge: Step[..., Payment]) -> None:
    """What ``set`` may change is a shorter list."""
    with pytest.raises(
        UnknownOption, match=r"charge.set\(\): step.set\(\) has no option 'max_retries'; known: e"
    ):
        charge.set(max_retries=3)


def test_set_changes_one_call_only(charge: Step[..., Payment]) -> None:
    """``set`` returns a step with options of its own and leaves the declared one alone."""
    changed = charge.set(queue="eu", name="second", priority=3, expires="1h").set(time_limit=5)
    assert (changed.queue, changed.row_name, changed.priority) == ("eu", "second", 3)
    assert (changed.expires, changed.time_limit) == (timedelta(hours=1), timedelta(seconds=5))
    assert (charge.queue, charge.row_name, charge.priority, charge.expires) == (None, "charge", None, None)
    assert changed.name == charge.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must be a non-empty string, not ''"),
        ({"name": 3}, "name must be a non-empty string, not 3"),
        ({"queue": b"eu"}, "queue must be a non-empty string, not b'eu'"),
        ({"max_retries": -1}, "max_retries must be a whole number from 0, or None for no limit, not -1"),
        ({"max_retries": 1.5}, "max_retries must be a whole number from 0, or None for no limit, not 1.5"),
        ({"max_retries": True}, "max_retries must be a whole number from 0, or None for no limit, not True"),
        ({"retry_backoff": "yes"}, "retry_backoff must be True, False or a factor in seconds, not 'yes'"),
        ({"retry_backoff": -2}, "retry_backoff must be True, False or a factor in seconds, not -2"),
        (
            {"retry_backoff": float("nan")},
            "retry_backoff must be True, False or a factor in seconds, not nan",
        ),
        ({"retry_jitter": 1}, "retry_jitter must be True or False, not 1"),
        ({"bind": "yes"}, "bind must be True or False, not 'yes'"),
        ({"acks_late": None}, "acks_late must be True or False, not None"),
        ({"priority": 256}, "priority must be a whole number from 0 to 255, not 256"),
        ({"priority": 1.0}, "priority must be a whole number from 0 to 255, not 1.0"),
        ({"base": "Task"}, "base must be a Celery task class, not 'Task'"),
        ({"throws": "PaymentDeclined"}, "throws must hold exception classes, not 'PaymentDeclined'"),
        ({"autoretry_for": (int,)}, "autoretry_for must hold exception classes, not <class 'int'>"),
        (
            {"unknown_for": [TimeoutError("x")]},
            "unknown_for must hold exception classes, not TimeoutError('x')",
        ),
        (
            {"expires": "soon"},
            "expires: 'soon' is not a duration: a duration is a timedelta, a number of seconds, or",
        ),
        ({"expires": float("inf")}, "expires: inf is longer than any calendar: a duration is"),
        ({"time_limit": -1}, "time_limit: -1 is negative: a duration is a timedelta"),
        ({"default_retry_delay": True}, "default_retry_delay: True is not a duration: a duration is"),
    ],
)
def test_values_that_do_not_fit(kit: StandInKit, options: dict[str, Any], message: str) -> None:
    """A value that does not fit its option is refused with what would fit, and where it stands."""
    with pytest.raises(DefinitionError) as caught:

        @kit.step(**options)
        def charge(order: Order) -> Payment: ...

    where, _, text = str(caught.value).partition(": ")
    assert where.startswith(f"{__file__}:")
    assert text.startswith(message)


def test_two_steps_with_one_name(kit: StandInKit, charge: Step[..., Payment]) -> None:
    """One name means one thing; both places are named."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @kit.step(name="shop.charge")
        def other(order: Order) -> Payment: ...

    assert str(caught.value) == (
        f"{where}: the name 'shop.charge' is taken by charge, declared at {charge.where}; give one of them another "
        "name=..."
    )


def test_the_same_source_twice_is_one_step(kit: StandInKit) -> None:
    """A module that is imported twice, or reloaded, declares its steps again; that is no clash."""

    source = "def charge(order): ..."

    def module() -> Step[..., Any]:
        namespace: dict[str, Any] = {"__name__": "shop"}
        exec(compile(source, "shop.py", "exec"), namespace)
        return kit.step(namespace["charge"])

    module()
    second = module()
    assert kit.registry.task("shop.charge") is second


def test_two_steps_made_by_one_function(kit: StandInKit) -> None:
    """Steps made in a loop come from the same line, yet are two: they need names of their own."""

    def make(region: str) -> Step[..., Any]:
        @kit.step
        def charge() -> str:
            return region

        return charge

    make("eu")
    with pytest.raises(DefinitionError, match=r"the name 'shop.charge' is taken by charge"):
        make("us")


def test_saga_and_step_with_one_name(kit: StandInKit, charge: Step[..., Payment]) -> None:
    """A saga is a Celery task too, so it shares the names of steps."""
    with pytest.raises(DefinitionError, match=r"the name 'shop.charge' is taken by a step, declared at "):

        @kit.saga(name="shop.charge")
        async def checkout(saga: Saga) -> None: ...

    @kit.saga
    async def refill(saga: Saga) -> None: ...

    with pytest.raises(DefinitionError, match=r"the name 'shop.refill' is taken by a saga, declared at "):

        @kit.step(name="shop.refill")
        def pour() -> None: ...


def test_two_sagas_with_one_name_and_version(kit: StandInKit) -> None:
    """Versions of a saga stand side by side; two of one version do not."""

    @kit.saga(name="checkout", version=1)
    async def first(saga: Saga) -> None: ...

    @kit.saga(name="checkout", version=2)
    async def second(saga: Saga) -> None: ...

    with pytest.raises(
        DefinitionError,
        match=r"saga 'checkout' version 2 is declared at .*test_declaring.py:\d+ already; give one of them another "
        r"name=\.\.\. or version=\.\.\.",
    ):

        @kit.saga(name="checkout", version=2)
        async def third(saga: Saga) -> None: ...

    assert kit.registry.saga("checkout", 1) is first
    assert kit.registry.latest("checkout") is second
    assert kit.registry.versions == [("checkout", 1), ("checkout", 2)]


def test_argument_type_pydantic_cannot_handle(kit: StandInKit) -> None:
    """The error names the parameter and the type."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @kit.step
        def charge(order: Order, gate: Weird) -> Payment: ...

    assert str(caught.value).startswith(
        f"{where}: parameter 'gate' of charge has a type that cannot be stored: "
    )
    assert "Weird" in str(caught.value)


@pytest.mark.parametrize("kind", [Weird, list[Weird], threading.Thread, dict[str, type(None) | Weird]])
def test_step_result_type_pydantic_cannot_handle(kit: StandInKit, kind: Any) -> None:
    """Results are checked like arguments, nested ones as well."""

    def charge(order: Order) -> Any: ...

    charge.__annotations__["return"] = kind
    with pytest.raises(
        DefinitionError, match=r"test_declaring.py:\d+: the result of charge has a type that cannot be"
    ):
        kit.step(charge)


def test_error_field_pydantic_cannot_handle(kit: StandInKit) -> None:
    """A declared business error is stored by its fields, so they must be storable."""

    class Refused(StepError):
        gate: Weird

    with pytest.raises(
        DefinitionError,
        match=r"test_declaring.py:\d+: a field of the declared error Refused cannot be stored: .*'gate'.*Weird",
    ):

        @kit.step(throws=(Refused,))
        def charge(order: Order) -> Payment: ...


@pytest.mark.parametrize("name", ["step", "fields", "args", "ledger_info"])
def test_error_field_of_a_taken_name(name: str) -> None:
    """A field that would hide what every ``StepError`` has is refused."""
    with pytest.raises(
        DefinitionError, match=rf"Refused: a StepError's field cannot be called '{name}', which every"
    ):
        type("Refused", (StepError,), {"__annotations__": {name: str}, "__module__": "shop"})


def test_annotation_that_cannot_be_resolved(kit: StandInKit) -> None:
    """An annotation that names nothing is told at once, not when the first message arrives."""
    with pytest.raises(
        DefinitionError,
        match=r"test_declaring.py:\d+: an annotation of charge cannot be resolved: name 'Ordr' is not",
    ):

        @kit.step
        def charge(order: "Ordr") -> Payment: ...  # type: ignore[name-defined]  # noqa: F821


def test_local_classes_are_found(kit: StandInKit) -> None:
    """Annotations written as text may name classes of the function the step is declared in."""

    @dataclass
    class Local:
        id: str

    @kit.step
    def charge(order: "Local") -> "list[Local]": ...

    assert charge.signature.annotation("order") is Local


def test_bound_step_needs_a_parameter(kit: StandInKit) -> None:
    """``bind=True`` without a parameter to bind is an error."""
    with pytest.raises(DefinitionError, match="charge needs a first parameter for what sagakit passes to it"):

        @kit.step(bind=True)
        def charge() -> None: ...


# Compensations and probes


def test_compensation_asks_for_an_argument_the_step_lacks(charge: Step[..., Payment]) -> None:
    """A parameter that is no argument of the step is refused, and the arguments are listed."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @charge.compensation
        def refund(payment: Payment, customer: str) -> None: ...

    assert str(caught.value) == (
        f"{where}: refund asks for 'customer', which is not an argument of charge (it has: order, currency)"
    )
    assert charge.undo is None


def test_compensation_whose_first_parameter_is_of_another_type(charge: Step[..., Payment]) -> None:
    """The first parameter receives the step's result."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @charge.compensation
        def refund(amount: Decimal) -> None: ...

    assert str(caught.value) == (
        f"{where}: the first parameter of refund receives what charge returns, Payment, but 'amount' is declared as "
        "Decimal; write the result first, then the arguments of charge you need"
    )


def test_compensation_without_the_result(charge: Step[..., Payment]) -> None:
    """Naming an argument first, without the result, is the most common mistake: its type gives it away."""
    with pytest.raises(
        DefinitionError, match="the first parameter of refund receives what charge returns, Payment"
    ):

        @charge.compensation
        def refund(order: Order) -> None: ...


def test_untyped_compensation_without_the_result(charge: Step[..., Payment]) -> None:
    """Without a type, its name gives it away."""
    with pytest.raises(
        DefinitionError,
        match=r"charge returns Payment, and the first parameter of a compensation receives the step's result: declare "
        r"refund\(result, order, \.\.\.\)",
    ):

        @charge.compensation
        def refund(order) -> None: ...  # type: ignore[no-untyped-def]


def test_compensation_of_an_untyped_step_without_the_result(kit: StandInKit) -> None:
    """Nor may a step without any types be compensated by what looks like its arguments alone."""

    @kit.step
    def charge(order): ...  # type: ignore[no-untyped-def]

    with pytest.raises(
        DefinitionError, match=r"charge declares no result, and .*: declare refund\(result, order"
    ):

        @charge.compensation
        def refund(order) -> None: ...  # type: ignore[no-untyped-def]


def test_compensation_of_a_step_that_returns_nothing(kit: StandInKit) -> None:
    """Such a compensation too receives the result, ``None``, first."""

    @kit.step
    def charge(order: Order) -> None: ...

    with pytest.raises(
        DefinitionError, match=r"charge returns nothing, and .*: declare refund\(_: None, order"
    ):

        @charge.compensation
        def refund(order: Order) -> None: ...

    with pytest.raises(
        DefinitionError, match=r"receives what charge returns, NoneType, but 'payment' is declared as"
    ):

        @charge.compensation
        def revert(payment: Payment) -> None: ...

    @charge.compensation
    def undo(_: None, order: Order) -> None: ...

    assert undo.accepts_none


def test_compensation_argument_of_another_type(charge: Step[..., Payment]) -> None:
    """An argument must be declared as the step declares it."""
    where = line(+3)
    with pytest.raises(DefinitionError) as caught:

        @charge.compensation
        def refund(payment: Payment, currency: Decimal | None) -> None: ...

    assert str(caught.value) == (
        f"{where}: refund declares 'currency' as {Decimal | None}, but charge declares it as str"
    )


def test_second_compensation(charge: Step[..., Payment]) -> None:
    """A step has one compensation."""

    @charge.compensation
    def refund(payment: Payment) -> None: ...

    with pytest.raises(DefinitionError, match=r"charge has a compensation already, declared at .*ing.py:\d+"):

        @charge.compensation
        def other(payment: Payment) -> None: ...

    assert charge.undo is refund


def test_compensation_with_a_taken_name(charge: Step[..., Payment]) -> None:
    """Compensations are Celery tasks too; a refused one leaves the step as it was."""
    with pytest.raises(DefinitionError, match=r"the name 'shop.charge' is taken by charge"):

        @charge.compensation(name="shop.charge")
        def refund(payment: Payment) -> None: ...

    assert charge.undo is None


class Receipt(TypedDict):
    number: int


class HasId(Protocol):
    id: str


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        (Payment, Payment | None),
        (Payment, object),
        (Payment, Any),
        (int, float),
        (list, list[int]),
        (list[int], list),
        (list[int], list[int]),
        (dict[str, int], dict[str, int]),
        (Receipt, Receipt),
        (Payment, HasId),
        (Payment | None, Payment),
        (Any, Payment),
    ],
)
def test_compensations_that_fit(kit: StandInKit, result: Any, wanted: Any) -> None:
    """Where classes alone cannot tell that a compensation does not fit, it is taken."""

    def charge() -> Any: ...
    def refund(payment: Any) -> None: ...

    charge.__annotations__["return"] = result
    refund.__annotations__["payment"] = wanted
    if wanted is HasId:  # fits, but cannot be read back from JSON
        with pytest.raises(DefinitionError, match="cannot be stored"):
            kit.step(charge).compensation(refund)
    else:
        assert kit.step(charge).compensation(refund).takes_result


def test_untyped_compensation_gets_the_step_s_types(charge: Step[..., Payment]) -> None:
    """What a compensation leaves untyped comes as the step's types say, not as the JSON it was stored as."""

    @charge.compensation
    def refund(payment, order, currency="EUR"): ...  # type: ignore[no-untyped-def]

    stored = charge.signature.arguments.dumps((Order("1", Decimal("2.50")),), {})
    chosen = refund.signature.arguments.choose(stored, result=charge.result_codec.dumps(Payment("p")))
    assert refund.signature.arguments.loads(chosen) == (
        (Payment("p"), Order("1", Decimal("2.50")), "EUR"),
        {},
    )
    assert not refund.accepts_none


def test_compensation_that_accepts_none(charge: Step[..., Payment]) -> None:
    """A default of ``None`` admits it as well as the type does."""

    @charge.compensation
    def refund(payment=None): ...  # type: ignore[no-untyped-def]

    assert refund.accepts_none
    assert refund.signature.arguments.loads('{"payment":null}') == ((None,), {})
    assert refund.signature.arguments.loads('{"payment":{"id":"p"}}') == ((Payment("p"),), {})


def test_compensation_without_parameters(charge: Step[..., Payment]) -> None:
    """A compensation may need nothing at all."""

    @charge.compensation
    def refund() -> None: ...

    assert not refund.takes_result
    assert refund.accepts_none


def test_probe_takes_the_step_s_arguments(charge: Step[..., Payment]) -> None:
    """A probe names those of the step's arguments it needs; there is no result yet."""
    with pytest.raises(DefinitionError, match=r"ask asks for 'payment', which is not an argument of charge"):

        @charge.probe
        def ask(payment: Payment) -> Happened[Payment]: ...

    with pytest.raises(
        DefinitionError, match=r"ask declares 'order' as str, but charge declares it as Order"
    ):

        @charge.probe
        def ask(order: str) -> Happened[Payment]: ...

    with pytest.raises(UnknownOption, match=r"a probe has no option 'trows'; known: autoretry_for, base"):

        @charge.probe(trows=())
        def ask(order: Order) -> Happened[Payment]: ...

    @charge.probe
    def find(order: Order) -> Happened[Payment]: ...

    assert charge.find_out is find


# What a declared step is


def test_step_remains_a_function(charge: Step[..., Payment]) -> None:
    """Called outside a saga, a step is the function it was, with its name and doc."""
    assert charge(Order("1", Decimal(2)), currency="USD") == Payment("1-USD")
    assert charge.__name__ == "charge"
    assert inspect.unwrap(charge) is charge.function
    assert repr(charge) == "<Step shop.charge>"


def test_bound_step_needs_a_context(kit: StandInKit) -> None:
    """Outside a worker a bound step is called inside ``step_context``; the error says so."""

    @kit.step(bind=True)
    def charge(self: Any, order: Order) -> Payment: ...

    with pytest.raises(
        UseAStep, match=r"charge is declared with bind=True .*`with sagakit.testing.step_context\(\):`"
    ):
        charge(Order("1", Decimal(2)))


def test_without_an_app(charge: Step[..., Payment]) -> None:
    """A step of no Celery app cannot be sent; the error says what is missing."""
    with pytest.raises(
        ConfigurationError, match=r"shop.charge belongs to no Celery app yet: create SagaKit\(app\)"
    ):
        charge.delay(Order("1", Decimal(2)))


# The registry


def test_step_that_is_not_there() -> None:
    """A name of the ledger this process does not define is told with the nearest it has."""
    kit = StandInKit()

    @kit.step
    def charge() -> None: ...

    with pytest.raises(
        StepNotFound,
        match=r"no step, compensation or probe named 'shop.charg' is defined in this process; did you mean "
        r"'shop.charge'\? \(is its module imported by the worker's app\?\)",
    ):
        kit.registry.task("shop.charg")


def test_saga_by_a_short_name() -> None:
    """A short name will do if it is unique."""
    registry = Registry()

    def declare(name: str) -> None:
        async def checkout(saga: Saga) -> None: ...

        kit = StandInKit()
        kit.registry = registry
        kit.saga(name=name)(checkout)

    declare("eu.checkout")
    assert registry.latest("checkout").name == "eu.checkout"
    declare("us.checkout")
    with pytest.raises(
        SagaNotFound, match=r"'checkout' may be any of eu.checkout, us.checkout: give the full name"
    ):
        registry.latest("checkout")
    with pytest.raises(SagaNotFound, match=r"no saga is named 'eu.checkot'; did you mean 'eu.checkout'\?"):
        registry.latest("eu.checkot")
    with pytest.raises(SagaNotFound, match=r"no saga is named 'x'; none is known"):
        Registry().latest("x")


def test_shared_definitions_reach_every_kit(charge: Step[..., Payment]) -> None:
    """A shared definition is for the kits there are and those to come."""
    shared, early, late = SharedDefinitions(), Follower(), Follower()
    shared.follow(early.receive)
    shared.declare(charge)
    shared.follow(late.receive)
    assert early.received == late.received == [charge]


def test_shared_definitions_keep_no_kit_alive(charge: Step[..., Payment]) -> None:
    """A kit that nobody holds any more is forgotten."""
    shared, follower = SharedDefinitions(), Follower()
    shared.follow(follower.receive)
    gone = ref(follower)
    del follower
    gc.collect()
    assert gone() is None
    shared.declare(charge)


class Follower:
    """Stands for a kit."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    def receive(self, definition: Any) -> None:
        self.received.append(definition)
