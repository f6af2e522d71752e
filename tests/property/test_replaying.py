"""Random sagas under random outcomes: every run from scratch decides the same, in every process, on every heap."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.property.journeys import Journey, decide_again
from tests.property.programs import PROGRAMS, Program

PROGRAM = Path(__file__).with_name("deciding.py")
CHOICES = st.lists(st.integers(0, 999), max_size=40)
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUICK, max_examples=400)
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

    @settings(QUICK, max_examples=250, database=None, phases=[Phase.generate])
    @given(program=PROGRAMS, choices=CHOICES)
    def collect(program: Program, choices: list[int]) -> None:
        found.append(Journey(program, choices))

    collect()
    return found


def decide_elsewhere(journeys: list[Journey], *arguments: list[str]) -> list[list[list[str]]]:
    """What processes of their own decide, one per list of arguments, side by side."""
    batch = pickle.dumps([(journey.program, journey.snapshots) for journey in journeys])
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(seed), *given],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seed, given in enumerate(arguments, start=1)
    ]
    outputs = []
    for process in processes:
        output, _ = process.communicate(batch, timeout=100)
        assert process.returncode == 0
        outputs.append(json.loads(output))
    return outputs


def test_every_process_decides_the_same(journeys: list[Journey]) -> None:
    """Fresh processes with other hash seeds, heaps and habits of collecting garbage come to the same decisions."""
    for decisions in decide_elsewhere(journeys, ["default"], ["eager"], ["off"]):
        for journey, decided in zip(journeys, decisions, strict=True):
            assert decided == [snapshot.decided for snapshot in journey.snapshots], journey.program


def test_naive_loop_fails_that_test(journeys: list[Journey]) -> None:
    """Without hashing by creation number some of the very same journeys go another way."""
    (decisions,) = decide_elsewhere(journeys, ["default", "naive"])
    expected = [[snapshot.decided for snapshot in journey.snapshots] for journey in journeys]
    assert decisions != expected
