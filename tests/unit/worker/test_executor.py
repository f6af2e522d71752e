"""What the executor refuses to run, to record, and to give up."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import FunctionType
from typing import Annotated, Any

import pytest
from celery import Celery
from pydantic import AfterValidator
from sqlalchemy.exc import IntegrityError, OperationalError

from sagakit import Saga, SagaKit, current_step
from sagakit.coordinator.ledger import Limits
from sagakit.definition.retry import RetryPolicy
from sagakit.dispatch.envelope import Delivery, Envelope, StepEnvelope
from sagakit.errors import StepFailed
from sagakit.history import SagaRecord
from sagakit.ids import new_token
from sagakit.states import SagaState, StepState
from sagakit.store import Transaction
from sagakit.worker.context import StepContext
from sagakit.worker.executor import Executed
from sagakit.worker.identity import identity
from sagakit.worker.perform import Ended, perform


class Shop:
    """A saga of two steps whose messages the test delivers itself."""

    def __init__(self, url: str) -> None:
        app = Celery("executing", broker="memory://", set_as_current=False)
        self.kit = SagaKit(app, database_url=url)
        self.sent: list[Envelope] = []
        self.calls: list[tuple[str, Any]] = []
        outbox: Any = self
        self.kit.publisher = outbox

        @self.kit.step(name="shop.charge")
        def charge(number: int) -> int:
            self.calls.append(("charge", number))
            self.meanwhile()
            return number + 1

        @self.kit.step(name="shop.ship")
        def ship(number: int) -> int:
            self.calls.append(("ship", number))
            return number

        @self.kit.saga(name="shop.checkout")
        async def checkout(saga: Saga, number: int) -> int:
            return await saga.step(ship, await saga.step(charge, number))

        self.charge, self.checkout = charge, checkout
        app.finalize()
        self.kit.ready()

    def publish(self, envelopes: Iterable[Envelope]) -> bool:
        """Keep the messages."""
        self.sent += envelopes
        return True

    def meanwhile(self) -> None:
        """What happens while the step runs."""

    def begin(self) -> Delivery:
        """Start a saga and hand out the first step's message."""
        self.checkout.start(1, saga_id="s")
        self.kit.advance("s")
        return self.deliver()

    def deliver(self) -> Delivery:
        """The last message of a step."""
        sent = [envelope for envelope in self.sent if isinstance(envelope, StepEnvelope)]
        return Delivery(sent[-1].saga_id, sent[-1].position, sent[-1].token)

    def execute(self, delivery: Delivery) -> Executed | None:
        """Work the message off."""
        return self.kit.executor.execute(delivery, self.charge.options.retry, None)

    @property
    def record(self) -> SagaRecord:
        """The saga's."""
        return self.kit.get("s").history()


@pytest.fixture
def shop(sqlite_ledger_url: str) -> Iterator[Shop]:
    """An empty one."""
    before = (identity.worker_id, identity.wakeup)
    found = Shop(sqlite_ledger_url)
    yield found
    found.kit.store.dispose()
    found.kit.app.close()
    identity._worker_id, identity.wakeup = before


def test_a_duplicate_is_not_run(shop: Shop) -> None:
    """The second delivery of one message finds the row claimed, and does nothing."""
    delivery = shop.begin()
    executed = shop.execute(delivery)
    assert executed is not None
    assert executed.landed
    assert shop.execute(delivery) is None
    assert shop.calls == [("charge", 1)]
    assert [row.attempt for row in shop.record.steps] == [1, 0]


@pytest.mark.parametrize(
    "forged",
    [
        Delivery("s", 0, "guessed"),
        Delivery("s", 7, "guessed"),
        Delivery("nobody", 0, "guessed"),
        Delivery("s", -1, ""),
    ],
)
def test_a_forged_message_is_not_run(shop: Shop, forged: Delivery) -> None:
    """Without the row's token nothing happens."""
    shop.begin()
    assert shop.execute(forged) is None
    assert shop.calls == []
    assert shop.record.steps[0].state is StepState.SCHEDULED


