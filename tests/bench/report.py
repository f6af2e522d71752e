"""The table for people, and ``results/latest.json`` for programs."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.contestants import CONCURRENCY
from tests.bench.rounds import Figures, Series, Size
from tests.bench.servers import Servers

RESULTS = Path(__file__).parent / "results" / "latest.json"

_ROWS = (
    ("drain", "5-step sagas/s, backlog drained", "{:.0f}"),
    ("start", "started/s (start_many, apply_async)", "{:.0f}"),
    ("latency", "one alone, p50 ms", "{:.1f}"),
)


def circumstances(servers: Servers, size: Size) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "postgres": servers.setting("server_version"),
        "fsync": servers.setting("fsync"),
        "commit_ms": round(servers.commit_ms(), 2),
        "synchronous_commit": servers.setting("synchronous_commit"),
        "own_servers": list(servers.own),
        "worker": f"prefork, {CONCURRENCY} processes",
        "versions": {name: version(name) for name in ("celery", "kombu", "sqlalchemy", "psycopg")},
        "size": asdict(size),
    }


def write(around: dict[str, Any], sagas: Figures, chains: Figures) -> Path:
    """Write the results down."""
    data = {**around, "sagakit": _plain(sagas), "chain": _plain(chains), "ratio": ratios(sagas, chains)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(data, indent=2) + "\n")
    return RESULTS


def show(console: Console, around: dict[str, Any], sagas: Figures, chains: Figures) -> None:
    """Print the table."""
    table = Table(title=f"sagakit against a Celery chain of the same tasks ({around['worker']})")
    table.add_column("median (least to greatest)")
    for name in ("sagakit", "chain", "ratio"):
        table.add_column(name, justify="right")
    for name, title, form in _ROWS:
        ours, theirs = getattr(sagas, name), getattr(chains, name)
        ratio = f"{ours.median / theirs.median:.2f}"
        table.add_row(title, _cell(ours, form), _cell(theirs, form), ratio)
    console.print(table)
    console.print(
        f"{around['machine']} (load {around['load_before']} before), Python {around['python']}, "
        f"Postgres {around['postgres']} with fsync {around['fsync']} "
        f"({around['commit_ms']} ms a commit), Celery {around['versions']['celery']}"
    )


def ratios(sagas: Figures, chains: Figures) -> dict[str, float]:
    """Ours to theirs, of the medians."""
    return {
        name: round(getattr(sagas, name).median / getattr(chains, name).median, 3) for name, _, _ in _ROWS
    }


def _cell(series: Series, form: str) -> str:
    least, greatest = series.spread
    return f"{form.format(series.median)} ({form.format(least)} to {form.format(greatest)})"


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        name: {"median": getattr(figures, name).median, "values": getattr(figures, name).values}
        for name, _, _ in _ROWS
    }
