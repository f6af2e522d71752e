"""What is undone, in which order, with which arguments; what is not, and how an operator finishes it."""

from decimal import Decimal
from typing import Any

import pytest

from sagakit import Compensated, CompensationFailed, Completed, SagaHandle, SagaState, StepState
from sagakit.errors import NotAllowed
from sagakit.states import Kind
from tests.acceptance.stage import Stage

APP = "undo"


@pytest.fixture(scope="module", autouse=True)
def workers(stage: Stage) -> None:
    """One worker."""
    stage.cluster.start(stage.app, concurrency=4)


def checkout(stage: Stage, saga_id: str, **told: Any) -> SagaHandle[str]:
    for what, value in told.items():
        stage.tell(saga_id, what.replace("_", " "), value)
    return stage.checkout.start(stage.Order(item="lamp", price=Decimal("9.90")), saga_id=saga_id)


class TestUndoing:
    """Point 2 of the issue."""

    def test_what_succeeded_is_undone_in_reverse_order(self, stage: Stage) -> None:
        """A fourth step that fails has the three before it compensated, the last one first."""
        outcome = checkout(stage, "order-1").outcome(30)
        assert isinstance(outcome, Compensated)
        assert stage.done("order-1") == ["reserve", "charge", "pack", "unpack", "refund", "release"]
        assert outcome.compensated == ("pack", "charge", "reserve")
        assert (outcome.not_compensated, outcome.unknown) == ((), ())
        assert outcome.failed_step == "ship"
        assert outcome.error is not None
        assert outcome.error.fields == {"item": "lamp"}
        assert outcome.duration.total_seconds() > 0

    def test_each_compensation_gets_its_steps_result_and_arguments(self, stage: Stage) -> None:
        """Results and arguments arrive as what they were, models and decimals included, those that are named."""
        checkout(stage, "order-2").outcome(30)
        details = {effect.step: effect.detail for effect in stage.effects.all(saga_id="order-2")}
        order = ["Order", "item='lamp' price=Decimal('9.90')"]
        assert details["reserve"] == [order, ["Decimal", "9.90"]]
        assert details["release"] == [
            ["Receipt", "number='r1' paid=Decimal('0.00')"],
            ["Decimal", "0.00"],
            order,
            ["Decimal", "9.90"],
        ]
        assert details["refund"] == [["Receipt", "number='c2' paid=Decimal('14.90')"], ["int", "5"]]
        assert details["unpack"] == [["str", "parcel"]]

    def test_compensations_run_one_after_the_other(self, stage: Stage) -> None:
        """Nothing is undone before what came after it is."""
        with stage.effects.gate("refund order-3") as gate:
            handle = checkout(stage, "order-3")
            gate.wait_reached()
            assert stage.done("order-3", "compensation") == ["unpack"]
            assert handle.status() is SagaState.COMPENSATING
            assert "release" not in [row.name for row in handle.history().steps]
        handle.outcome(30)
        assert stage.done("order-3", "compensation") == ["unpack", "refund", "release"]

    def test_a_compensation_is_retried_by_default(self, stage: Stage) -> None:
        """A compensation that fails once is tried again, and nothing before it is undone meanwhile."""
        outcome = checkout(stage, "order-4", unpack_fails=True).outcome(40)
        assert isinstance(outcome, Compensated)
        assert stage.done("order-4", "compensation") == ["unpack", "refund", "release"]
        assert stage.row("order-4", "unpack").attempt == 2

    def test_a_completed_saga_has_nothing_undone(self, stage: Stage) -> None:
        """A saga whose steps all succeed is completed, with its result."""
        outcome = checkout(stage, "order-5", ship_works=True).outcome(30)
        match outcome:
            case Completed(result):
                assert result == "shipped"
            case _:
                pytest.fail(f"{outcome!r}")
        assert stage.done("order-5") == ["reserve", "charge", "pack", "ship"]
        assert outcome.compensated == ()