def test_another_row_s_token_opens_nothing(shop: Shop) -> None:
    """A token is good for its own row only."""
    first = shop.begin()
    shop.execute(first)
    second = shop.deliver()
    assert shop.execute(Delivery("s", 0, second.token)) is None
    assert shop.execute(Delivery("s", 1, first.token)) is None
    assert shop.calls == [("charge", 1)]


def test_a_step_of_a_saga_that_is_undone_is_not_run(shop: Shop) -> None:
    """Its message was under way when the saga was cancelled."""
    delivery = shop.begin()
    shop.kit.get("s").cancel(reason="changed their mind")
    assert shop.execute(delivery) is None
    assert shop.calls == []
    assert shop.record.state is SagaState.COMPENSATED


def test_arguments_that_no_longer_decode_hold_the_saga(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A bad deploy neither runs nor undoes anything: the row is given back and the saga is stuck."""
    delivery = shop.begin()
    table = shop.kit.store.tables.step
    with shop.kit.store.begin() as tx:
        tx.connection.execute(table.update().values(args='{"number": "no number"}'))
    assert shop.execute(delivery) is None
    record = shop.record
    assert record.state is SagaState.STUCK
    assert record.trouble is not None
    assert shop.calls == []
    assert (record.steps[0].state, record.steps[0].lost) == (StepState.SCHEDULED, 0)
    assert "saga s is stuck at charge: " in caplog.text


def test_a_late_finish_is_refused(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that was given up meanwhile is not recorded, and publishes nothing."""

    def give_up() -> None:
        with shop.kit.store.begin() as tx:
            row = tx.steps.running("s", 0)
            assert row is not None
            tx.steps.lose("s", 0, row.token, new_token=new_token(), rerun=True, max_lost=3, error=None)

    shop.meanwhile = give_up  # type: ignore[method-assign]
    delivery = shop.begin()
    sent = len(shop.sent)
    with caplog.at_level(logging.WARNING, "sagakit"):
        executed = shop.execute(delivery)
    assert executed is not None
    assert not executed.landed
    assert "the outcome of charge (attempt 1) came too late and is refused" in caplog.text
    assert shop.record.steps[0].state is StepState.SCHEDULED
    assert len(shop.record.steps) == 1
    assert len(shop.sent) == sent


@pytest.mark.parametrize("committed", [False, True])
def test_an_outage_at_the_finish(shop: Shop, monkeypatch: pytest.MonkeyPatch, committed: bool) -> None:
    """The outcome is recorded when the database is back, and once, even if it had been committed unnoticed."""
    delivery = shop.begin()
    begin = shop.kit.store.begin
    failures = [2]

    @contextmanager
    def fragile() -> Iterator[Transaction]:
        with begin() as tx:
            yield tx
            fails = bool(failures[0]) and bool(shop.calls)
            if fails:
                failures[0] -= 1
            if fails and not committed:
                raise OperationalError("COMMIT", {}, ConnectionError("gone"))
        if fails:
            raise OperationalError("COMMIT", {}, ConnectionError("gone"))

    monkeypatch.setattr(shop.kit.store, "begin", fragile)
    monkeypatch.setattr("sagakit.worker.executor.time.sleep", lambda _seconds: None)
    executed = shop.execute(delivery)
    assert executed is not None
    assert executed.landed
    assert failures == [0]
    assert shop.calls == [("charge", 1)]
    assert [(row.name, row.state, row.attempt) for row in shop.record.steps] == [
        ("charge", StepState.SUCCEEDED, 1),
        ("ship", StepState.SCHEDULED, 0),
    ]
    assert shop.record.attempts == ()


def test_another_error_of_the_database_is_not_hidden(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trying again cannot mend is raised, and the attempt is given up for lost: its lease would live on."""
    delivery = shop.begin()

    def broken(*_: Any, **__: Any) -> Any:
        raise IntegrityError("UPDATE", {}, ValueError("a constraint"))

    monkeypatch.setattr(shop.kit.executor, "_finish", broken)
    with pytest.raises(IntegrityError):
        shop.execute(delivery)
    row = shop.record.steps[0]
    assert (row.state, row.lost, row.attempt) == (StepState.SCHEDULED, 1, 1)
    assert [attempt.outcome for attempt in shop.record.attempts] == ["lost"]


# --- a function that ends in an unusual way ---


def leave() -> None:
    """End as a program does."""
    sys.exit("enough")


def cancel() -> None:
    """Let out what asyncio cancels tasks with."""
    raise asyncio.CancelledError("enough")


def is_stopped() -> None:
    """Be interrupted by the handler of a signal, as Celery's raises."""
    FunctionType(leave.__code__, {"__name__": "celery.apps.worker", "sys": sys})()


@pytest.mark.parametrize("ends", [leave, cancel])
def test_a_step_that_exits_has_failed(shop: Shop, ends: Callable[[], None]) -> None:
    """What is no ``Exception`` is a failure like any other, undoes the saga, and is told to Celery as one."""
    monkey: Any = shop
    monkey.meanwhile = ends
    executed = shop.execute(shop.begin())
    assert executed is not None
    assert executed.landed
    assert isinstance(executed.ended.raised, StepFailed)
    assert "enough" in str(executed.ended.raised)
    record = shop.record
    assert (record.steps[0].state, record.state) == (StepState.FAILED, SagaState.COMPENSATED)
    assert record.error is not None
    assert record.error.message == "enough"


@pytest.mark.parametrize("ends", [leave, cancel])
def test_a_coroutine_that_exits_has_failed(shop: Shop, ends: Callable[[], None]) -> None:
    """The same of an ``async def`` step, which runs in a loop of its own."""

    @shop.kit.step(name="shop.weigh")
    async def weigh() -> None:
        await asyncio.sleep(0)
        ends()

    context = StepContext(
        saga_id="s", saga_name="n", step_name="weigh", position=0, attempt=1, idempotency_key="s:0"
    )
    ended = perform(weigh, (), {}, context, policy=RetryPolicy(), retries=0, tainted=False, limits=Limits())
    assert isinstance(ended, Ended)
    assert ended.state is StepState.FAILED
    assert isinstance(ended.raised, StepFailed)


def test_a_step_whose_process_is_stopped_is_left_to_the_main_process(shop: Shop) -> None:
    """A signal handler's ``SystemExit`` goes on its way; why it came is not for the child to say."""
    monkey: Any = shop
    monkey.meanwhile = is_stopped
    with pytest.raises(SystemExit):
        shop.execute(shop.begin())
    row = shop.record.steps[0]
    assert (row.state, row.lost) == (StepState.RUNNING, 0)
    assert shop.record.state is SagaState.RUNNING


def test_a_result_that_breaks_its_type_is_unknown(shop: Shop) -> None:
    """A validator may raise anything: the step took effect, its result cannot be told, and no row is left running."""

    def look_up(value: int) -> int:
        return {0: 0}[value]

    @shop.kit.step(name="shop.weigh")
    def weigh() -> Annotated[int, AfterValidator(look_up)]:
        return 7

    @shop.kit.saga(name="shop.weighing")
    async def weighing(saga: Saga) -> None:
        await saga.step(weigh)

    weighing.start(saga_id="s")
    shop.kit.advance("s")
    executed = shop.execute(shop.deliver())
    assert executed is not None
    assert isinstance(executed.ended.raised, KeyError)
    assert shop.record.steps[0].state is StepState.UNKNOWN


# --- between the claim and the record ---


@pytest.mark.parametrize("landed", [True, False])
def test_a_claim_whose_answer_is_lost(shop: Shop, monkeypatch: pytest.MonkeyPatch, landed: bool) -> None:
    """The connection breaks as the row is claimed: if that was committed the row is given back, due at once."""
    delivery = shop.begin()
    at_once = shop.kit.store.at_once

    @contextmanager
    def fragile() -> Iterator[Transaction]:
        with at_once() as tx:
            yield tx
            if not landed:
                raise OperationalError("UPDATE", {}, ConnectionError("gone"))
        raise OperationalError("UPDATE", {}, ConnectionError("gone"))

    before = shop.record.steps
    monkeypatch.setattr(shop.kit.store, "at_once", fragile)
    with pytest.raises(OperationalError):
        shop.execute(delivery)
    monkeypatch.undo()
    assert shop.calls == []
    if not landed:
        assert shop.record.steps == before
        assert shop.execute(delivery) is not None
        return
    row = shop.record.steps[0]
    assert (row.state, row.lost, row.attempt, row.owner) == (StepState.SCHEDULED, 0, 1, None)
    with shop.kit.store.begin() as tx:
        [due] = tx.steps.due(9, republish_after=timedelta(9), republish_max=timedelta(9), presume_lost=False)
    assert shop.execute(delivery) is None
    assert shop.execute(Delivery("s", due.position, due.token)) is not None
    assert shop.calls == [("charge", 1)]


@pytest.mark.parametrize("again", [True, False])
def test_an_unexpected_error_frees_the_row(shop: Shop, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Whatever breaks around the function is raised, and the row is to run again, or unknown if it must not."""
    delivery = shop.begin()
    monkeypatch.setattr(shop.charge, "options", replace(shop.charge.options, acks_late=again))

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of sagakit")

    monkeypatch.setattr("sagakit.worker.executor.perform", broken)
    with pytest.raises(ZeroDivisionError):
        shop.execute(delivery)
    row = shop.record.steps[0]
    assert (row.state, row.lost) == (StepState.SCHEDULED if again else StepState.UNKNOWN, 1)
    assert row.error is not None
    assert "a fault of sagakit" in row.error.message
    assert [attempt.outcome for attempt in shop.record.attempts] == ["lost" if again else "unknown"]


# --- faults of the advance ---


def test_a_fault_of_the_advance_keeps_the_outcome(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that raises costs no outcome: the step has succeeded, and the saga is stuck until it is resumed."""
    delivery = shop.begin()
    monkeypatch.setattr(shop.kit.routing, "queue_of", _no_route)
    executed = shop.execute(delivery)
    assert executed is not None
    assert executed.landed
    record = shop.record
    assert [(row.name, row.state) for row in record.steps] == [("charge", StepState.SUCCEEDED)]
    assert record.state is SagaState.STUCK
    assert record.trouble is not None
    assert "no route" in record.trouble.message
    monkeypatch.undo()
    shop.kit.get("s").resume()
    shop.kit.advance("s")
    assert shop.execute(shop.deliver()) is not None
    assert shop.record.state is SagaState.COMPLETED
    assert shop.calls == [("charge", 1), ("ship", 2)]


def test_a_fault_of_an_advance_holds_the_saga(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An advance that no step brought about says what is wrong on the saga's record, too."""
    monkeypatch.setattr(shop.kit.routing, "queue_of", _no_route)
    shop.checkout.start(1, saga_id="s")
    assert shop.kit.advancer.advance("s")
    record = shop.record
    assert (record.state, record.steps) == (SagaState.STUCK, ())
    assert record.trouble is not None
    assert "no route" in record.trouble.message


def _no_route(*_: Any) -> str:
    raise LookupError("no route")


# --- what a step says and asks for ---


def test_progress_that_no_database_takes(shop: Shop) -> None:
    """NUL and halves of characters in a progress message do not fail the step."""
    monkey: Any = shop
    monkey.meanwhile = lambda: current_step.progress(1, 2, "a\0b\udc80c")
    executed = shop.execute(shop.begin())
    assert executed is not None
    row = shop.record.steps[0]
    assert (row.state, row.progress) == (StepState.SUCCEEDED, "1/2 ab?c")


@pytest.mark.parametrize("when", ["running", "committed"])
def test_a_retry_of_a_cancelled_saga_is_withdrawn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """No sweep need come by: a cancellation during the attempt is seen at once, up to the retry's own commit."""

    def give_up() -> None:
        if when == "running":
            shop.kit.get("s").cancel(reason="changed their mind")
        current_step.retry(countdown=3600)

    def point(name: str) -> None:
        if when == "committed" and name == "retry.committed":
            shop.kit.get("s").cancel(reason="changed their mind")

    monkey: Any = shop
    monkey.meanwhile = give_up
    delivery = shop.begin()
    monkeypatch.setattr("sagakit.worker.executor.probes.point", point)
    executed = shop.execute(delivery)
    assert executed is not None
    assert executed.landed
    record = shop.record
    assert (record.steps[0].state, record.steps[0].retries) == (StepState.CANCELLED, 1)
    assert record.state is SagaState.COMPENSATED
