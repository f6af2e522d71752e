"""The commands of console blocks: Celery's and sagakit's own, with every saga run in the caller."""

from collections.abc import Callable
from typing import Any

from celery.bin import celery as celery_command

from sagakit import app as kits
from sagakit.cli import main
from sagakit.client.eager import EagerRunner
from sagakit.states import OPEN_SAGA_STATES
from tests.docs import eager

assert eager  # imported for what it does


def sagakit() -> None:
    """The console script ``sagakit``."""
    _run(main.main)


def celery() -> None:
    """The console script ``celery``, with the command that sagakit adds to it."""
    group = celery_command.celery
    if "saga" not in group.commands:  # sagakit is on the path, but not installed
        group.add_command(main.saga)
    _run(celery_command.main)


def _run(command: Callable[[], Any]) -> None:
    try:
        command()
    finally:
        for kit in list(kits._kits.values()):
            work_off(kit)


def work_off(kit: Any) -> None:
    """Do what a worker would do by now: bring every saga that is open to its end."""
    runner = EagerRunner(kit.store, kit.advancer, kit.publisher)
    for found in kit.find(states=OPEN_SAGA_STATES):
        runner.run(found.id)
