"""A step is a Celery task in every respect: options, hooks, retries, routes, limits, revocation."""

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain
from celery.beat import ScheduleEntry, Scheduler

from sagakit import Compensated, Completed, SagaFailed, SagaHandle, SagaState, StepState
from sagakit.errors import NotAllowed
from tests.acceptance.events import Events
from tests.acceptance.stage import Stage
from tests.cluster.nodes import WorkerNode
from tests.cluster.waiting import wait_until

APP = "manners"
APP_MODULE = "tests.acceptance.apps.manners"
SECRET = "swordfish"


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> WorkerNode:
    """One worker for everything, with a soft spot for nothing."""
    [node] = stage.cluster.start(stage.app, queues=["celery", "routed"], concurrency=4)
    return node


@pytest.fixture(scope="module")
def events(stage: Stage, worker: WorkerNode) -> Iterator[Events]:
    """What Flower would see."""
    with Events(stage.module.app) as found:
        yield found


_ids = itertools.count(1)


def call(stage: Stage, step: str, *args: Any, saga: str = "one", **options: Any) -> SagaHandle[Any]:
    """Start a saga that calls one step."""
    given = {"step": step, "args": list(args), "kwargs": options.pop("kwargs", {})}
    given["options"] = options.pop("set", {})
    saga_id = options.pop("saga_id", f"{step}-{next(_ids)}")
    return getattr(stage.module, saga).start(stage.Call(**given), saga_id=saga_id, **options)


def failure(handle: SagaHandle[Any]) -> Any:
    with pytest.raises(SagaFailed) as caught:
        handle.result(30)
    return caught.value.outcome.error


class TestWhatIsSeen:
    """Events, signals and logs, as for any task, and no argument or result in them."""

    def test_a_success(self, stage: Stage, events: Events) -> None:
        """The message names saga, id and step, never an argument; the result's value is hidden."""
        handle = call(stage, "watched", SECRET)
        assert handle.result(30) == SECRET.upper()
        received = events.wait_for(f"{handle.id}.0", "task-received")
        assert received["args"] == f"one {handle.id} watched"
        assert received["name"] == f"{APP_MODULE}.watched"
        assert events.wait_for(f"{handle.id}.0", "task-succeeded")["result"] == "<str>"

    def test_a_failure(self, stage: Stage, events: Events) -> None:
        """A failed step is a failed task, with the traceback of the user's function."""
        handle = call(stage, "watched_failing", SECRET)
        assert str(failure(handle)) == "ValueError: boom"
        failed = events.wait_for(f"{handle.id}.0", "task-failed")
        assert failed["exception"] == "ValueError('boom')"
        assert 'raise ValueError("boom")' in failed["traceback"]
        assert "in watched_failing" in failed["traceback"]

    def test_a_retry(self, stage: Stage, events: Events) -> None:
        """A retried step is a retried task, and then a succeeded one."""
        handle = call(stage, "watched_retrying", SECRET)
        assert handle.result(30) == SECRET
        retried = events.wait_for(f"{handle.id}.0", "task-retried")
        assert "try again" in retried["exception"]
        events.wait_for(f"{handle.id}.0", "task-succeeded")

    def test_signals(self, stage: Stage) -> None:
        """Celery's signals fire in the worker as for any task."""
        handles = [call(stage, name, SECRET) for name in ("watched", "watched_failing", "watched_retrying")]
        for handle in handles:
            handle.outcome(30)
        stage.effects.wait_for(kind="signal postrun SUCCESS", saga_id=f"{handles[2].id}.0")
        stage.effects.wait_for(kind="signal postrun FAILURE", saga_id=f"{handles[1].id}.0")
        stage.effects.wait_for(kind="signal postrun SUCCESS", saga_id=f"{handles[0].id}.0")
        seen = [[effect.kind for effect in stage.effects.all(saga_id=f"{handle.id}.0")] for handle in handles]
        assert seen[0] == ["signal prerun", "signal success", "signal postrun SUCCESS"]
        assert seen[1] == ["signal prerun", "signal failure ValueError('boom')", "signal postrun FAILURE"]
        assert seen[2] == [
            "signal prerun",
            "signal retry",
            "signal postrun RETRY",
            "signal prerun",
            "signal success",
            "signal postrun SUCCESS",
        ]

    def test_no_value_is_seen(self, stage: Stage, events: Events, worker: WorkerNode) -> None:
        """Neither arguments nor results are in any event or log line."""
        names = ("watched", "watched_failing", "watched_retrying")
        handles = [call(stage, name, SECRET) for name in names]
        for handle in handles:
            handle.outcome(30)
        events.wait_for(f"{handles[1].id}.0", "task-failed")
        for handle in handles:
            assert handle.id in events.text(handle.id)
            assert SECRET not in events.text(handle.id).lower()
        assert SECRET not in worker.container.recent_logs().lower()

    def test_the_log(self, stage: Stage, worker: WorkerNode) -> None:
        """A failed step is logged with the user's traceback."""
        handle = call(stage, "watched_failing", SECRET)
        handle.outcome(30)
        task = re.escape(f"{APP_MODULE}.watched_failing[{handle.id}.0]")
        worker.wait_for_log(rf"ERROR/.*Task {task} raised unexpected: ValueError\('boom'\)")

    def test_what_a_step_knows(self, stage: Stage) -> None:
        """The step's context, its task id and the stamp all name the saga."""
        handle = call(stage, "about", set={"name": "renamed"})
        assert handle.result(30) == {
            "saga_id": handle.id,
            "saga_name": f"{APP_MODULE}.one",
            "step_name": "renamed",
            "position": 0,
            "attempt": 1,
            "key": f"{handle.id}:0",
            "task_id": f"{handle.id}.0",
            "stamp": handle.id,
        }


