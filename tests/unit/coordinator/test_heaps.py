"""The order of commands does not depend on where objects lie in memory, nor on the hash seed.

asyncio keeps futures and tasks in sets and walks those in the order of their hashes, which by default are addresses: a
``TaskGroup`` cancels its members so, ``asyncio.wait`` returns what is done so.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("heaps.py")


def start(seed: int, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(seed), *arguments],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def results() -> tuple[list[list[str]], list[str]]:
    """What different processes came to, and what one without our hashes did; they run side by side."""
    processes = [start(seed, "3") for seed in (1, 2, 3)] + [start(4, "6", "naive")]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    *ordered, naive = map(json.loads, outputs)
    return ordered, naive


Results = tuple[list[list[str]], list[str]]


def test_order_is_the_same_on_every_heap(results: Results) -> None:
    """Fresh processes with different hash seeds and heaps issue the same commands in the same order."""
    different = {result for process in results[0] for result in process}
    assert len(different) == 1
    assert [saga for saga, _ in json.loads(different.pop())] == [
        "group",
        "wait",
        "wait_for_tasks",
        "as_completed",
    ]


def test_naive_loop_fails_that_test(results: Results) -> None:
    """With Python's own hashes each of the sagas issues its commands in several orders, so the test above tests."""
    found = [json.loads(result) for result in results[1]]
    orders = [{json.dumps(sagas[index]) for sagas in found} for index in range(4)]
    assert all(len(seen) > 1 for seen in orders), [len(seen) for seen in orders]
