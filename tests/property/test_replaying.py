"""Random sagas under random outcomes: every run from scratch decides the same, in every process, on every heap."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.property.journeys import Journey, decide_again
from tests.property.programs import PROGRAMS, Program

PROGRAM = Path(__file__).with_name("deciding.py")
CHOICES = st.lists(st.integers(0, 999), max_size=40)
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUICK, max_examples=300)
@given(program=PROGRAMS, choices=CHOICES)
def test_every_run_from_scratch_decides_the_same(program: Program, choices: list[int]) -> None:
    """After each advance, a fresh replay issues the same commands, with the same arguments, at the same positions.

    At the end, what was undone is exactly what took effect and had to be, in reverse order of completion.
    """
    journey = Journey(program, choices)
    journey.check_end()
    assert decide_again(program, journey.snapshots) == [snapshot.decided for snapshot in journey.snapshots]


FAILING_GROUP: Program = [
    "group",
    *[["stubborn", ["step", "charge"], ["step", "mail"]] for _ in range(12)],
    ["seq", ["sleep", 1], ["raise"]],
]
"""Cancels its members in the order of a set, and each has something to say to that."""


@pytest.fixture(scope="module")
def journeys() -> list[Journey]:
    """Many journeys; which ones differs from run to run, but for some that are sure to depend on hashes."""
    found = [Journey(FAILING_GROUP, []) for _ in range(5)]

    @settings(QUICK, max_examples=200, database=None, phases=[Phase.generate])
    @given(program=PROGRAMS, choices=CHOICES)
    def collect(program: Program, choices: list[int]) -> None:
        found.append(Journey(program, choices))

    collect()
    return found


@pytest.fixture(scope="module")
def elsewhere(
    journeys: list[Journey], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """What processes of their own decide, and what one without our hashes does; they run side by side."""
    batch = tmp_path_factory.mktemp("journeys") / "batch"
    batch.write_bytes(pickle.dumps([(journey.program, journey.snapshots) for journey in journeys]))
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(batch), str(seed), *arguments],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
        )
        for seed, arguments in enumerate((["default"], ["eager"], ["off"], ["default", "naive"]), start=1)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    *decisions, naive = map(json.loads, outputs)
    return decisions, naive


def test_every_process_decides_the_same(journeys: list[Journey], elsewhere: Any) -> None:
    """Fresh processes with other hash seeds, heaps and habits of collecting garbage come to the same decisions."""
    for decisions in elsewhere[0]:
        for journey, decided in zip(journeys, decisions, strict=True):
            assert decided == [snapshot.decided for snapshot in journey.snapshots], journey.program


def test_naive_loop_fails_that_test(journeys: list[Journey], elsewhere: Any) -> None:
    """Without hashing by creation number some of the very same journeys go another way."""
    expected = [[snapshot.decided for snapshot in journey.snapshots] for journey in journeys]
    assert elsewhere[1] != expected