class TestHooks:
    """``task_cls`` and ``base=``."""

    def test_the_application_s_task_class(self, stage: Stage) -> None:
        """``on_success`` gets the arguments as the step got them, and the value it returned."""
        inner = {"step": "x", "args": [], "kwargs": {}, "options": {}}
        handle = call(stage, "hooked", inner, kwargs={"extra": 2})
        handle.result(30)
        [effect] = stage.effects.wait_for(saga_id=f"{handle.id}.0")
        order = "Call(step='x', args=[], kwargs={}, options={})"
        assert effect.kind == "on_success"
        assert effect.detail == [[order], {"extra": "2"}, order]

    def test_a_step_s_own_base(self, stage: Stage) -> None:
        """All hooks of the step's class and of the application's are called, in Celery's order."""
        inner = {"step": "x", "args": [], "kwargs": {}, "options": {}}
        handle = call(stage, "hooked_base", inner)
        handle.outcome(30)
        order = ["Call(step='x', args=[], kwargs={}, options={})"]
        seen = stage.effects.wait_for(3, saga_id=f"{handle.id}.0")
        assert [effect.kind for effect in seen] == ["on_retry", "on_failure", "after_return FAILURE"]
        assert all(effect.detail[0] == order for effect in seen)
        assert "no good" in seen[0].detail[2]
        assert seen[1].detail[2] == seen[2].detail[2] == "ValueError('no good')"


