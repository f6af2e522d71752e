"""Spike: a plain ``@app.task`` gets claim, fence and outcome from the ledger. See ADR 0008.

Runs a real Celery worker on an in-process broker, with no result backend, over SQLite or the Postgres of its argument:

    python docs/adr/spikes/plain_task.py [postgresql+psycopg://localhost/scratch]

The task functions below are what a team has today. Nothing in them, their decorators or their callers changes. What
makes them durable is mixed into the classes of their task objects, from outside (``adopt``).
"""

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.contrib.testing.worker import start_worker
from kombu.transport.virtual.base import Transport

from sagakit import Compensated, Saga, SagaKit, Step, StepFailed
from sagakit.definition.options import step_options
from sagakit.dispatch.envelope import StepEnvelope, find_header, read_delivery
from sagakit.errors import ErrorInfo
from sagakit.ids import new_token
from sagakit.states import StepState
from sagakit.worker.context import StepRetry
from sagakit.worker.task import Hidden, _report, policy_of

Transport.polling_interval = 0.01  # the in-process broker looks once a second otherwise

# --- what the team has today ------------------------------------------------------------------------------------

app = Celery("legacy", broker="memory://", backend=None)
app.conf.worker_prefetch_multiplier = 1

calls: list[tuple[Any, ...]] = []
gate, entered = threading.Event(), threading.Event()


class AuditedTask(Task):
    """The team's own task class, with a hook."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Write it down."""
        calls.append(("on_success", self.name))


@app.task(base=AuditedTask)
def charge(amount, currency="EUR"):
    """Charge a customer."""
    calls.append(("charge", amount, currency))
    return {"payment": f"p-{amount}", "currency": currency}


@app.task(bind=True, max_retries=3)
def ship(self, address):
    """Retry by hand, as Celery's guide has it."""
    calls.append(("ship", address, self.request.retries))
    try:
        if self.request.retries == 0 and len([call for call in calls if call[0] == "ship"]) == 1:
            raise ConnectionError("the carrier does not answer")
    except ConnectionError as exc:
        raise self.retry(exc=exc, countdown=0) from exc
    return f"parcel to {address}"


@app.task
def refuse(reason):
    """Fail."""
    raise RuntimeError(reason)


@app.task
def slow(number):
    """Run until the test lets it go: the first time."""
    calls.append(("slow", number))
    if len([call for call in calls if call[0] == "slow"]) == 1:
        entered.set()
        gate.wait(20)
        return "a zombie's result"
    return "the second attempt's result"


# --- the idea ---------------------------------------------------------------------------------------------------


