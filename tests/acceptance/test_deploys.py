"""Deploys under running sagas: code that no longer fits leaves them stuck, not lost; versions stand side by side."""

import os

import pytest

from sagakit import Completed, SagaHandle, SagaState, StepState, Stuck
from sagakit.errors import NotAllowed
from tests.acceptance.stage import Stage
from tests.cluster.waiting import wait_until

APP = "deploys"
SAGAS = ("reordered", "shortened", "retyped_result", "retyped_argument", "retyped_input")


def waits_for_later(handle: SagaHandle[str]) -> bool:
    return any(row.queue == "later" for row in handle.history().steps)


@pytest.fixture(scope="module")
def stuck(stage: Stage) -> dict[str, SagaHandle[str]]:
    """A saga of each kind, begun by good code and stuck in the hands of bad code."""
    stage.cluster.start(stage.app, queues=["celery"], concurrency=1)
    handles = {name: getattr(stage.module, name).start(name, saga_id=name) for name in SAGAS}
    for name, handle in handles.items():
        wait_until(lambda handle=handle: waits_for_later(handle), what=f"{name} to wait for a later worker")
    stage.stop_workers()
    stage.cluster.start(stage.app, queues=["celery", "later"], concurrency=1, env={"DEPLOY": "bad"})
    for handle in handles.values():
        stage.wait_for_state(handle, SagaState.STUCK)
    return handles


@pytest.fixture(scope="module")
def restored(stage: Stage, stuck: dict[str, SagaHandle[str]]) -> dict[str, SagaHandle[str]]:
    """The same sagas, with the good code back and nothing done about them yet."""
    stage.stop_workers()
    stage.cluster.start(stage.app, queues=["celery", "later"], concurrency=1)
    return stuck


class TestStuck:
    """Point 6 of the issue, its first half: what is seen while the code does not fit."""

    def test_expected_and_found_are_named(self, stage: Stage, stuck: dict[str, SagaHandle[str]]) -> None:
        """The outcome says what the ledger holds, what the body did instead, and the way out."""
        outcome = stuck["reordered"].outcome(5)
        match outcome:
            case Stuck(error):
                text = str(error)
            case _:
                pytest.fail(f"{outcome!r}")
        assert "expected step 'first', found step 'other'" in text
        assert "saga resume reordered" in text
        assert "deploys.py" in text

    def test_a_shorter_body_is_noticed(self, stuck: dict[str, SagaHandle[str]]) -> None:
        """A body that ends before its ledger does has not completed."""
        assert "expected step 'later', found the end of the body" in str(stuck["shortened"].outcome(5).error)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("retyped_result", "the result of typed, as stored, no longer fits its type"),
            ("retyped_argument", "the call taking(), as stored, no longer fits its type: value"),
            ("retyped_input", "the input of retyped_input, as stored, no longer fits its type"),
        ],
    )
    def test_types_that_no_longer_decode(
        self, stuck: dict[str, SagaHandle[str]], name: str, text: str
    ) -> None:
        """A stored value that does not fit its new type is named."""
        assert text in str(stuck[name].outcome(5).error)

    @pytest.mark.parametrize("name", SAGAS)
    def test_nothing_is_lost_or_undone(
        self, stage: Stage, stuck: dict[str, SagaHandle[str]], name: str
    ) -> None:
        """What had succeeded still has, and no compensation was called."""
        assert stage.row(name, "first").state is StepState.SUCCEEDED
        assert stage.done(name, "compensation") == []
        assert "other" not in stage.done(name)
        if name == "retyped_argument":  # given back unrun
            assert stage.row(name, "taking").state is StepState.SCHEDULED
            assert "taking" not in stage.done(name)

    def test_the_command_shows_it(self, stage: Stage, stuck: dict[str, SagaHandle[str]]) -> None:
        """``saga show`` says why."""
        shown = stage.saga("show", "reordered")
        assert shown.returncode == 0
        text = " ".join(shown.stdout.split())
        assert "stuck" in text
        assert "expected step 'first', found step 'other'" in text


class TestRestored:
    """Its second half: the code fits again."""

    def test_resume_completes_it(self, stage: Stage, restored: dict[str, SagaHandle[str]]) -> None:
        """``saga resume ID`` lets it go on from where it was; nothing is run twice."""
        done = stage.saga("resume", "reordered", "--reason", "rolled back", "--actor", "ann")
        assert done.returncode == 0, done.stderr
        assert restored["reordered"].result(30) == "other later reordered!"
        assert stage.done("reordered") == ["first", "later", "other"]
        [entry] = restored["reordered"].history().audit
        assert (entry.action, entry.actor, entry.reason) == ("resume", "ann", "rolled back")

    @pytest.mark.parametrize(
        ("name", "result", "steps"),
        [
            ("shortened", "later shortened!", ["first", "later"]),
            ("retyped_result", "one", ["first", "typed", "later"]),
            ("retyped_argument", "took retyped_argument", ["first", "taking"]),
            ("retyped_input", "later retyped_input!", ["first", "later"]),
        ],
    )
    def test_every_kind_goes_on(
        self, stage: Stage, restored: dict[str, SagaHandle[str]], name: str, result: str, steps: list[str]
    ) -> None:
        """Whatever did not fit, the saga completes after the fix, each step having run once."""
        restored[name].resume(reason="fixed", actor="ann")
        outcome = restored[name].outcome(30)
        assert isinstance(outcome, Completed)
        assert outcome.result == result
        assert stage.done(name) == steps

    def test_only_a_stuck_saga_is_resumed(self, stage: Stage, restored: dict[str, SagaHandle[str]]) -> None:
        """Another state is a refusal in words."""
        done = stage.versioned.start("x", saga_id="not-stuck")
        done.result(30)
        with pytest.raises(NotAllowed, match="saga not-stuck is completed: only a stuck or paused saga"):
            done.resume()


@pytest.fixture
def newer(stage: Stage) -> SagaHandle[str]:
    """A saga of version 2, started by newer code while the only worker has version 1."""
    stage.stop_workers()
    [old] = stage.cluster.start(stage.app, queues=["celery"], concurrency=1)
    started = stage.saga_json(
        "start", "deploys.versioned", "--input", '"x"', "--id", f"v2-{os.getpid()}", env={"DEPLOY": "v2"}
    )
    old.wait_for_log(r"is deploys\.versioned version 2, which this worker lacks: passing it on")
    return stage.kit.get(started["id"])


def test_versions_stand_side_by_side(stage: Stage, newer: SagaHandle[str]) -> None:
    """A worker that lacks a saga's version passes it on; a worker that has both runs each in its own."""
    old = stage.versioned.start("y", saga_id="v1-beside")
    assert old.result(30) == "v1 y!"
    assert newer.status() is SagaState.PENDING
    stage.cluster.start(stage.app, queues=["celery"], concurrency=1, env={"DEPLOY": "v2"})
    outcome = newer.outcome(30)
    assert isinstance(outcome, Completed)
    assert outcome.result == "v2 other x!"
    assert newer.history().version == 2
