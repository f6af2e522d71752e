"""The demo on real services: the same orders as plain Celery chains and as sagas, with workers killed halfway.

Postgres and a broker that speaks Redis are started for the occasion, with worker processes beside them; all of it is
gone afterwards. What each side left its customers with is counted in the shop's tables, not asked of either.
"""

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import redis
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from workers import books
from workers.books import Damage, Report
from workers.demo import screen
from workers.demo.processes import WorkerProcess
from workers.demo.progress import Progress, Standing, follow
from workers.orders import deliveries
from workers.shop.database import ShopDatabase, complaint
from workers.shop.models import Order

WORKERS = 2
CHILDREN = 2
LATENCY_MS = 20
"""Real services take their time; it is also what gives a kill something to interrupt."""
VISIBILITY_TIMEOUT = 5
"""Seconds. Celery's default, an hour, would leave a killed worker's messages lying for as long."""
PATIENCE = 90.0
"""Seconds without any change after which the demo gives up waiting."""

_QUEUE = "celery"
_QUIET = 3.0
"""A broker that has been empty for this many seconds has nothing more to give to a chain."""

DAMAGE: Mapping[str, str] = {
    "charged_and_got_nothing": "charged and got nothing",
    "charged_without_confirmation": "charged, and the order never confirmed",
    "stock_held_for_nobody": "stock held for an order that will not come",
    "shipped_unpaid": "parcel sent, nothing paid",
    "done_twice": "something done twice",
}


def run(orders: Sequence[Order], console: Console) -> bool:
    """Send the orders through chains, then through sagas, and compare.

    Returns:
        Whether the saga side's books balance and left no customer charged for nothing.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sagakit-demo-")))
        postgres, broker = _servers(stack)
        console.print(
            f"Postgres and a Redis-protocol broker are up; {WORKERS} worker processes with {CHILDREN} children each; "
            f"{len(orders)} orders, sent twice",
            highlight=False,
        )
        os.environ["CELERY_BROKER_URL"] = broker.url
        os.environ["SAGAKIT_DATABASE_URL"] = postgres.create_database("ledger")
        os.environ["SHOP_LATENCY_MS"] = str(LATENCY_MS)
        os.environ["SHOP_VISIBILITY_TIMEOUT"] = str(VISIBILITY_TIMEOUT)
        os.environ["SHOP_DATABASE_URL"] = postgres.create_database("shop_chain")
        from workers.app import kit

        kit.migrate()
        stack.callback(kit.store.dispose)
        chains = ChainRun(orders, os.environ["SHOP_DATABASE_URL"], broker.url)
        sagas = SagaRun(orders, postgres.create_database("shop_saga"), broker.url)
        for one in (chains, sagas):
            stack.callback(one.shop.close)
            one.run(folder, console)
        return _compare(chains.report(), sagas.report(), len(orders), console)


def _servers(stack: ExitStack) -> tuple[Any, Any]:
    from sagakit.local import LocalServerError, LocalServersNotInstalled, local_postgres, local_valkey

    try:
        return stack.enter_context(local_postgres()), stack.enter_context(local_valkey())
    except (LocalServerError, LocalServersNotInstalled) as exc:
        raise click.ClickException(str(exc)) from exc


class Run(ABC):
    """One way of handling all orders, on a shop of its own.

    Attributes:
        shop: that shop's database.
    """

    title: str

    def __init__(self, orders: Sequence[Order], shop_url: str, broker_url: str) -> None:
        self.orders = orders
        self.shop = ShopDatabase(shop_url)
        self._broker = redis.Redis.from_url(broker_url)

    @abstractmethod
    def send(self) -> None:
        """Send every order."""

    @abstractmethod
    def look(self) -> Standing:
        """How far they are."""

    @abstractmethod
    def report(self) -> Report:
        """The books afterwards."""

    def over(self, standing: Standing) -> bool:
        """Whether nothing more will happen."""
        return standing.ended >= len(self.orders)

    def run(self, folder: Path, console: Console) -> None:
        """Send the orders, kill the workers halfway, start them again, and wait for the end."""
        self.shop.open(deliveries(self.orders))
        self._broker.flushdb()
        half = 2 * len(
            self.orders
        )  # of the five effects an order has, or less if something goes wrong with it
        with self._workers(folder) as workers, Progress(console, self.title, len(self.orders)) as progress:

            def look() -> Standing:
                if not all(worker.running for worker in workers):
                    raise click.ClickException(f"a worker stopped by itself:\n{_tail(workers)}")
                return self.look()

            self.send()
            follow(
                progress,
                look,
                lambda now: now.effects >= half or self.over(now),
                patience=PATIENCE,
                interval=0.02,
            )
            for worker in workers:
                worker.kill()
            progress.say(f"{WORKERS} workers killed (kill -9, children too), {WORKERS} new ones started")
            for worker in workers:
                worker.start()
            if not follow(progress, look, self.over, patience=PATIENCE, interval=0.1):
                progress.say(f"not over, and nothing changed for {PATIENCE:g} s")

    @contextmanager
    def _workers(self, folder: Path) -> Iterator[list[WorkerProcess]]:
        environment = {"SHOP_DATABASE_URL": self.shop.url}
        workers = [
            WorkerProcess(
                f"demo-{number}",
                concurrency=CHILDREN,
                environment=environment,
                log=folder / f"worker-{number}.log",
            )
            for number in range(1, WORKERS + 1)
        ]
        try:
            for worker in workers:
                worker.start()
            yield workers
        finally:
            for worker in workers:
                worker.stop()


class ChainRun(Run):
    """What Celery offers without sagas."""

    title = "celery.chain"

    def __init__(self, orders: Sequence[Order], shop_url: str, broker_url: str) -> None:
        super().__init__(orders, shop_url, broker_url)
        self._empty_since: float | None = None

    def send(self) -> None:
        """One chain for each order."""
        from workers.plain import checkout_chain

        for order in self.orders:
            checkout_chain(order).apply_async()

    def look(self) -> Standing:
        """Confirmed, or given up: a chain has no ledger, so the shop has to be asked."""
        confirmed = self.shop.effects("confirm")
        with self.shop.transaction() as connection:
            given_up = connection.execute(select(func.count()).select_from(complaint)).scalar_one()
        return Standing(
            ended=confirmed + given_up,
            counts={"confirmed": confirmed, "given up": given_up},
            effects=self.shop.effects(),
        )

    def over(self, standing: Standing) -> bool:
        """All have ended, or the broker has nothing left that could bring the others to an end."""
        if self._broker.llen(_QUEUE) or self._broker.hlen("unacked"):
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = time.monotonic()
        quiet = self._empty_since is not None and time.monotonic() - self._empty_since > _QUIET
        return super().over(standing) or quiet

    def report(self) -> Report:
        """The shop's tables alone."""
        return books.audit(self.shop, self.orders)


