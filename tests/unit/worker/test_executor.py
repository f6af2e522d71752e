"""What the executor refuses to run, to record, and to give up."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.exc import IntegrityError, OperationalError

from sagakit import Saga, SagaKit
from sagakit.dispatch.envelope import Delivery, Envelope, StepEnvelope
from sagakit.history import SagaRecord
from sagakit.ids import new_token
from sagakit.states import SagaState, StepState
from sagakit.store import Transaction
from sagakit.worker.executor import Executed
from sagakit.worker.identity import identity


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
    """What trying again cannot mend is raised, and the attempt is left to the lease."""
    delivery = shop.begin()

    def broken(*_: Any, **__: Any) -> Any:
        raise IntegrityError("UPDATE", {}, ValueError("a constraint"))

    monkeypatch.setattr(shop.kit.executor, "_finish", broken)
    with pytest.raises(IntegrityError):
        shop.execute(delivery)
    assert shop.record.steps[0].state is StepState.RUNNING