class TestRetries:
    """Retries are durable and honour Celery's options."""

    def test_bind_and_retry(self, stage: Stage) -> None:
        """``bind=True`` passes the context, whose ``retry()`` is recorded on the row."""
        handle = call(stage, "bound", 10)
        assert handle.result(30) == 13
        row = stage.row(handle, "bound")
        assert (row.attempt, row.retries) == (3, 2)
        assert [(a.attempt, a.outcome) for a in handle.history().attempts] == [(1, "retried"), (2, "retried")]

    @pytest.mark.parametrize("step", ["raises_retry", "asks_task"])
    def test_celery_s_own_ways_to_retry(self, stage: Stage, step: str) -> None:
        """``raise Retry`` and ``self.retry()`` of the Celery task are retries of the step."""
        handle = call(stage, step)
        assert handle.result(30) == 2
        assert stage.row(handle, step).retries == 1

    def test_too_many_retries(self, stage: Stage) -> None:
        """A retry that is asked for beyond ``max_retries`` fails the step with the cause."""
        handle = call(stage, "gives_up")
        error = failure(handle)
        assert (error.type, error.message) == ("ValueError", "the cause")
        assert len(stage.done(handle.id)) == 2

    def test_back_off(self, stage: Stage) -> None:
        """``retry_backoff`` doubles the wait."""
        handle = call(stage, "backing_off")
        assert failure(handle).message == "never"
        first, second, third = (effect.at for effect in stage.effects.all(saga_id=handle.id))
        assert second - first >= 0.2
        assert third - second >= 0.4

    def test_task_annotations(self, stage: Stage) -> None:
        """``task_annotations`` set ``max_retries`` and the delay of a step that gives none."""
        handle = call(stage, "annotated")
        failure(handle)
        assert len(stage.done(handle.id)) == 2

    @pytest.mark.parametrize(
        ("what", "error"), [("declined", f"{APP_MODULE}.Declined"), ("gone", f"{APP_MODULE}.Gone")]
    )
    def test_throws(self, stage: Stage, what: str, error: str) -> None:
        """A declared error is never retried, a ``StepError`` or not."""
        handle = call(stage, "throwing", what)
        assert failure(handle).type == error
        assert len(stage.done(handle.id)) == 1

    def test_dont_autoretry_for(self, stage: Stage) -> None:
        """``dont_autoretry_for`` wins over ``autoretry_for``."""
        handle = call(stage, "choosy")
        failure(handle)
        assert len(stage.done(handle.id)) == 1

    def test_the_delay_is_on_the_row(self, stage: Stage) -> None:
        """A retry is a due time on the row, not a message with a countdown."""
        handle = call(stage, "plain", 1)
        handle.result(30)
        slow = call(stage, "raises_retry")
        stage.effects.wait_for(1, saga_id=slow.id)
        slow.result(30)
        row = stage.row(slow, "raises_retry")
        assert row.due_at is not None


class TestPlacing:
    """Where messages go, and how fast."""

    @pytest.mark.parametrize(
        ("step", "options", "queue", "priority"),
        [
            ("unplaced", {}, "celery", 0),
            ("routed", {}, "routed", 0),
            ("placed", {}, "routed", 4),
            ("unplaced", {"queue": "routed", "priority": 2}, "routed", 2),
            ("placed", {"queue": "celery", "priority": 9}, "celery", 9),
        ],
    )
    def test_queue_and_priority(
        self, stage: Stage, step: str, options: dict[str, Any], queue: str, priority: int
    ) -> None:
        """Routes, a step's options and those of one call, each winning over the one before."""
        found = call(stage, step, set=options).result(30)
        assert found == {"routing_key": queue, "priority": priority}

    def test_a_saga_s_priority(self, stage: Stage) -> None:
        """A saga's priority is that of its steps' messages, unless a step has its own."""
        assert call(stage, "unplaced", priority=7).result(30)["priority"] == 7
        assert call(stage, "placed", priority=7).result(30)["priority"] == 4

    def test_a_rate_limit(self, stage: Stage) -> None:
        """``rate_limit`` from ``task_annotations`` holds steps back."""
        handles = [call(stage, "limited", n) for n in range(5)]
        for handle in handles:
            handle.result(30)
        times = [effect.at for effect in stage.effects.all(step="limited")]
        assert max(times) - min(times) >= 0.6

    def test_an_async_step(self, stage: Stage) -> None:
        """An ``async def`` step runs."""
        assert call(stage, "asynchronous", 1).result(30) == 2

    def test_shared_definitions(self, stage: Stage) -> None:
        """``shared_step`` and ``shared_saga`` belong to every application with a kit."""
        handle = stage.kit.start(stage.shared_body, 7, saga_id="shared")
        assert handle.result(30) == 21
        handle.compensate(completed=True, reason="to see")
        assert isinstance(handle.outcome(30), Compensated)
        assert stage.done("shared") == ["shared", "unshare"]


