"""Every error that a user may meet says what is wrong, where, and what to do: triggers and texts, side by side."""

import asyncio
import re
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery import _state as state
from pydantic import BaseModel, SecretStr

from sagakit import Saga, SagaFailed, SagaKit, StepError, StepFailed, current_step, shared_saga, shared_step
from sagakit.errors import (
    BodyWaitsInVain,
    ConfigurationError,
    DatabaseNotConfigured,
    DefinitionError,
    InvalidInput,
    LedgerTooLong,
    NotAllowed,
    NotDecodable,
    NotEncodable,
    PayloadTooLarge,
    SagaNotFound,
    StepNotFound,
    UnknownOption,
    UseAStep,
)
from sagakit.testing import run_saga

HERE = re.escape(str(Path(__file__)))
LINE = rf"{HERE}:\d+: "


class Secret(BaseModel):
    """What JSON does not give back."""

    word: SecretStr


class Opaque:
    """What pydantic cannot handle."""


class Kit(SagaKit):
    """A kit with a step that can be undone, and what is called of them."""

    def __init__(self, url: str) -> None:
        app = Celery("texts", broker="memory://", set_as_current=False)
        app.conf.task_always_eager = True
        super().__init__(app, database_url=url)

        @self.step
        def charge(number: int, *, note: str = "") -> str:
            """A step."""
            if number < 0:
                raise ValueError(f"cannot charge {number}")
            return str(number)

        @self.step
        def loose(value, other=None):  # type: ignore[no-untyped-def]
            """A step without annotations."""
            return value

        @self.saga
        async def checkout(saga: Saga, number: int) -> str:
            """A saga."""
            return await saga.step(charge, number)

        self.charge, self.loose, self.checkout = charge, loose, checkout


@pytest.fixture
def kit(sqlite_ledger_url: str) -> Iterator[Kit]:
    """A kit that runs sagas in its caller."""
    found = Kit(sqlite_ledger_url)
    yield found
    found.store.dispose()


@pytest.fixture(autouse=True)
def _bare_current_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state._tls, "current_app", Celery("bare", set_as_current=False))


def plain(number: int) -> str:
    """A function to be declared as something."""
    return str(number)


