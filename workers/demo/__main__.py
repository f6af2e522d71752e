"""``python -m workers.demo``: orders through sagas, and the proof that the books balance."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from workers import orders as order_files
from workers.demo import embedded, services
from workers.demo.folder import DEFAULT
from workers.orders import BadOrders
from workers.shop.models import Order


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--orders", "path", type=click.Path(path_type=Path), help="Orders to send, as JSON lines.")
@click.option(
    "--count", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Orders to make up."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed makes up other orders.")
@click.option(
    "--write-orders", type=click.Path(path_type=Path), help="Write the orders to this file and stop."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT,
    show_default=True,
    help="Where the databases are kept for a look afterwards.",
)
@click.option(
    "--services",
    "use_services",
    is_flag=True,
    help="Real Postgres, real broker, worker processes that get killed; first as a plain Celery chain, then as sagas.",
)
def main(
    path: Path | None, count: int, seed: int, write_orders: Path | None, folder: Path, use_services: bool
) -> None:
    """Send orders of a small online shop through sagas, and prove from the shop's tables that the books balance.

    Exits with 1 if they do not balance or the demo could not run, with 2 if the orders cannot be read.
    """
    orders = _orders(path, count, seed)
    if write_orders is not None:
        order_files.write(write_orders, orders)
        click.echo(f"{len(orders)} orders written to {write_orders}")
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    # A pipe has no width of its own; the tables fit into this one.
    console = Console() if sys.stdout.isatty() else Console(width=max(120, int(os.environ.get("COLUMNS", 0))))
    try:
        balanced = services.run(orders, console) if use_services else embedded.run(orders, folder, console)
    except KeyboardInterrupt:
        click.echo("\nstopped; everything that was started is stopped too", err=True)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if balanced else 1)


class UnusableOrders(click.ClickException):
    """The file given with ``--orders`` cannot be used."""

    exit_code = 2


def _orders(path: Path | None, count: int, seed: int) -> list[Order]:
    if path is None:
        return order_files.generate(count, seed=seed)
    try:
        return order_files.read(path)
    except BadOrders as exc:
        raise UnusableOrders(str(exc)) from exc


def _leave(number: int, _: FrameType | None) -> None:
    # An exception, so that everything the demo started is stopped on the way out.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main(prog_name="python -m workers.demo")
