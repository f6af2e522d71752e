"""Plain asyncio in a saga's body: its steps run at once on several processes, and are accounted for one by one."""

import pytest

from sagakit import Compensated, Completed, SagaState, StepState
from sagakit.history import StepRecord
from tests.acceptance.stage import Stage
from tests.cluster.waiting import wait_until

APP = "parallel"
WIDTH = 10


@pytest.fixture(scope="module", autouse=True)
def workers(stage: Stage) -> None:
    """Two workers with five processes each."""
    stage.cluster.start(stage.app, workers=2, concurrency=WIDTH // 2)


def states(stage: Stage, saga_id: str) -> dict[str, StepState]:
    return {row.name: row.state for row in stage.kit.get(saga_id).history().steps if row.kind == "step"}


def test_gather_runs_ten_steps_at_once(stage: Stage) -> None:
    """Ten steps are inside at the same time, in ten processes of two workers."""
    with stage.effects.gate("fan") as gate:
        handle = stage.fan.start(WIDTH, saga_id="fan")
        arrivals = gate.wait_reached(WIDTH)
        assert stage.done("fan") == []
    assert handle.result(30) == [n * 10 for n in range(WIDTH)]
    pids = {arrival.pid for arrival in arrivals}
    assert len(pids) == WIDTH
    for node in stage.cluster.nodes:
        assert len(pids & set(node.children)) == WIDTH // 2


def test_a_failure_cancels_drains_and_undoes_what_took_effect(stage: Stage) -> None:
    """What has not started never does, what runs is waited for, and exactly what took effect is compensated."""
    with stage.effects.gate("broken") as rest, stage.effects.gate("bad broken") as bad:
        handle = stage.broken_fan.start(WIDTH + 3, saga_id="broken")
        bad.wait_reached()
        inside = {arrival.step for arrival in rest.wait_reached(WIDTH - 1)}
        bad.open()
        stage.wait_for_state(handle, SagaState.COMPENSATING)
        outside = {f"branch-{n}" for n in range(WIDTH + 3)} - inside
        found = states(stage, "broken")
        assert {name for name, state in found.items() if state is StepState.CANCELLED} == outside
        assert {name for name, state in found.items() if state is StepState.RUNNING} == inside
        assert stage.done("broken") == []
    outcome = handle.outcome(30)
    assert isinstance(outcome, Compensated)
    assert outcome.failed_step == "bad"
    assert set(outcome.compensated) == inside
    assert len(outcome.compensated) == len(inside) == WIDTH - 1
    took = {effect.detail for effect in stage.effects.all(saga_id="broken", kind="step")}
    assert {f"branch-{n}" for n in took} == inside
    undone = [effect.detail for effect in stage.effects.all(saga_id="broken", kind="compensation")]
    assert sorted(undone) == sorted([n * 10, n] for n in took)
    assert {arrival.step for arrival in rest.arrivals} == inside


def test_compensations_follow_the_order_of_completion_in_reverse(stage: Stage) -> None:
    """Of steps that ran side by side, the one that ended last is undone first."""
    gates = [stage.effects.gate(f"{n} stream") for n in range(3)]
    handle = stage.stream.start(3, saga_id="stream")

    def rows() -> tuple[StepRecord, ...]:
        return handle.history().steps

    for place, n in enumerate((1, 2, 0)):
        gates[n].wait_reached()
        gates[n].open()
        wait_until(lambda fed=place + 1: sum(row.resolved_seq is not None for row in rows()) == fed)
    assert handle.result(30) == [10, 20, 0]
    handle.compensate(completed=True, reason="to see the order")
    outcome = handle.outcome(30)
    assert outcome.compensated == ("branch-0", "branch-2", "branch-1")


def test_a_late_success_of_an_abandoned_step_is_undone(stage: Stage) -> None:
    """A step that ``asyncio.timeout`` gave up succeeds late: it is undone, though the body carried on and completed."""
    with stage.effects.gate("slow impatient") as gate:
        handle = stage.impatient.start(saga_id="impatient")
        gate.wait_reached()
        stage.effects.wait_for(step="other", saga_id="impatient")
        assert handle.status() is SagaState.RUNNING
    outcome = handle.outcome(30)
    assert isinstance(outcome, Completed)
    assert outcome.result == "in the end, other"
    assert outcome.compensated == ("slow",)
    assert stage.done("impatient") == ["other", "slow", "prune"]


def test_a_step_in_time_is_not_abandoned(stage: Stage) -> None:
    """A timeout that does not strike leaves no trace."""
    outcome = stage.impatient.start(saga_id="patient").outcome(30)
    assert outcome.result == "in time"
    assert outcome.compensated == ()


def test_the_loser_of_a_race_is_undone(stage: Stage) -> None:
    """``asyncio.wait`` with ``FIRST_COMPLETED`` works, and what was cancelled is compensated if it took effect."""
    with stage.effects.gate("slow race") as slow, stage.effects.gate("other race") as fast:
        handle = stage.race.start(saga_id="race")
        fast.wait_reached()
        slow.wait_reached()
        fast.open()
        stage.effects.wait_for(step="other", saga_id="race")
    outcome = handle.outcome(30)
    assert outcome.result == "1 won: other"
    assert outcome.compensated == ("slow",)


def test_a_task_group_cancels_its_siblings(stage: Stage) -> None:
    """A failed task group is caught; what its siblings did is undone, what the body did afterwards stays."""
    with stage.effects.gate("group") as rest, stage.effects.gate("bad group") as bad:
        handle = stage.group.start(3, saga_id="group")
        rest.wait_reached(3)
        bad.open()
        stage.effects.wait_for(step="other", saga_id="group")
    outcome = handle.outcome(30)
    assert isinstance(outcome, Completed)
    assert outcome.result == "other"
    assert set(outcome.compensated) == {"branch-0", "branch-1", "branch-2"}
    assert "undo_other" not in stage.done("group")


def test_sleep_is_durable(stage: Stage) -> None:
    """``asyncio.sleep`` is a timer in the ledger, and takes its time."""
    handle = stage.sleeper.start(0.5, saga_id="sleeper")
    assert 0.5 <= handle.result(30) < 5
    [row] = handle.history().steps
    assert (row.kind, row.name, row.state) == ("timer", "sleep", StepState.SUCCEEDED)