def check(trigger: Callable[[Kit], Any], kit: Kit, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        trigger(kit)
    message = str(caught.value)
    assert re.search(text, message), message
    assert "\n" not in message, "an error is one line"


# --- declaring ------------------------------------------------------------------------------------------------


def compensated_by(function: Callable[..., Any], **options: Any) -> Callable[[Kit], Any]:
    return lambda kit: kit.charge.compensation(**options)(function)


def unknown_parameter(result: str, amount: int) -> None: ...
def wrong_result(result: int) -> None: ...
def wrong_argument(result: str, number: str) -> None: ...
def argument_first(number: int) -> None: ...
def opaque(value: Opaque) -> None: ...
def opaque_result() -> Opaque: ...
def unresolved(value: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - on purpose
def nothing() -> None: ...
async def two_inputs(saga: Saga, one: int, other: int) -> None: ...
async def no_saga() -> None: ...
async def body(saga: Saga) -> None: ...


def twice(declare: Callable[[Kit], Any]) -> Callable[[Kit], Any]:
    return lambda kit: (declare(kit), declare(kit))


class Fields(StepError):
    """A declared error with a field that cannot be stored."""

    where: Opaque


def taken_field() -> None:
    class Args(StepError):
        args: int


DECLARING: dict[str, tuple[Callable[[Kit], Any], type[Exception], str]] = {
    "an unknown option": (
        lambda kit: kit.step(max_retrys=3)(plain),
        UnknownOption,
        rf"^{LINE}a step has no option 'max_retrys'; did you mean 'max_retries'\?$",
    ),
    "an option that is not built": (
        lambda kit: kit.step(rate_limit="1/s")(plain),
        UnknownOption,
        r"a step has no option 'rate_limit'; set it on a task class given as base=..., or through task_annotations$",
    ),
    "an unknown option of a compensation": (
        compensated_by(nothing, throws=(ValueError,)),
        UnknownOption,
        r"a compensation has no option 'throws'",
    ),
    "an unknown option of one call": (
        lambda kit: kit.charge.set(queu="eu"),
        UnknownOption,
        r"charge\.set\(\): step\.set\(\) has no option 'queu'; did you mean 'queue'\?",
    ),
    "an unknown option of a saga": (
        lambda kit: kit.saga(versoin=2)(body),
        DefinitionError,
        rf"^{LINE}a saga has no option 'versoin'; did you mean 'version'\?$",
    ),
    "a wrong number of retries": (
        lambda kit: kit.step(max_retries=-1)(plain),
        DefinitionError,
        rf"^{LINE}max_retries must be a whole number from 0, or None for no limit, not -1$",
    ),
    "a wrong duration": (
        lambda kit: kit.step(expires="soon")(plain),
        DefinitionError,
        rf"^{LINE}expires: 'soon' is not a duration: a duration is a timedelta, a number of seconds, or text such as",
    ),
    "what is no exception": (
        lambda kit: kit.step(throws=("ValueError",))(plain),
        DefinitionError,
        rf"^{LINE}throws must hold exception classes, not 'ValueError'$",
    ),
    "a body that is not async": (
        lambda kit: kit.saga(plain),
        DefinitionError,
        rf"^{LINE}the body of saga plain must be `async def`, so that it can await its steps$",
    ),
    "a body with two inputs": (
        lambda kit: kit.saga(two_inputs),
        DefinitionError,
        rf"^{LINE}saga two_inputs takes 2 inputs \(one, other\); a saga takes one: put them into one model",
    ),
    "a body without its saga": (
        lambda kit: kit.saga(no_saga),
        DefinitionError,
        rf"^{LINE}no_saga needs a first parameter for what sagakit passes to it$",
    ),
    "a wrong version": (
        lambda kit: kit.saga(version=0)(body),
        DefinitionError,
        rf"^{LINE}version must be a whole number from 1, not 0$",
    ),
    "a compensation that asks for what is no argument": (
        compensated_by(unknown_parameter),
        DefinitionError,
        rf"^{LINE}unknown_parameter asks for 'amount', which is not an argument of charge \(it has: number, note\)$",
    ),
    "a compensation that takes another result": (
        compensated_by(wrong_result),
        DefinitionError,
        rf"^{LINE}the first parameter of wrong_result receives what charge returns, str, but 'result' is "
        r"declared as int",
    ),
    "a compensation that takes another type": (
        compensated_by(wrong_argument),
        DefinitionError,
        rf"^{LINE}wrong_argument declares 'number' as str, but charge declares it as int$",
    ),
    "a compensation that forgets the result": (
        compensated_by(argument_first),
        DefinitionError,
        r"the first parameter of argument_first receives what charge returns, str, but 'number' is declared as int; "
        r"write the result first, then the arguments of charge you need$",
    ),
    "a second compensation": (
        twice(compensated_by(nothing)),
        DefinitionError,
        rf"^{LINE}charge has a compensation already, declared at {HERE}:\d+$",
    ),
    "two steps with one name": (
        lambda kit: (kit.step(name="n")(plain), kit.step(name="n")(nothing)),
        DefinitionError,
        rf"^{LINE}the name 'n' is taken by plain, declared at {HERE}:\d+; give one of them another name=\.\.\.$",
    ),
    "two sagas with one name and version": (
        lambda kit: (kit.saga(name="s")(body), kit.saga(name="s")(two_bodies())),
        DefinitionError,
        rf"^{LINE}saga 's' version 1 is declared at {HERE}:\d+ already; give one of them another "
        r"name=\.\.\. or version",
    ),
    "a saga with a step's name": (
        lambda kit: (kit.step(name="n")(plain), kit.saga(name="n")(body)),
        DefinitionError,
        rf"^{LINE}the name 'n' is taken by a step, declared at {HERE}:\d+$",
    ),
    "a type that pydantic cannot handle": (
        lambda kit: kit.step(opaque),
        DefinitionError,
        rf"^{LINE}parameter 'value' of opaque has a type that cannot be stored: .*Opaque",
    ),
    "a result that pydantic cannot handle": (
        lambda kit: kit.step(opaque_result),
        DefinitionError,
        rf"^{LINE}the result of opaque_result has a type that cannot be stored: .*Opaque",
    ),
    "an annotation that leads nowhere": (
        lambda kit: kit.step(unresolved),
        DefinitionError,
        rf"^{LINE}an annotation of unresolved cannot be resolved: name 'Nowhere' is not defined$",
    ),
    "a declared error that cannot be stored": (
        lambda kit: kit.step(throws=(Fields,))(plain),
        DefinitionError,
        rf"^{LINE}a field of the declared error Fields cannot be stored: .*Opaque",
    ),
    "a declared error whose field has a taken name": (
        lambda kit: taken_field(),
        DefinitionError,
        r"a StepError's field cannot be called 'args', which every StepError has already: choose another name",
    ),
}


def two_bodies() -> Callable[..., Awaitable[None]]:
    async def other(saga: Saga) -> None: ...

    return other


@pytest.mark.parametrize("case", DECLARING)
def test_declaring(kit: Kit, case: str) -> None:
    """What is wrong with a declaration is an error at once, which names file and line."""
    check(DECLARING[case][0], kit, *DECLARING[case][1:])


# --- configuring ----------------------------------------------------------------------------------------------


def lone(**settings: Any) -> SagaKit:
    return SagaKit(Celery("lone", broker="memory://", set_as_current=False), **settings)


CONFIGURING: dict[str, tuple[Callable[[Kit], Any], type[Exception], str]] = {
    "no database": (
        lambda kit: lone().store,
        DatabaseNotConfigured,
        r"^sagakit has no database: pass SagaKit\(app, database_url=\.\.\.\), set app\.conf\.sagakit_database_url, or "
        r"export SAGAKIT_DATABASE_URL=",
    ),
    "an unknown setting": (
        lambda kit: lone(leese=3).settings,
        ConfigurationError,
        r"^unknown setting sagakit_leese: did you mean 'lease'\?$",
    ),
    "a setting that does not fit": (
        lambda kit: lone(lease="1s").settings,
        ConfigurationError,
        r"^sagakit's settings: heartbeat \(3 s\) must be at most half of lease \(1 s\), or one late renewal",
    ),
    "a second kit": (
        lambda kit: SagaKit(kit.app),
        ConfigurationError,
        r"^this Celery app has a SagaKit already: SagaKit\.of\(app\) returns it$",
    ),
    "no kit": (
        lambda kit: SagaKit.of(Celery("bare", set_as_current=False)),
        ConfigurationError,
        r"^the Celery app 'bare' has no SagaKit: add `kit = SagaKit\(app\)` where the app is made$",
    ),
    "a shared step without an app": (
        lambda kit: shared_step(plain).delay(1),
        ConfigurationError,
        r"^the current Celery app 'bare' has no SagaKit: add `kit = SagaKit\(app\)` where it is made",
    ),
    "a shared saga without an app": (
        lambda kit: shared_saga(body).start(),
        ConfigurationError,
        r"^the current Celery app 'bare' has no SagaKit: add `kit = SagaKit\(app\)` where it is made",
    ),
}


@pytest.mark.parametrize("case", CONFIGURING)
def test_configuring(kit: Kit, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing in the set-up is named with the way out."""
    monkeypatch.delenv("SAGAKIT_DATABASE_URL", raising=False)
    check(CONFIGURING[case][0], kit, *CONFIGURING[case][1:])


# --- starting and operating -----------------------------------------------------------------------------------


def ended(kit: Kit, number: int = 1) -> Any:
    return kit.checkout.start(number, saga_id="s1")


OPERATING: dict[str, tuple[Callable[[Kit], Any], type[Exception], str]] = {
    "an input of another type": (
        lambda kit: kit.checkout.start("many"),
        InvalidInput,
        r"^the input of checkout does not fit: .*valid integer.* \(got str\)$",
    ),
    "too many inputs": (
        lambda kit: kit.checkout.delay(1, 2),
        InvalidInput,
        r"^saga checkout takes 1 input\(s\), 2 given$",
    ),
    "an unknown option of a start": (
        lambda kit: kit.checkout.apply_async((1,), contdown=3),
        InvalidInput,
        r"^start\(\) has no option 'contdown'; (did you mean|known: deadline)",
    ),
    "an id that cannot be one": (
        lambda kit: kit.checkout.start(1, saga_id="a b"),
        InvalidInput,
        r"^'a b' cannot be a saga id: use 1 to 200 characters without white space and without / \? #, for example",
    ),
    "an unknown if_exists": (
        lambda kit: kit.checkout.start(1, if_exists="rais"),
        InvalidInput,
        r"^if_exists='rais': did you mean 'raise'\?$",
    ),
    "a deadline without a time zone": (
        lambda kit: kit.checkout.start(1, deadline=datetime(2030, 1, 1)),  # noqa: DTZ001 - the point
        InvalidInput,
        r"^deadline=datetime.datetime\(2030, 1, 1, 0, 0\) has no time zone: pass an aware datetime, or a duration$",
    ),
    "a deadline that is none": (
        lambda kit: kit.checkout.start(1, deadline="tomorrow"),
        InvalidInput,
        r"^deadline: 'tomorrow' is not a duration",
    ),
    "a saga called as a function": (
        lambda kit: kit.checkout.task(1),
        InvalidInput,
        r"is a saga: start it with \.start\(input\), or run its body in a test with sagakit\.testing\.run_saga\(\)$",
    ),
    "an unknown saga name": (
        lambda kit: kit.saga_named("chekout"),
        SagaNotFound,
        r"^no saga is named 'chekout'; ",
    ),
    "an unknown state": (
        lambda kit: kit.find(states=["runing"]),
        InvalidInput,
        r"^no saga state is called 'runing'; did you mean 'running'\?$",
    ),
    "no such saga": (
        lambda kit: kit.get("s9").status(),
        SagaNotFound,
        r"^there is no saga 's9' \(if it was started with session=, that transaction has not committed\)$",
    ),
    "no reason": (
        lambda kit: ended(kit).compensate(completed=True),
        InvalidInput,
        r"^compensate needs a reason: it goes on the saga's record$",
    ),
    "a reason of blanks": (
        lambda kit: ended(kit).cancel(reason="  "),
        InvalidInput,
        r"^cancel needs a reason: it goes on the saga's record$",
    ),
    "cancelling what has completed": (
        lambda kit: ended(kit).cancel(reason="r"),
        NotAllowed,
        r"^saga s1 is completed and cannot be cancelled any more; `saga compensate --completed` undoes it$",
    ),
    "compensating what has completed": (
        lambda kit: ended(kit).compensate(reason="r"),
        NotAllowed,
        r"^saga s1 has completed: pass --completed \(completed=True\) if it is really to be undone$",
    ),
    "compensating what is compensated": (
        lambda kit: ended(kit, -1).compensate(reason="r"),
        NotAllowed,
        r"^saga s1 is compensated: everything it did is undone already$",
    ),
    "resuming what is not stuck": (
        lambda kit: ended(kit).resume(),
        NotAllowed,
        r"^saga s1 is completed: only a stuck or paused saga can be resumed$",
    ),
    "a result that is none": (
        lambda kit: ended(kit, -1).result(),
        SagaFailed,
        r"^saga s1 failed and was compensated at step charge: ValueError: cannot charge -1$",
    ),
    "a step that is not there": (
        lambda kit: kit.registry.task("texts.chrge"),
        StepNotFound,
        r"^no step, compensation or probe named 'texts.chrge' is defined in this process; .*is its module imported",
    ),
    "current_step outside a step": (
        lambda kit: current_step.attempt,
        UseAStep,
        r"^current_step is only there while a step runs; in a unit test, call the step inside "
        r"`with sagakit\.testing\.step_context\(\):`$",
    ),
    "a bound step outside a step": (
        lambda kit: kit.step(bind=True)(lambda_with_context)(1),
        UseAStep,
        r"is declared with bind=True and needs a step's context: in a test, call it inside",
    ),
    "arguments of a plain task that do not fit": (
        lambda kit: kit.charge.delay("one", two=2),
        InvalidInput,
        r"^the call charge\(\) does not fit: got an unexpected keyword argument 'two'$",
    ),
}


def lambda_with_context(context: Any, number: int) -> int:
    """A step that takes its context."""
    return number


@pytest.mark.parametrize("case", OPERATING)
def test_operating(kit: Kit, case: str) -> None:
    """What cannot be done is refused in words, with what can."""
    check(OPERATING[case][0], kit, *OPERATING[case][1:])


# --- in a body ------------------------------------------------------------------------------------------------


def read_file() -> None:
    Path(__file__).read_text()


def resolve() -> None:
    socket.getaddrinfo("localhost", 80)


def start_thread() -> None:
    threading.Thread(target=print).start()


def start_process() -> None:
    subprocess.run(["true"], check=False)


async def executor() -> None:
    await asyncio.to_thread(time.monotonic)


async def as_completed(saga: Saga, kit: Kit) -> None:
    async def wrapped() -> str:
        return await saga.step(kit.charge, 1)

    for found in asyncio.as_completed([wrapped(), wrapped()]):
        await found


async def not_awaited(saga: Saga, kit: Kit) -> None:
    saga.step(kit.charge, 1)


Body = Callable[[Saga, Kit], Any]

IN_A_BODY: dict[str, tuple[Body, str, str]] = {
    "a step that is called": (
        lambda saga, kit: kit.charge(1),
        "UseAStep",
        r"^charge was called directly in a saga's body, where it would run again at every replay: write "
        r"`await saga\.step\(charge, \.\.\.\)`$",
    ),
    "a step that is delayed": (
        lambda saga, kit: kit.charge.delay(1),
        "UseAStep",
        r"^charge was sent with \.delay\(\) directly in a saga's body.*write `await saga\.step\(charge, \.\.\.\)`$",
    ),
    "a step that is sent": (
        lambda saga, kit: kit.charge.apply_async((1,)),
        "UseAStep",
        r"^charge was sent with \.apply_async\(\) directly in a saga's body",
    ),
    "a saga that is started": (
        lambda saga, kit: kit.checkout.start(1),
        "UseAStep",
        r"^checkout was started directly in a saga's body, where it would start again at every replay: "
        r"start it in a step$",
    ),
    "a file": (
        lambda saga, kit: read_file(),
        "UseAStep",
        r"^the saga's body opened a file; a body runs again at every replay: do this in a step$",
    ),
    "a name that is looked up": (
        lambda saga, kit: resolve(),
        "UseAStep",
        r"^the saga's body looked up a host name; .*do this in a step$",
    ),
    "a thread": (lambda saga, kit: start_thread(), "UseAStep", r"a thread.*do this in a step"),
    "a process": (lambda saga, kit: start_process(), "UseAStep", r"do this in a step"),
    "an executor": (lambda saga, kit: executor(), "UseAStep", r"do this in a step"),
    "what is no step": (
        lambda saga, kit: saga.step(plain, 1),
        "UseAStep",
        r"^saga\.step\(\) takes a step, not plain: declare it with kit\.step$",
    ),
    "as_completed over coroutines": (
        as_completed,
        "UseAStep",
        r"as_completed.*",
    ),
    "a step that is not awaited": (
        not_awaited,
        "StepNotAwaited",
        rf"^{HERE}:\d+: the step 'charge' was started and never awaited: write "
        r"`await saga\.step\(\.\.\.\)`, or gather it$",
    ),
    "arguments that do not fit": (
        lambda saga, kit: saga.step(kit.charge, "one"),
        "InvalidInput",
        r"^the call charge\(\) does not fit: number: .*valid integer.*\(got str\)$",
    ),
    "an argument that is no plain JSON": (
        lambda saga, kit: saga.step(kit.loose, {1, 2}),
        "InvalidInput",
        r"^the call loose\(\) does not fit: value: a set is not plain JSON; annotate the parameter with its type, or "
        r"pass plain JSON",
    ),
    "an argument that is too large": (
        lambda saga, kit: saga.step(kit.loose, "x" * 3_000_000),
        "PayloadTooLarge",
        r"^the arguments of loose: 3,000,0\d\d bytes of JSON, over the limit of 2,097,152; "
        r"store it elsewhere and pass a reference, or raise sagakit_payload_limit$",
    ),
    "a timer beyond any calendar": (
        lambda saga, kit: asyncio.sleep(1e15),
        "ValueError",
        r"^a timer 1e\+15 seconds after the saga's start is beyond any calendar$",
    ),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # refused before it was begun
@pytest.mark.parametrize("case", IN_A_BODY)
def test_in_a_body(kit: Kit, case: str) -> None:
    """What a body may not do fails the saga, and the error says what to do instead."""
    deed, error, text = IN_A_BODY[case]

    @kit.saga
    async def tries(saga: Saga) -> None:
        """Does it."""
        done = deed(saga, kit)
        if hasattr(done, "__await__"):
            await done

    outcome = run_saga(tries).outcome
    assert outcome.error is not None, outcome
    assert outcome.error.short_type == error, outcome.error
    assert re.search(text, outcome.error.message), outcome.error.message


def test_waiting_in_vain(kit: Kit) -> None:
    """A body that waits for nobody is stuck, at a line that is named."""

    @kit.saga
    async def waits(saga: Saga) -> None:
        """Waits for an event that nobody sets."""
        await asyncio.Event().wait()

    with pytest.raises(BodyWaitsInVain) as caught:
        run_saga(waits)
    text = str(caught.value)
    assert re.search(
        rf"the body of waits \({HERE}:\d+\) waits at {HERE}:\d+ for what no step and no timer", text
    )
    assert "await a step, a timer, or a task that awaits one, then run: saga resume test-saga" in text


def test_a_ledger_that_is_full(sqlite_ledger_url: str) -> None:
    """A saga with too many commands fails with the setting that allows more."""
    kit = Kit(sqlite_ledger_url)
    kit._given["ledger_limit"] = 3

    @kit.saga
    async def endless(saga: Saga) -> None:
        """Never stops."""
        while True:
            await saga.step(kit.charge, 1)

    outcome = endless.start().outcome(30)
    assert outcome.error is not None
    assert outcome.error.short_type == LedgerTooLong.__name__
    assert (
        outcome.error.message
        == "the saga issued more than 3 commands: split it, or raise sagakit_ledger_limit"
    )
    kit.store.dispose()


# --- values ---------------------------------------------------------------------------------------------------


def test_a_result_that_does_not_come_back(kit: Kit) -> None:
    """A value that JSON does not give back as itself is refused, and its value is not shown."""

    @kit.saga
    async def secretive(saga: Saga, secret: Secret) -> None:
        """Takes a secret."""

    with pytest.raises(NotEncodable) as caught:
        secretive.start(Secret(word="hush"))
    text = str(caught.value)
    assert text.startswith("the input of secretive does not come back from JSON as itself: word: ")
    assert text.endswith("declare its type more narrowly")
    assert "hush" not in text


def test_an_input_that_is_too_large(kit: Kit) -> None:
    """A start is bounded as a step is."""

    @kit.saga
    async def hungry(saga: Saga, text: str) -> None:
        """Takes much."""

    with pytest.raises(
        PayloadTooLarge, match=r"^the input of hungry: 3,000,002 bytes of JSON, over the limit of"
    ):
        hungry.start("x" * 3_000_000)


def test_a_result_of_another_type(kit: Kit) -> None:
    """A step that returns what it does not declare is unknown, since it ran to its end."""

    @kit.step
    def lies() -> int:
        """Returns a text."""
        return "text"  # type: ignore[return-value]

    @kit.saga
    async def trusting(saga: Saga) -> None:
        """Calls it."""
        await saga.step(lies)

    outcome = trusting.start().outcome(30)
    assert outcome.error is not None
    assert re.search(r"the result of lies does not fit: .*valid integer", outcome.error.message)
    assert outcome.unknown == ("lies",)


def test_a_probe_that_answers_otherwise(kit: Kit) -> None:
    """A probe's answer is ``Happened`` or ``NotHappened``."""

    @kit.step(unknown_for=(TimeoutError,))
    def ship() -> str:
        """Loses its answer."""
        raise TimeoutError

    @ship.compensation
    def unship(result: str) -> None:
        """Undoes it."""

    @ship.probe(max_retries=0)
    def ask() -> Any:
        """Answers wrongly."""
        return True

    @kit.saga
    async def shipping(saga: Saga) -> None:
        """Calls it."""
        await saga.step(ship)

    handle = shipping.start()
    handle.outcome(30)
    [probe] = [row for row in handle.history().steps if row.kind == "probe"]
    assert probe.error is not None
    assert "ask is a probe: it answers Happened(result) or NotHappened(), not True" in probe.error.message


def test_what_a_body_catches(kit: Kit) -> None:
    """An undeclared error arrives as data: the step, the type, the message and the traceback."""
    caught: list[StepFailed] = []

    @kit.saga
    async def careful(saga: Saga) -> str:
        """Catches it."""
        try:
            return await saga.step(kit.charge, -5)
        except StepFailed as exc:
            caught.append(exc)
            return "caught"

    assert careful.start().result(30) == "caught"
    failed = caught[-1]
    assert str(failed) == "charge: ValueError: cannot charge -5"
    assert (failed.step, failed.type, failed.message) == ("charge", "ValueError", "cannot charge -5")
    assert failed.traceback is not None
    assert "in charge" in failed.traceback


def test_stored_data_that_no_longer_fits(kit: Kit) -> None:
    """What was stored is never guessed at."""
    with pytest.raises(
        NotDecodable, match=r"^the result of charge, as stored, no longer fits its type: .*\(got int\)$"
    ):
        kit.charge.result_codec.loads("1")
