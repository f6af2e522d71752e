"""Steps that are Celery tasks in every respect: hooks, signals, routes, annotations, retries, limits."""

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any

from celery import Celery, Task
from celery.exceptions import Retry
from celery.signals import task_failure, task_postrun, task_prerun, task_retry, task_success
from pydantic import BaseModel

from sagakit import (
    Saga,
    SagaKit,
    StepCancelled,
    StepContext,
    StepError,
    current_step,
    shared_saga,
    shared_step,
)
from tests.acceptance.apps import act, told
from tests.cluster import effects


def hook(task: Task, name: str, args: Any, kwargs: Any, value: Any) -> None:
    """Record that one of Celery's hooks was called, and with what."""
    shown = [[repr(arg) for arg in args], {key: repr(given) for key, given in kwargs.items()}, repr(value)]
    effects.record(task.request.id, task.name.rpartition(".")[2], name, detail=shown)


class AppTask(Task):
    """The application's own task class: hooks into the tasks that ask for it."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        if "hooked" in self.name:
            hook(self, "on_success", args, kwargs, retval)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if "hooked" in self.name:
            hook(self, "on_failure", args, kwargs, exc)


class StepBase(AppTask):
    """A class that a step names with ``base=``."""

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        hook(self, "on_retry", args, kwargs, exc)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        hook(self, f"after_return {status}", args, kwargs, retval)


app = Celery("manners", task_cls=AppTask, set_as_current=False)
app.conf.worker_send_task_events = True
app.conf.worker_prefetch_multiplier = 1
app.conf.task_routes = {f"{__name__}.routed": {"queue": "routed"}}
app.conf.task_annotations = {
    f"{__name__}.limited": {"rate_limit": "5/s"},
    f"{__name__}.annotated": {"max_retries": 1, "default_retry_delay": 0},
}
kit = SagaKit(app, sweep_interval="1s")


class Call(BaseModel):
    """A step to be called by a saga that calls just one."""

    step: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}


class Declined(StepError):
    """A declared error."""

    reason: str


class Gone(Exception):
    """An ordinary error that is declared."""


# --- what is seen of them ---


@kit.step
def watched(secret: str) -> str:
    """Succeeds."""
    return secret.upper()


@kit.step
def watched_failing(secret: str) -> str:
    """Fails."""
    raise ValueError("boom")


@kit.step(max_retries=3, default_retry_delay=0)
def watched_retrying(secret: str) -> str:
    """Fails once."""
    if current_step.attempt == 1:
        raise ConnectionError("try again")
    return secret


def on_signal(name: str, sender: Any, task_id: str) -> None:
    if "watched" in sender.name:
        effects.record(task_id, sender.name.rpartition(".")[2], f"signal {name}")


@task_prerun.connect(weak=False)
def on_prerun(sender: Any, task_id: str, **_: Any) -> None:
    on_signal("prerun", sender, task_id)


@task_postrun.connect(weak=False)
def on_postrun(sender: Any, task_id: str, state: str, **_: Any) -> None:
    on_signal(f"postrun {state}", sender, task_id)


@task_success.connect(weak=False)
def on_success(sender: Any, **_: Any) -> None:
    on_signal("success", sender, sender.request.id)


@task_failure.connect(weak=False)
def on_failure(sender: Any, task_id: str, exception: Exception, **_: Any) -> None:
    on_signal(f"failure {exception!r}", sender, task_id)


@task_retry.connect(weak=False)
def on_retry(sender: Any, request: Any, reason: Any, **_: Any) -> None:
    on_signal("retry", sender, request.id)


# --- hooks ---


@kit.step
def hooked(order: Call, *, extra: int = 1) -> Call:
    """Succeeds under the application's task class."""
    return order


@kit.step(base=StepBase, max_retries=1, default_retry_delay=0)
def hooked_base(order: Call) -> Call:
    """Fails for good under a class of its own."""
    raise ValueError("no good")


# --- retries ---


@kit.step(bind=True, max_retries=3)
def bound(self: StepContext, number: int) -> int:
    """Asks for a retry through its first parameter."""
    effects.record()
    if self.attempt < 3:
        self.retry(countdown=0.05)
    return number + self.attempt


@kit.step
def raises_retry() -> int:
    """Asks for a retry as a task may."""
    effects.record()
    if current_step.attempt < 2:
        raise Retry(when=0.05)
    return current_step.attempt


@kit.step(max_retries=1)
def gives_up() -> None:
    """Asks for more retries than it has."""
    effects.record()
    try:
        raise ValueError("the cause")
    except ValueError as exc:
        current_step.retry(exc, countdown=timedelta(milliseconds=10))


@kit.step
def asks_task() -> int:
    """Asks for a retry through its Celery task, as ``self.retry`` of a task does."""
    effects.record()
    if current_step.attempt < 2:
        raise asks_task.task.retry(countdown=0.05)
    return current_step.attempt