class TestPlainTasks:
    """A step is also an ordinary task."""

    def test_delay(self, stage: Stage) -> None:
        """``step.delay()`` outside a saga runs the function, without any saga."""
        before = len(stage.kit.find())
        result = stage.plain.delay(5, fails=0)
        [effect] = stage.effects.wait_for(saga_id="plain", detail=[5, 0])
        assert effect.key == result.id
        assert effect.attempt == 1
        assert len(stage.kit.find()) == before

    def test_signatures_of_steps(self, stage: Stage) -> None:
        """Steps are members of chains, and plain tasks pass them values."""
        (stage.add.s(1, 2) | stage.plain.s() | stage.note.s()).apply_async()
        stage.effects.wait_for(saga_id="plain", detail=[3, 0])
        stage.effects.wait_for(saga_id="chain", detail=6)

    def test_retries_of_a_plain_task(self, stage: Stage) -> None:
        """Sent as a plain task a step is retried by its own policy, too, and if it asks for it."""
        stage.plain.delay(6, fails=2)
        assert [e.attempt for e in stage.effects.wait_for(3, saga_id="plain", detail=[6, 2])] == [1, 2, 3]
        (stage.bound.s(10) | stage.note.s()).apply_async()
        stage.effects.wait_for(saga_id="chain", detail=13)

    def test_types_of_a_plain_task(self, stage: Stage) -> None:
        """Models come as models and go as JSON, async steps run, and the step's queue is taken."""
        inner = stage.Call(step="x")
        (stage.hooked.s(inner, extra=3) | stage.note.s()).apply_async()
        stage.effects.wait_for(saga_id="chain", detail=inner.model_dump())
        (stage.asynchronous.s(41) | stage.note.s()).apply_async()
        stage.effects.wait_for(saga_id="chain", detail=42)
        (stage.placed.s() | stage.note.s()).apply_async()
        stage.effects.wait_for(saga_id="chain", detail={"routing_key": "routed", "priority": 0})

    def test_called_directly(self, stage: Stage) -> None:
        """Called, it is the function it is."""
        assert stage.watched("x") == "X"


class TestStarting:
    """A saga is also a Celery task."""

    def test_delay_and_apply_async(self, stage: Stage) -> None:
        """``delay`` and ``apply_async`` write the row in the caller; ``task_id`` becomes the saga's id."""
        assert stage.echo.delay(4).result(30) == 8
        handle = stage.echo.apply_async((5,), task_id="by-task-id", priority=3)
        assert handle.id == "by-task-id"
        assert handle.result(30) == 10
        assert handle.history().priority == 3

    def test_in_a_chain(self, stage: Stage) -> None:
        """In a chain a saga takes its input from the task before it, and passes on its id at once."""
        chain(stage.add.s(20, 3), stage.echo.s(), stage.note.s()).apply_async()
        wait_until(lambda: stage.kit.find(name=f"{APP_MODULE}.echo", newer_than="30s"))
        [told] = wait_until(
            lambda: [e for e in stage.effects.all(saga_id="chain") if isinstance(e.detail, str)]
        )
        assert stage.kit.get(told.detail).result(30) == 46

    def test_from_beat(self, stage: Stage) -> None:
        """Beat sends a message, and the worker that gets it starts the saga under the message's id."""
        scheduler = Scheduler(app=stage.module.app, lazy=True)
        entry = ScheduleEntry(
            name="echo",
            task=f"{APP_MODULE}.echo",
            args=(31,),
            options={"task_id": "beat-1"},
            app=stage.module.app,
        )
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
        handle = stage.kit.get("beat-1")
        wait_until(lambda: stage.kit.find(name=f"{APP_MODULE}.echo") and exists(handle))
        assert handle.result(30) == 62

    def test_a_redelivered_message_starts_one_saga(self, stage: Stage) -> None:
        """The same message twice is the same saga."""
        for _ in range(2):
            stage.module.app.send_task(f"{APP_MODULE}.echo", args=(13,), task_id="twice")
        handle = stage.kit.get("twice")
        wait_until(lambda: exists(handle))
        assert handle.result(30) == 26
        wait_until(
            lambda: len(stage.cluster.nodes[0].container.recent_logs().split("echo[twice] succeeded")) == 3
        )
        assert stage.done("twice") == ["plain"]