class TestReplay:
    """A compensation that failed for good waits for an operator."""

    def test_a_failed_compensation_stops_no_other(self, stage: Stage) -> None:
        """The outcome names what was undone and what was not."""
        outcome = checkout(stage, "order-10", bank_is_down=True).outcome(30)
        assert isinstance(outcome, CompensationFailed)
        assert stage.done("order-10", "compensation") == ["unpack", "release"]
        assert outcome.compensated == ("pack", "reserve")
        assert outcome.not_compensated == ("charge",)
        assert outcome.unknown == ()
        assert outcome.failed_step == "ship"

    def test_the_command_finishes_it(self, stage: Stage) -> None:
        """``saga compensate ID --failed-only --reason r`` runs the failed one again, and says who asked and why."""
        handle = checkout(stage, "order-11", bank_is_down=True)
        handle.outcome(30)
        stage.tell("order-11", "bank is down", False)
        done = stage.saga(
            "compensate", "order-11", "--failed-only", "--reason", "PSP is back", "--actor", "ann"
        )
        assert done.returncode == 0, done.stderr
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert stage.done("order-11", "compensation") == ["unpack", "release", "refund"]
        assert set(outcome.compensated) == {"pack", "charge", "reserve"}
        assert outcome.failed_step == "ship"
        [entry] = handle.history().audit
        assert (entry.action, entry.actor, entry.reason) == ("compensate", "ann", "PSP is back")
        assert entry.detail["steps"] == ["charge"]

    def test_a_replay_may_fail_again(self, stage: Stage) -> None:
        """The saga is back where it was, and can be replayed once more."""
        handle = checkout(stage, "order-12", bank_is_down=True)
        handle.outcome(30)
        handle.compensate(failed_only=True, reason="perhaps", actor="ann")
        assert isinstance(handle.outcome(30), CompensationFailed)
        stage.tell("order-12", "bank is down", False)
        handle.compensate(reason="now", actor="ben")
        assert isinstance(handle.outcome(30), Compensated)
        assert [(entry.actor, entry.reason) for entry in handle.history().audit] == [
            ("ann", "perhaps"),
            ("ben", "now"),
        ]

    def test_a_dry_run_writes_nothing(self, stage: Stage) -> None:
        """``--dry-run`` shows the plan and leaves every row as it is."""
        handle = checkout(stage, "order-13", bank_is_down=True)
        handle.outcome(30)
        before = handle.history()
        plan = stage.saga_json("compensate", "order-13", "--dry-run")
        assert [entry["step"] for entry in plan["undo"]] == ["charge"]
        assert {entry["step"] for entry in plan["left"]} == {"reserve", "pack"}
        assert handle.history() == before

    def test_a_completed_saga_is_undone_only_on_purpose(self, stage: Stage) -> None:
        """Without ``--completed`` it is refused, with it everything is undone."""
        handle = checkout(stage, "order-14", ship_works=True)
        handle.result(30)
        refused = stage.saga("compensate", "order-14", "--reason", "customer withdrew")
        assert refused.returncode == 1
        assert refused.stderr.splitlines() == [
            "Error: saga order-14 has completed: pass --completed (completed=True) if it is really to be undone"
        ]
        with pytest.raises(NotAllowed, match="has completed: pass --completed"):
            handle.compensate(reason="customer withdrew")
        done = stage.saga("compensate", "order-14", "--completed", "--reason", "customer withdrew")
        assert done.returncode == 0, done.stderr
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert stage.done("order-14", "compensation") == ["unpack", "refund", "release"]
        assert outcome.compensated == ("pack", "charge", "reserve")
        assert "customer withdrew" in str(outcome.error)

    def test_one_step_can_be_replayed(self, stage: Stage) -> None:
        """``--step`` picks one."""
        handle = checkout(stage, "order-15", bank_is_down=True)
        handle.outcome(30)
        stage.tell("order-15", "bank is down", False)
        plan = handle.compensate(step="charge", reason="by hand")
        assert [entry.step for entry in plan.undo] == ["charge"]
        assert isinstance(handle.outcome(30), Compensated)


class TestUnknown:
    """A step of which nobody knows whether it took effect."""

    def start(self, stage: Stage, saga_id: str, which: str, **told: Any) -> SagaHandle[str]:
        for what, value in told.items():
            stage.tell(saga_id, what.replace("_", " "), value)
        return stage.doubt.start(which, saga_id=saga_id)

    def test_a_probe_that_finds_it_happened(self, stage: Stage) -> None:
        """The compensation is called with the result that the probe found."""
        outcome = self.start(stage, "doubt-1", "probed", it_happened=True).outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.compensated == ("probed", "pack")
        [probe] = stage.effects.all(saga_id="doubt-1", kind="probe")
        assert probe.detail == "probed"
        [undo] = stage.effects.all(saga_id="doubt-1", step="undo_probed")
        assert undo.detail == ["found out", "probed", "succeeded"]

    def test_a_probe_that_finds_it_did_not(self, stage: Stage) -> None:
        """There is nothing to undo, and the rest is undone."""
        outcome = self.start(stage, "doubt-2", "probed").outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.compensated == ("pack",)
        assert outcome.unknown == ()
        assert stage.done("doubt-2", "compensation") == ["unpack"]

    def test_a_compensation_that_admits_none(self, stage: Stage) -> None:
        """It is called without a result, and can tell that the outcome is unknown."""
        outcome = self.start(stage, "doubt-3", "admitting").outcome(30)
        assert isinstance(outcome, Compensated)
        assert outcome.compensated == ("admitting", "pack")
        [undo] = stage.effects.all(saga_id="doubt-3", step="undo_admitting")
        assert undo.detail == [None, "admitting", "unknown"]

    def test_neither_is_reported_and_not_called_until_a_deploy_admits_none(self, stage: Stage) -> None:
        """What cannot be known is said; after a deploy whose compensation admits ``None``, a replay calls it."""
        handle = self.start(stage, "doubt-4", "closed")
        outcome = handle.outcome(30)
        assert isinstance(outcome, CompensationFailed)
        assert outcome.unknown == ("closed",)
        assert outcome.compensated == ("pack",)
        assert outcome.not_compensated == ()
        row = stage.row(handle, "undo_closed")
        assert row.state is StepState.SKIPPED
        assert row.kind is Kind.COMPENSATION
        assert "nobody knows whether closed took effect. Give closed a probe" in str(row.error)
        assert stage.done("doubt-4") == ["pack", "closed", "unpack"]

        plan = handle.compensate(reason="again", dry_run=True)
        assert plan.undo == ()
        assert "give it a probe" in plan.left[0].reason

        deployed = {"UNDO_ADMITS_NONE": "1"}
        stage.stop_workers()
        stage.cluster.start(stage.app, concurrency=4, env=deployed)
        done = stage.saga("compensate", "doubt-4", "--reason", "deployed", env=deployed)
        assert done.returncode == 0, done.stderr
        outcome = handle.outcome(30)
        assert isinstance(outcome, Compensated)
        assert stage.effects.all(saga_id="doubt-4", step="undo_closed")[0].detail == [
            None,
            "closed",
            "unknown",
        ]