@kit.step(max_retries=2, retry_backoff=0.2, retry_jitter=False)
def backing_off() -> None:
    """Fails every time, further and further apart."""
    effects.record()
    raise ConnectionError("never")


@kit.step
def annotated() -> None:
    """Is retried, because an annotation says so."""
    effects.record()
    raise ConnectionError("never")


@kit.step(max_retries=5, default_retry_delay=0, throws=(Declined, Gone))
def throwing(what: str) -> None:
    """Is not retried for what it declares."""
    effects.record()
    raise Declined(reason="funds") if what == "declined" else Gone("away")


@kit.step(
    max_retries=5, default_retry_delay=0, autoretry_for=(ConnectionError,), dont_autoretry_for=(OSError,)
)
def choosy() -> None:
    """What is not retried wins."""
    effects.record()
    raise ConnectionError("an OSError")


# --- limits and losses ---


@kit.step
def anchor() -> str:
    """A step with something to undo."""
    act()
    return "anchored"


@anchor.compensation
def weigh(result: str) -> None:
    """Undoes it."""
    act()


@kit.step
def held(name: str) -> str:
    """Waits at a gate."""
    effects.pass_gate(name)
    act()
    return name


@held.compensation
def unhold(result: str | None, name: str) -> None:
    """Undoes it, whether it is known to have happened or not."""
    effects.record(detail=[result, current_step.outcome])


@kit.step(acks_late=False)
def fragile() -> None:
    """Kills its own process, and must not run again."""
    effects.record()
    os.kill(os.getpid(), signal.SIGKILL)


@kit.step(time_limit=0.4)
def slow(name: str) -> str:
    """Has less time than it takes."""
    effects.pass_gate(name)
    effects.record()
    return "late"


@slow.compensation
def unslow(result: str | None) -> None:
    """Undoes it."""
    effects.record(detail=[result, current_step.outcome])


# --- the rest of Celery's vocabulary ---


@kit.step
async def asynchronous(number: int) -> int:
    """An ``async def`` step."""
    await asyncio.sleep(0.01)
    effects.record()
    return number + 1


def delivered() -> dict[str, Any]:
    return {key: current_step.request.delivery_info[key] for key in ("routing_key", "priority")}


@kit.step
def routed() -> dict[str, Any]:
    """Goes where ``task_routes`` says."""
    return delivered()


@kit.step(queue="routed", priority=4)
def placed() -> dict[str, Any]:
    """Goes where its options say."""
    return delivered()


@kit.step
def unplaced() -> dict[str, Any]:
    """Goes to the default queue."""
    return delivered()


@kit.step
def limited(number: int) -> int:
    """Has a rate limit."""
    effects.record("limited", "limited")
    return number


@kit.step
def about() -> dict[str, Any]:
    """Tells what it knows about itself."""
    told_name = current_step.saga_name
    return {
        "saga_id": current_step.saga_id,
        "saga_name": told_name,
        "step_name": current_step.step_name,
        "position": current_step.position,
        "attempt": current_step.attempt,
        "key": current_step.idempotency_key,
        "task_id": current_step.request.id,
        "stamp": (current_step.request.stamps or {}).get("saga_id"),
    }


@kit.step(max_retries=2, default_retry_delay=0)
def plain(number: int, *, fails: int = 0) -> int:
    """A step that is also sent as a plain task."""
    effects.record(current_step.saga_id or "plain", attempt=current_step.attempt, detail=[number, fails])
    if current_step.attempt <= fails:
        raise ConnectionError("again")
    return number * 2


@shared_step
def shared(number: int) -> int:
    """A step of every application."""
    effects.record()
    return number * 3


@shared.compensation
def unshare(result: int) -> None:
    """Its compensation."""
    effects.record()


@kit.step
def answer() -> int:
    """Answers what the test says."""
    return told("answer", 0)


@kit.saga
async def one(saga: Saga, call: Call) -> Any:
    """Calls one step."""
    step = kit.steps[f"{__name__}.{call.step}"]
    found = await saga.step(step.set(**call.options) if call.options else step, *call.args, **call.kwargs)
    return found.model_dump() if isinstance(found, BaseModel) else found


@kit.saga
async def anchored(saga: Saga, call: Call) -> Any:
    """Calls one step after one that can be undone, and survives a cancelled one."""
    await saga.step(anchor)
    step = kit.steps[f"{__name__}.{call.step}"]
    try:
        return await saga.step(step.set(**call.options) if call.options else step, *call.args, **call.kwargs)
    except StepCancelled as exc:
        return f"carried on: {exc}"


@kit.saga
async def echo(saga: Saga, number: int) -> int:
    """A saga that a message can start."""
    return await saga.step(plain, number)


@shared_saga
async def shared_body(saga: Saga, number: int) -> int:
    """A saga of every application."""
    return await saga.step(shared, number)


@app.task
def add(one: int, other: int) -> int:
    """A plain task of a chain."""
    return one + other


@app.task
def note(what: Any) -> None:
    """A plain task that records what it got."""
    effects.record("chain", "note", detail=what)
