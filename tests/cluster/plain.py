"""A plain Celery application, for the tests of the cluster itself."""

import os

from celery import Celery

from tests.cluster import effects

app = Celery("plain")
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 1


@app.task
def note(step: str) -> None:
    """Take effect."""
    effects.record(step=step)


@app.task
def hold(step: str) -> None:
    """Take effect before and after a gate of the same name."""
    effects.record(step=step, kind="begun")
    effects.pass_gate(step)
    effects.record(step=step, kind="done", detail=effects.told("detail", os.getpid()))