class SagaRun(Run):
    """The same steps as sagas."""

    title = "sagakit"

    def send(self) -> None:
        """One saga for each order."""
        from workers.demo import sagas

        sagas.send(self.orders)

    def look(self) -> Standing:
        """What the ledger says."""
        from workers.app import kit
        from workers.demo import sagas

        return sagas.standing(kit, self.shop)

    def report(self) -> Report:
        """The shop's tables, held against the ledger."""
        from workers.app import kit
        from workers.demo import sagas

        return books.audit(self.shop, self.orders, sagas.states(kit, self.orders))


def _compare(chains: Report, sagas: Report, total: int, console: Console) -> bool:
    table = Table(
        box=box.SIMPLE_HEAD,
        title="What was left behind, counted in the shop's own tables",
        title_justify="left",
    )
    table.add_column("orders with …")
    table.add_column("celery.chain", justify="right")
    table.add_column("sagakit", justify="right")
    for field, words in DAMAGE.items():
        table.add_row(words, str(_count(chains.damage, field)), str(_count(sagas.damage, field)))
    console.print()
    console.print(table)
    console.print(screen.books(sagas))
    screen.verdict(console, sagas)
    console.print(
        f"The chain had idempotency keys, late acknowledgement, retries and a visibility timeout of "
        f"{VISIBILITY_TIMEOUT} s (Celery's default is an hour); what it does not have is a way back.\n",
        highlight=False,
    )
    for name, report in (("celery.chain", chains), ("sagakit", sagas)):
        count = _count(report.damage, "charged_and_got_nothing")
        console.print(
            f"{name:<13} {count:>3} of {total} customers were charged and got nothing",
            style="bold red" if count else "bold green",
            highlight=False,
        )
    return sagas.balanced and not sagas.damage.charged_and_got_nothing


def _count(damage: Damage, field: str) -> int:
    return len(getattr(damage, field))


def _tail(workers: Sequence[WorkerProcess]) -> str:
    """The end of what the stopped workers wrote; their files are about to be removed."""
    logs = [worker.log.read_text(errors="replace")[-2000:] for worker in workers if not worker.running]
    return "\n".join(logs)