def exists(handle: SagaHandle[Any]) -> bool:
    return any(summary.id == handle.id for summary in handle._kit.find(limit=1000))


class TestRevoking:
    """Flower's buttons."""

    def park(self, stage: Stage, queue: str) -> SagaHandle[Any]:
        """A saga whose second step waits in a queue that nobody consumes."""
        handle = call(stage, "held", "never", saga="anchored", set={"queue": queue})
        wait_until(lambda: any(row.queue == queue for row in handle.history().steps))
        return handle

    def test_before_it_runs(self, stage: Stage) -> None:
        """Revoking the task of a step that has not begun cancels the step, and the body hears of it."""
        handle = self.park(stage, "parked")
        control = stage.module.app.control
        control.revoke(f"{handle.id}.1", reply=True)
        control.add_consumer("parked", reply=True)
        assert "carried on: held" in handle.result(30)
        row = stage.row(handle, "held")
        assert row.state is StepState.CANCELLED
        assert "its Celery task was revoked" in str(row.error)
        assert stage.done(handle.id) == ["anchor"]
        control.cancel_consumer("parked", reply=True)

    def test_by_the_stamped_header(self, stage: Stage) -> None:
        """``revoke_by_stamped_headers`` finds the steps of a saga by its id."""
        handle = self.park(stage, "stamped")
        control = stage.module.app.control
        control.revoke_by_stamped_headers({"saga_id": [handle.id]}, reply=True)
        control.add_consumer("stamped", reply=True)
        assert "carried on" in handle.result(30)
        assert stage.row(handle, "held").state is StepState.CANCELLED
        control.cancel_consumer("stamped", reply=True)
        # Workers never forget a revoked stamp. What undoes the saga does not bear it.
        handle.compensate(completed=True, reason="to see")
        assert isinstance(handle.outcome(30), Compensated)
        assert stage.done(handle.id) == ["anchor", "weigh"]

    def test_terminating(self, stage: Stage) -> None:
        """Terminating a running step leaves its outcome unknown, and it is undone as such."""
        with stage.effects.gate("terminated") as gate:
            handle = call(stage, "held", "terminated", saga="anchored")
            gate.wait_reached()
            stage.module.app.control.revoke(f"{handle.id}.1", terminate=True, signal="SIGKILL")
            outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        row = stage.row(handle, "held")
        assert row.state is StepState.UNKNOWN
        assert "its Celery task was terminated while it ran" in str(row.error)
        assert stage.done(handle.id) == ["anchor", "unhold", "weigh"]
        assert stage.effects.all(saga_id=handle.id, step="unhold")[0].detail == [None, "unknown"]


