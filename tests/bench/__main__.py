"""``python -m tests.bench``: measure, print a table, write ``results/latest.json``."""

import argparse
import os
import time

from rich.console import Console

from tests.bench import report
from tests.bench.contestants import contestants
from tests.bench.rounds import FULL, QUICK, measure
from tests.bench.servers import servers


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        default=os.environ.get("QUICK", "") not in ("", "0"),
        help="less of everything, in under a minute (make bench QUICK=1)",
    )
    size = QUICK if parser.parse_args().quick else FULL
    console = Console()
    begun = time.monotonic()
    with servers() as found:
        around = report.circumstances(found, size)
        with contestants(found) as (sagas, chains):
            ours, theirs = measure(sagas, chains, size, lambda line: console.print(line, highlight=False))
    report.show(console, around, ours, theirs)
    console.print(f"{report.write(around, ours, theirs)}, after {time.monotonic() - begun:.0f} s")


main()
