"""What the demo prints at the end: who got what, the books, and what to try next."""

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import workers
from workers.books import Line, Report
from workers.shop.models import Fault, Order

FATES: Mapping[Fault | None, str] = {
    None: "nothing goes wrong",
    Fault.CARRIER_FLAKY: "carrier cannot be reached at first",
    Fault.OUT_OF_STOCK: "an item is out of stock",
    Fault.CARD_DECLINED: "the card is declined",
    Fault.CARRIER_REFUSES: "carrier refuses, the card is charged already",
    Fault.CARRIER_TIMEOUT: "carrier acts, but its answer is lost",
}


def summary(orders: Sequence[Order], states: Mapping[str, str]) -> Table:
    """A table of what became of the orders, by what was planned to go wrong with them."""
    seen = Counter((order.fault, states.get(order.id, "missing")) for order in orders)
    columns = ["completed", "compensated"]
    columns += sorted({state for _, state in seen} - set(columns))
    table = Table(box=box.SIMPLE_HEAD, title="What became of the orders", title_justify="left")
    table.add_column("what goes wrong")
    for name in ("orders", *columns):
        table.add_column(name.replace("_", " "), justify="right")
    for fault, words in FATES.items():
        counts = [seen[fault, state] for state in columns]
        if any(counts):
            table.add_row(words, str(sum(counts)), *(str(count or "–") for count in counts))
    return table


def books(report: Report) -> Table:
    """A table of the books' lines."""
    table = Table(
        box=box.SIMPLE_HEAD, title="The books, recomputed from the shop's own tables", title_justify="left"
    )
    table.add_column("on one side")
    table.add_column("", justify="right")
    table.add_column("on the other")
    table.add_column("", justify="right")
    table.add_column("")
    for line in report.lines:
        sign = "[green]✓[/]" if line.balanced else "[bold red]✗[/]"
        table.add_row(line.left_is, line.show(line.left), line.right_is, line.show(line.right), sign)
    return table


def verdict(console: Console, report: Report) -> None:
    """The line that says whether the books balance, and every difference if not."""
    style = "bold green" if report.balanced else "bold red"
    console.print(report.verdict(), style=style, highlight=False)
    for line in report.differing:
        console.print(f"  {_named(line)}", style="red", highlight=False, markup=False)
    total = sum(report.effects.values())
    console.print(
        f"{total:,} effects in the shop, each under its own idempotency key; calls that came a second time and were "
        f"answered without acting again: {report.repeated:,}.",
        highlight=False,
    )


def _named(line: Line) -> str:
    return f"{line.left_is} ≠ {line.right_is}: {line}"


def command(ledger_url: str, arguments: str) -> str:
    """A ``saga`` command that works in the shell the demo was started from."""
    parts = [f"SAGAKIT_DATABASE_URL={shlex.quote(ledger_url)}"]
    package_parent = Path(workers.__file__).parent.parent
    if package_parent != Path.cwd():
        parts.insert(0, f"PYTHONPATH={shlex.quote(str(package_parent))}")
    return " ".join([*parts, _celery(), "-A workers.app saga", arguments])


def _celery() -> str:
    """How to call this environment's ``celery``: by its bare name if the shell would find the same one."""
    ours = Path(sys.executable).parent / "celery"
    found = shutil.which("celery")
    if found and Path(found).resolve() == ours.resolve():
        return "celery"
    if not ours.exists():
        return f"{shlex.quote(sys.executable)} -m celery"
    relative = os.path.relpath(ours)
    return shlex.quote(str(ours) if relative.startswith("..") else relative)