class LedgerTask(Task):
    """Mixed into a plain task's class: a message with sagakit's header goes by the ledger, any other as before."""

    abstract = True
    # Celery makes requests of this class: it tells the sweep of a dead child, a hard time limit, a revocation.
    Request = "sagakit.worker.request:StepRequest"
    typing = False  # a row's message has no arguments that could be checked; people's are, below
    sagakit_kit: SagaKit
    sagakit_step: Step[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Claim, run, record and advance, if the message is a row's; Celery's own way otherwise."""
        header = None if self.request.called_directly else find_header(self.request)
        if header is None:
            return super().__call__(*args, **kwargs)
        kit, delivery = self.sagakit_kit, read_delivery(header)
        if delivery is None:
            return None
        kit.ready()
        # The arguments come from the row; the message has none.
        policy = policy_of(self, self.sagakit_step.options.retry)
        executed = kit.executor.execute(delivery, policy, self.request)
        if executed is None:
            calls.append(("nothing to do", self.name))
            return None
        calls.append(("landed" if executed.landed else "refused", self.name))
        reported = _report(executed)
        return reported.value if isinstance(reported, Hidden) else reported

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """What people send is checked as ever; sagakit's own messages do not come through here."""
        self.__header__(*(args or ()), **(kwargs or {}))
        return super().apply_async(args, kwargs, *more, **options)

    def retry(
        self, *args: Any, exc: BaseException | None = None, countdown: Any = None, **options: Any
    ) -> Any:
        """Write the retry to the row, where Celery would send a message; ``autoretry_for`` comes here as well."""
        if find_header(self.request) is None:
            return super().retry(*args, exc=exc, countdown=countdown, **options)
        from datetime import timedelta

        raise StepRetry(exc, None if countdown is None else timedelta(seconds=countdown))


def adopt(kit: SagaKit, task: Any) -> Step[..., Any]:
    """Make a step of a registered task, without touching the task's function, name, options or callers."""
    task = kit.app.tasks[task.name]
    step: Step[..., Any] = Step(task.run, step_options({}, task.name), name=task.name)
    kit.registry.add_task(step)
    # One object, and one class made for it: other tasks keep theirs, a team's own `base=` stays below the mixin.
    task.__class__ = type(
        task.__class__.__name__,
        (LedgerTask, task.__class__),
        {"abstract": True, "sagakit_kit": kit, "sagakit_step": step, "__call__": LedgerTask.__call__},
    )
    return step


# --- the proof --------------------------------------------------------------------------------------------------


def main(url: str) -> None:
    """Show it, and stop at the first thing that is not as it should be."""
    kit = SagaKit(app, database_url=url, republish_after=60, sweep_interval=0.5)
    kit.migrate()
    app.finalize()
    charged, shipped, refused, slowly = (adopt(kit, task) for task in (charge, ship, refuse, slow))

    @kit.saga(name="legacy.sell")
    async def sell(saga: Saga, amount: int) -> str:
        payment = await saga.step(charged, amount, currency="USD")
        return f"{payment['payment']}, {await saga.step(shipped, 'Main Street 1')}"

    @kit.saga(name="legacy.fail")
    async def fail(saga: Saga, reason: str) -> None:
        try:
            await saga.step(refused, reason)
        except StepFailed as exc:
            raise ValueError(f"{exc.type}: {exc.message}") from exc

    @kit.saga(name="legacy.crawl")
    async def crawl(saga: Saga, number: int) -> str:
        return await saga.step(slowly, number)

    with start_worker(app, pool="threads", concurrency=3, perform_ping_check=False, shutdown_timeout=30):
        outcomes_come_from_the_ledger(sell, fail)
        a_duplicate_finds_nothing_to_do(kit)
        a_zombie_is_fenced(kit, crawl)
        without_a_saga_nothing_changes()
    kit.store.dispose()


def outcomes_come_from_the_ledger(sell: Any, fail: Any) -> None:
    """Results, retries and errors reach the saga, and there is no result backend they could have come through."""
    assert app.conf.result_backend is None
    handle = sell.start(25, saga_id="sale-1")
    result = handle.result(timeout=30)
    assert result == "p-25, parcel to Main Street 1", result
    assert ("charge", 25, "USD") in calls
    assert ("on_success", charge.name) in calls, "the team's own task class still has its say"
    rows = handle.history().steps
    assert [(row.name, row.state, row.attempt) for row in rows] == [
        ("charge", StepState.SUCCEEDED, 1),
        ("ship", StepState.SUCCEEDED, 2),
    ], rows
    say("outcome", f"{result!r} by way of the ledger; ship retried itself, durably")
    outcome = fail.start("no stock", saga_id="sale-2").outcome(timeout=30)
    assert isinstance(outcome, Compensated), outcome
    assert "RuntimeError: no stock" in str(outcome.error), outcome
    say("outcome", f"an exception arrives as data: {outcome.error}")


def a_duplicate_finds_nothing_to_do(kit: SagaKit) -> None:
    """A message delivered a second time cannot claim: its token was used up by the first."""
    before = calls.count(("charge", 25, "USD"))
    with kit.store.read() as tx:
        used = tx.steps.token("sale-1", 0) or ""
    send(kit, "sale-1", charge.name, "charge", used)
    send(kit, "sale-1", charge.name, "charge", new_token())
    wait_for(lambda: calls.count(("nothing to do", charge.name)) == 2)
    assert calls.count(("charge", 25, "USD")) == before
    say("claim", "two more messages for the row found nothing to do")


def a_zombie_is_fenced(kit: SagaKit, crawl: Any) -> None:
    """An attempt that was given up for lost finishes late: its outcome is refused, the second one's stands."""
    handle = crawl.start(1, saga_id="crawl-1")
    assert entered.wait(20)
    with kit.store.begin() as tx:
        row = tx.steps.running("crawl-1", 0)
        assert row is not None
        state = tx.steps.lose(
            "crawl-1",
            0,
            row.token,
            new_token=new_token(),
            rerun=True,
            max_lost=3,
            error=ErrorInfo(type="spike.Lost", message="given up for lost"),
        )
        assert state is StepState.SCHEDULED
    result = handle.result(timeout=30)  # the sweep sends the row again, under its new token
    assert result == "the second attempt's result", result
    gate.set()
    wait_for(lambda: ("refused", slow.name) in calls)
    [step] = handle.history().steps
    assert (step.attempt, step.result) == (2, "the second attempt's result"), step
    say("fence", "the zombie's late result was refused")


def without_a_saga_nothing_changes() -> None:
    """The same task, sent as ever, runs as ever."""
    landed = len([call for call in calls if call[0] == "landed"])
    charge.delay(7)
    wait_for(lambda: ("charge", 7, "EUR") in calls)
    assert charge(8)["payment"] == "p-8"
    try:
        charge.delay()
    except TypeError:
        pass
    else:
        raise AssertionError("a call without its argument was not refused")
    assert len([call for call in calls if call[0] == "landed"]) == landed
    say("plain", "charge.delay(7) and charge(8) never met the ledger")


def send(kit: SagaKit, saga_id: str, task: str, name: str, token: str) -> None:
    """Send a row's message once more."""
    assert kit.publisher.publish(
        [
            StepEnvelope(
                saga_id=saga_id, saga_name="legacy.sell", position=0, token=token, task=task, name=name
            )
        ]
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds, for so long."""
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"this did not come about: {calls}")


def say(what: str, text: str) -> None:
    """One line of the report."""
    sys.stdout.write(f"{what:<8} {text}\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder) / 'ledger.db'}")
