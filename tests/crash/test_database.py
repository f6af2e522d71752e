"""The database cuts connections off at the worst moments."""

import pytest

from sagakit.states import SagaState
from tests.crash.rig import Rig, check

DONE = ["reserve", "charge", "ship"]


def test_connections_cut_while_a_step_runs(rig: Rig) -> None:
    """An outcome whose connection is gone is recorded over another, once."""
    node = rig.worker()
    charged = rig.effects.gate("charged")
    handle = rig.start()
    rig.reach(charged, handle)
    assert rig.cut_connections() >= 1
    charged.open()
    record = rig.end(handle)
    assert node.running
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)
    assert rig.runs(record.id) == dict.fromkeys(DONE, 1)
    assert [row.attempt for row in record.steps] == [1, 1, 1]


@pytest.mark.parametrize("point", ["finish.commit", "finish.committed", "advance.commit", "effect.after"])
def test_connections_cut_at_a_point(rig: Rig, point: str) -> None:
    """A commit that the server never got, or whose answer never came, happens once."""
    rig.worker()
    with rig.points.hold(point) as hold:
        handle = rig.start()
        rig.wait(lambda: hold.reached, f"{point} to be reached")
        assert rig.cut_connections() >= 1
    record = rig.end(handle)
    assert record.state is SagaState.COMPLETED
    check(rig, record, DONE)
    assert rig.runs(record.id) == dict.fromkeys(DONE, 1)
    assert [row.attempt for row in record.steps] == [1, 1, 1]
