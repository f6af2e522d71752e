"""The embedded demo: SQLite, an in-process broker and a real Celery worker in a thread. Nothing to install."""

import logging
import os
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sagakit.history import SagaRecord
from sagakit.states import SagaState
from workers import books
from workers.demo import screen
from workers.demo.folder import DemoFolder, demo_folder
from workers.demo.progress import Progress, Standing, follow
from workers.orders import deliveries
from workers.shop.models import Fault, Order

THREADS = 4
PATIENCE = 60.0
"""Seconds without any change after which the demo gives up waiting."""

_STOP_TIMEOUT = 20.0


def run(orders: Sequence[Order], folder_path: Path, console: Console) -> bool:
    """Send the orders through a worker of this process and check the books.

    Returns:
        Whether the books balance.
    """
    with demo_folder(folder_path) as folder:
        # The application reads its configuration from the environment, as every deployment of it does.
        os.environ["CELERY_BROKER_URL"] = "memory://"
        os.environ["SAGAKIT_DATABASE_URL"] = folder.ledger_url
        os.environ["SHOP_DATABASE_URL"] = folder.shop_url
        return _run(orders, folder, console)


def _run(orders: Sequence[Order], folder: DemoFolder, console: Console) -> bool:
    from workers.app import app, kit
    from workers.demo import sagas
    from workers.services import shop

    kit.migrate()
    shop.open(deliveries(orders))
    console.print(
        f"{len(orders)} orders, one saga each, through a Celery worker with {THREADS} threads "
        f"(SQLite in {folder.path}, broker in memory)",
        highlight=False,
    )
    with (
        _worker(app, folder.log) as thread,
        Progress(console, "checkout sagas", len(orders)) as progress,
    ):

        def look() -> Standing:
            if not thread.is_alive():
                raise click.ClickException(f"the worker stopped; its log is {folder.log}")
            return sagas.standing(kit, shop)

        sagas.send(orders)
        ended = follow(progress, look, lambda now: now.ended >= len(orders), patience=PATIENCE, interval=0.1)
    states = sagas.states(kit, orders)
    report = books.audit(shop, orders, states)
    console.print()
    console.print(screen.summary(orders, states))
    console.print(screen.books(report))
    screen.verdict(console, report)
    if not ended:
        console.print(
            f"Not all sagas have ended, and nothing changed for {PATIENCE:g} s; the worker's log is {folder.log}",
            style="red",
        )
    undone = _most_telling(orders, states)
    if undone is not None:
        _draw(undone, console)
    done = next((order.id for order in orders if states.get(order.id) == SagaState.COMPLETED), None)
    _try_next(folder, console, undone=undone.id if undone else None, done=done)
    shop.close()
    kit.store.dispose()
    return report.balanced


def _most_telling(orders: Sequence[Order], states: Mapping[str, str]) -> SagaRecord | None:
    """The compensated saga that had the most to undo: one of those whose carrier let them down."""
    from workers.app import kit

    undone = [order for order in orders if states.get(order.id) == SagaState.COMPENSATED]
    late = [order for order in undone if order.fault in (Fault.CARRIER_TIMEOUT, Fault.CARRIER_REFUSES)]
    records = [kit.get(order.id).history() for order in (late or undone)[:20]]
    return max(records, key=lambda record: len(record.compensated), default=None)


def _draw(record: SagaRecord, console: Console) -> None:
    from sagakit.cli.draw import timeline

    console.print()
    console.print("[bold]One of those that were undone[/]")
    console.print(timeline(record))


def _try_next(folder: DemoFolder, console: Console, *, undone: str | None, done: str | None) -> None:
    arguments = ["list --status compensated"]
    if undone is not None:
        arguments.append(f"show {shlex.quote(undone)}")
    if done is not None:
        arguments.append(
            f'compensate {shlex.quote(done)} --completed --dry-run --reason "customer sent it back"'
        )
    console.print()
    console.print(
        f"[bold]Try next[/] (the databases stay in {folder.path} until the next demo)", highlight=False
    )
    for line in arguments:
        console.print(
            f"  {screen.command(folder.ledger_url, line)}", soft_wrap=True, highlight=False, markup=False
        )


@contextmanager
def _worker(app: Any, log: Path) -> Iterator[threading.Thread]:
    """Run a Celery worker in a thread of this process.

    Raises:
        click.ClickException: it did not start, or did not stop.
    """
    from celery.worker import state

    app.set_default()  # the pool's threads look for the app that is everybody's
    # An in-process queue is polled; kombu's default of a second between two looks is for queues far away.
    app.conf.broker_transport_options = {"polling_interval": 0.005}
    app.log.setup(loglevel=logging.INFO, logfile=str(log), redirect_stdouts=False, colorize=False)
    ready = threading.Event()
    worker = app.WorkController(
        hostname="demo@localhost",
        pool="threads",
        concurrency=THREADS,
        ready_callback=lambda _: ready.set(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    thread = threading.Thread(target=worker.start, name="celery-worker", daemon=True)
    thread.start()
    while not ready.wait(0.1):
        if not thread.is_alive():
            raise click.ClickException(f"the worker did not start; its log is {log}")
    try:
        yield thread
    finally:
        state.should_stop = os.EX_OK
        thread.join(_STOP_TIMEOUT)
        state.should_stop = None
        if thread.is_alive():
            raise click.ClickException(
                f"the worker did not stop within {_STOP_TIMEOUT:g} s; its log is {log}"
            )
