"""A child, the parent or the starter killed at every named point: the saga ends right, and the attempts add up."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sagakit.errors import SagaNotFound
from sagakit.states import SagaState
from tests.cluster.cluster import worker_environment
from tests.cluster.process import ROOT
from tests.cluster.waiting import wait_until
from tests.crash.rig import QUICK, Rig, check, step

DONE = ["reserve", "charge", "ship"]
UNDONE = ["reserve", "charge", "refund", "release"]

# point, the how-manieth passing, the row whose attempt is lost (if one is), and how often its body took effect
FORWARD = [
    ("advance.commit", 1, None, 0),
    ("advance.committed", 1, None, 0),
    ("publish.before", 1, None, 0),
    ("publish.after", 1, None, 0),
    ("publish.before", 2, None, 0),
    ("publish.after", 2, None, 0),
    ("claim.before", 2, None, 0),
    ("claim.committed", 2, "charge", 1),
    ("effect.before", 2, "charge", 1),
    ("effect.after", 2, "charge", 2),
    ("finish.before", 2, "charge", 2),
    ("finish.commit", 2, "charge", 2),
    ("finish.committed", 2, None, 0),
    ("finish.commit", 3, "ship", 2),
    ("finish.committed", 3, None, 0),
]
BACKWARD = [
    ("publish.before", 4, None, 0),
    ("claim.committed", 4, "refund", 1),
    ("effect.after", 4, "refund", 2),
    ("finish.commit", 3, "ship", 0),
    ("finish.commit", 4, "refund", 2),
    ("finish.committed", 4, None, 0),
    ("finish.commit", 5, "release", 2),
]


@pytest.fixture(scope="module")
def shared_rig(module_rig: Rig) -> Rig:
    """One worker for all tests: what is killed is its child, which it replaces."""
    return module_rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The module's rig with nothing armed, its worker running, and no saga left behind."""
    shared_rig.points.disarm()
    shared_rig.worker()
    yield shared_rig
    shared_rig.points.disarm()


@pytest.mark.parametrize(("point", "nth", "lost", "runs"), FORWARD)
def test_a_child_killed_on_the_way_forward(
    rig: Rig, point: str, nth: int, lost: str | None, runs: int
) -> None:
    """Whatever a child had not committed is done again, under the same key, and nothing else is."""
    rig.points.kill(point, nth)
    record = rig.end(rig.start())
    assert rig.points.has_killed(point)
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)
    assert {row.name: row.lost for row in record.steps if row.lost} == ({lost: 1} if lost else {})
    assert {name: n for name, n in rig.runs(record.id).items() if n > 1} == (
        {lost: runs} if lost and runs > 1 else {}
    )


@pytest.mark.parametrize(("point", "nth", "lost", "runs"), BACKWARD)
def test_a_child_killed_on_the_way_back(rig: Rig, point: str, nth: int, lost: str | None, runs: int) -> None:
    """Compensations survive their process, too, and run in reverse order."""
    rig.points.kill(point, nth)
    record = rig.end(rig.start(fail=True))
    assert rig.points.has_killed(point)
    if lost == "ship":
        # It failed, but an attempt of which nobody knows was lost before: so nobody knows whether it took effect.
        assert step(record, "ship").state.value == "unknown"
    assert record.state is SagaState.COMPENSATED
    check(rig, record, UNDONE)
    assert {row.name: row.lost for row in record.steps if row.lost} == ({lost: 1} if lost else {})
    assert {name: n for name, n in rig.runs(record.id).items() if n > 1} == (
        {lost: runs} if lost and runs > 1 else {}
    )


def test_a_child_killed_after_it_committed_a_retry(rig: Rig) -> None:
    """The retry is on the row: it comes although nobody was told."""
    rig.points.kill("retry.committed")
    record = rig.end(rig.start("retrying"))
    assert rig.points.has_killed("retry.committed")
    assert record.state is SagaState.COMPLETED
    assert rig.runs(record.id) == {"reserve": 1, "flaky": 2}
    flaky = step(record, "flaky")
    assert (flaky.attempt, flaky.retries, flaky.lost) == (2, 1, 0)


@pytest.mark.parametrize("point", ["sweep.lose", "heartbeat"])
def test_the_parent_killed_in_its_own_threads(rig: Rig, point: str) -> None:
    """The worker dies at its heartbeat, or just as it gives a dead child's step up: its successor does that."""
    gate = rig.effects.gate("charge")
    handle = rig.start()
    rig.reach(gate, handle)
    rig.points.kill(point)
    node = rig.worker()
    if point == "sweep.lose":
        node.kill_child()
    wait_until(lambda: not node.running, what="the worker to die")
    gate.open()
    rig.worker()
    record = rig.end(handle)
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)
    assert {row.name: row.lost for row in record.steps if row.lost} == {"charge": 1}


def test_the_sweep_killed_before_it_publishes(rig: Rig) -> None:
    """A retry that the sweep has taken and not sent is sent by the next worker."""
    gate = rig.effects.gate("reserve")
    handle = rig.start("retrying")
    rig.reach(gate, handle)
    # From here on: the step's successor is published by the child, its retry by the sweep.
    rig.points.kill("publish.before", 2)
    gate.open()
    node = rig.cluster.nodes[0]
    wait_until(lambda: not node.running, what="the worker to die")
    rig.worker()
    record = rig.end(handle)
    assert record.state is SagaState.COMPLETED
    assert rig.runs(record.id) == {"reserve": 1, "flaky": 2}


@pytest.mark.parametrize("point", ["start.commit", "start.committed", "publish.before", "publish.after"])
def test_a_starter_killed(rig: Rig, point: str) -> None:
    """A start that was not committed has left nothing; one that was runs, whether its message was sent or not."""
    saga_id = f"started-{point}"
    rig.points.kill(point)
    env = worker_environment({**rig.cluster.env, **QUICK})
    ended = subprocess.run(
        [sys.executable, "-m", "tests.crash.start", saga_id], env=env, cwd=ROOT, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    handle = rig.kit.get(saga_id)
    if point == "start.commit":
        with pytest.raises(SagaNotFound):
            handle.status()
        return
    record = rig.end(handle)
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)


def test_the_confirmation_of_a_commit_lost(rig: Rig) -> None:
    """A finish that was committed, though the connection broke before it said so, counts once."""
    rig.points.fail("finish.committed")
    record = rig.end(rig.start())
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)
    assert rig.runs(record.id) == dict.fromkeys(DONE, 1)
    assert [row.attempt for row in record.steps] == [1, 1, 1]