class TestLimits:
    """Time limits, expiry, and attempts that are lost."""

    def test_a_lost_attempt_of_an_early_acknowledged_step(self, stage: Stage) -> None:
        """``acks_late=False``: a step that takes its process with it is unknown, and not run again."""
        handle = call(stage, "fragile")
        error = failure(handle)
        assert error.step == "fragile"
        row = stage.row(handle, "fragile")
        assert (row.state, row.attempt, row.lost) == (StepState.UNKNOWN, 1, 1)
        assert stage.done(handle.id) == ["fragile"]

    def test_expires(self, stage: Stage) -> None:
        """A step that nobody has begun in time is cancelled, by its row and not by its message."""
        handle = call(stage, "held", "never", saga="anchored", set={"queue": "nobody", "expires": 0.3})
        assert "carried on" in handle.result(30)
        row = stage.row(handle, "held")
        assert row.state is StepState.CANCELLED
        assert "no worker had begun it when it expired" in str(row.error)

    def test_a_time_limit_under_prefork(self, stage: Stage) -> None:
        """A step that runs past its limit is unknown at once and undone; what it says later is refused."""
        with stage.effects.gate("slow prefork") as gate:
            handle = call(stage, "slow", "slow prefork", saga="anchored")
            gate.wait_reached()
            outcome = handle.outcome(30)
            assert isinstance(outcome, Compensated)
            assert outcome.compensated == ("slow", "anchor")
            row = stage.row(handle, "slow")
            assert row.state is StepState.UNKNOWN
            assert "it ran past its time_limit" in str(row.error)
        stage.cluster.nodes[0].wait_for_log(rf"{handle.id}: the outcome of slow \(attempt 1\) came too late")
        assert stage.row(handle, "slow").state is StepState.UNKNOWN

    def test_celery_s_hard_limit(self, stage: Stage) -> None:
        """A step that the application-wide ``task_time_limit`` kills is unknown, and undone."""
        stage.cluster.start(stage.app, queues=["limits"], concurrency=1, args=["--time-limit=1"])
        with stage.effects.gate("hard") as gate:
            handle = call(stage, "held", "hard", saga="anchored", set={"queue": "limits"})
            gate.wait_reached()
            outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        row = stage.row(handle, "held")
        assert (row.state, row.attempt) == (StepState.UNKNOWN, 1)
        assert "it was killed at Celery's hard time limit" in str(row.error)

    def test_a_saga_s_deadline(self, stage: Stage) -> None:
        """A saga past its deadline is undone, whatever it waits for."""
        handle = call(
            stage, "held", "never", saga="anchored", set={"queue": "nobody"}, deadline=timedelta(seconds=1)
        )
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.compensated == ("anchor",)
        assert outcome.error is not None
        assert "not completed by its deadline" in outcome.error.message
        assert stage.row(handle, "held").state is StepState.CANCELLED

    def test_a_deadline_as_a_time(self, stage: Stage) -> None:
        """A saga in time does not mind its deadline, given as a time."""
        handle = call(stage, "plain", 1, deadline=datetime.now(UTC) + timedelta(hours=1))
        assert isinstance(handle.outcome(30), Completed)


class TestCancelling:
    """``cancel`` at every point of a saga's life."""

    def test_while_pending(self, stage: Stage, worker: WorkerNode) -> None:
        """A saga that no worker has looked at yet never runs."""
        worker.pause()
        try:
            handle = call(stage, "held", "pending", saga="anchored")
            assert handle.status() is SagaState.PENDING
            handle.cancel(reason="too soon", actor="ann")
        finally:
            worker.resume()
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.error is not None
        assert outcome.error.message == "cancelled: too soon"
        assert handle.history().steps == ()
        [entry] = handle.history().audit
        assert (entry.action, entry.actor, entry.reason) == ("cancel", "ann", "too soon")

    def test_while_running(self, stage: Stage) -> None:
        """What runs is drained, what took effect is undone."""
        with stage.effects.gate("running") as gate:
            handle = call(stage, "held", "running", saga="anchored")
            gate.wait_reached()
            handle.cancel(reason="customer withdrew")
            stage.wait_for_state(handle, SagaState.COMPENSATING)
            assert stage.done(handle.id) == ["anchor"]
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.compensated == ("held", "anchor")
        assert stage.done(handle.id) == ["anchor", "held", "unhold", "weigh"]

    def test_while_it_is_being_undone(self, stage: Stage) -> None:
        """Cancelling what is being undone changes nothing."""
        with stage.effects.gate("weigh twice-cancelled") as gate:
            handle = call(stage, "watched_failing", "x", saga="anchored", saga_id="twice-cancelled")
            gate.wait_reached()
            handle.cancel(reason="once more")
        outcome = handle.outcome(30)
        assert outcome.failed_step == "watched_failing"
        assert stage.done(handle.id) == ["anchor", "weigh"]

    @pytest.mark.parametrize(
        ("step", "text"),
        [
            (
                "watched",
                "saga {} is completed and cannot be cancelled any more; `saga compensate --completed` undoes it",
            ),
            ("watched_failing", "saga {} is compensated and cannot be cancelled any more"),
        ],
    )
    def test_after_its_end(self, stage: Stage, step: str, text: str) -> None:
        """A saga that has ended is not cancelled, and the refusal says what can be done."""
        handle = call(stage, step, "x")
        handle.outcome(30)
        with pytest.raises(NotAllowed, match="^" + re.escape(text.format(handle.id)) + "$"):
            handle.cancel(reason="too late")
