"""Workers killed, frozen and poisoned in the middle of a step."""

from datetime import timedelta

import pytest

from sagakit.states import SagaState, StepState
from tests.cluster.waiting import wait_until
from tests.crash.rig import APP, Rig, check, step

DONE = ["reserve", "charge", "ship"]
RETURN = timedelta(seconds=15)
"""Within this time of a worker's return a saga goes on, with default settings."""


class TestDefaults:
    """With the settings that users have."""

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        """None but the defaults."""
        return {}

    def test_all_workers_killed(self, rig: Rig) -> None:
        """A saga whose workers were all killed goes on within 15 s of a worker's return, by the database's clock."""
        nodes = rig.cluster.start(APP, workers=2)
        charged = rig.effects.gate("charged")
        handle = rig.start()
        rig.reach(charged, handle)
        for node in nodes:
            node.kill()
        charged.open()
        rig.cluster.start(APP)
        record = rig.end(handle, 60)
        assert record.state is SagaState.COMPLETED
        check(rig, record, DONE)
        assert rig.runs(record.id) == {"reserve": 1, "charge": 2, "ship": 1}
        charge = step(record, "charge")
        assert (charge.attempt, charge.lost) == (2, 1)
        assert charge.started_at is not None
        [returned] = [worker for worker in rig.workers() if worker.id == charge.owner]
        assert charge.started_at - returned.started_at < RETURN

    def test_a_child_killed(self, rig: Rig) -> None:
        """A dead child's step is freed as soon as its worker notices, which is before any lease could run out."""
        node = rig.worker(concurrency=2)
        charged = rig.effects.gate("charged")
        handle = rig.start()
        [arrival] = rig.reach(charged, handle)
        killed_at = rig.now()
        node.kill_child(arrival.pid)
        rig.reach(charged, handle, 2)
        charged.open()
        record = rig.end(handle)
        assert record.state is SagaState.COMPLETED
        check(rig, record, DONE)
        charge = step(record, "charge")
        assert (charge.attempt, charge.lost, charge.retries) == (2, 1, 0)
        [lost] = record.attempts
        assert (lost.position, lost.attempt, lost.outcome) == (charge.position, 1, "lost")
        assert lost.error is not None
        assert "the process that ran it died" in lost.error.message
        assert lost.finished_at - killed_at < rig.kit.settings.lease


class TestQuick:
    """With settings that do not make a test wait."""

    def test_the_parent_killed(self, rig: Rig) -> None:
        """Another worker takes over what a dead one ran, once its lease has run out."""
        node = rig.worker()
        charged = rig.effects.gate("charged")
        handle = rig.start()
        rig.reach(charged, handle)
        [other] = rig.cluster.start(APP, concurrency=1)
        node.kill_parent()
        [_, second] = rig.reach(charged, handle, 2)
        assert second.pid in other.pids
        charged.open()
        record = rig.end(handle)
        assert record.state is SagaState.COMPLETED
        check(rig, record, DONE)
        [lost] = record.attempts
        assert lost.outcome == "lost"
        assert lost.error is not None
        assert "has not been heard of" in lost.error.message

    def test_a_frozen_worker_comes_back_too_late(self, rig: Rig) -> None:
        """A worker that was frozen past its lease is refused when it finishes, and has doubled nothing."""
        frozen = rig.worker()
        charged = rig.effects.gate("charged")
        handle = rig.start()
        [first] = rig.reach(charged, handle)
        rig.cluster.start(APP, concurrency=1)
        frozen.pause()
        rig.reach(charged, handle, 2)
        charged.open()
        record = rig.end(handle)
        assert record.state is SagaState.COMPLETED
        assert first.pid in frozen.pids
        frozen.resume()
        frozen.wait_for_log(r"the outcome of charge \(attempt 1\) came too late and is refused")
        assert handle.history() == record
        check(rig, record, DONE)
        assert (step(record, "charge").attempt, step(record, "charge").lost) == (2, 1)
        # The frozen worker goes on as a healthy one.
        after = rig.start()
        assert rig.end(after).state is SagaState.COMPLETED

    def test_a_frozen_worker_whose_saga_was_undone(self, rig: Rig) -> None:
        """What a zombie finishes late cannot take a compensation back, nor publish a next step."""
        frozen = rig.worker()
        once = rig.effects.gate("once")
        handle = rig.start("cautious")
        rig.reach(once, handle)
        rig.cluster.start(APP, concurrency=1)
        frozen.pause()
        record = rig.end(handle)
        assert record.state is SagaState.COMPENSATED
        once.open()
        frozen.resume()
        frozen.wait_for_log(r"the outcome of at_most_once \(attempt 1\) came too late and is refused")
        assert handle.history() == record
        assert rig.effects.names(record.id) == ["reserve", "at_most_once", "undo_once", "release"]

    def test_a_step_at_most_once(self, rig: Rig) -> None:
        """With acks_late=False a lost attempt is not repeated: it is unknown, and undone."""
        node = rig.worker()
        once = rig.effects.gate("once")
        handle = rig.start("cautious")
        [arrival] = rig.reach(once, handle)
        node.kill_child(arrival.pid)
        record = rig.end(handle)
        assert record.state is SagaState.COMPENSATED
        lost = step(record, "at_most_once")
        assert (lost.state, lost.attempt, lost.lost) == (StepState.UNKNOWN, 1, 1)
        assert rig.effects.names(record.id) == ["reserve", "at_most_once", "undo_once", "release"]

    def test_a_poison_step(self, rig: Rig) -> None:
        """A step that kills whoever runs it is given up as unknown and undone, not repeated for ever."""
        rig.worker()
        record = rig.end(rig.start("poisoned"), 60)
        assert record.state is SagaState.COMPENSATED
        poison = step(record, "poison")
        limit = rig.kit.settings.max_lost_attempts
        assert (poison.state, poison.attempt, poison.lost) == (StepState.UNKNOWN, limit, limit)
        assert rig.runs(record.id) == {"reserve": 1, "poison": limit, "antidote": 1, "release": 1}
        assert [attempt.outcome for attempt in record.attempts] == ["lost"] * (limit - 1) + ["unknown"]
        assert rig.effects.names(record.id)[-2:] == ["antidote", "release"]
        # Its worker is none the worse for it.
        assert rig.end(rig.start()).state is SagaState.COMPLETED

    def test_a_warm_shutdown_finishes_the_step(self, rig: Rig) -> None:
        """A worker that is asked to stop finishes what it runs under a living lease, however long that takes."""
        node = rig.worker()
        charged = rig.effects.gate("charged")
        handle = rig.start()
        rig.reach(charged, handle)
        [other] = rig.cluster.start(APP, concurrency=1)
        asked_at = rig.now()
        node.kill("SIGTERM")
        node.wait_for_log("Warm shutdown")
        wait_until(lambda: rig.now() - asked_at > rig.kit.settings.lease * 1.5, what="a lease to run out")
        assert len(rig.workers()) == 2
        charged.open()
        record = rig.end(handle)
        wait_until(lambda: not node.running, what="the worker to end")
        assert node.exit_status == 0
        assert record.state is SagaState.COMPLETED
        assert rig.runs(record.id) == dict.fromkeys(DONE, 1)
        assert [row.attempt for row in record.steps] == [1, 1, 1]
        assert record.attempts == ()
        # It has given its lease back.
        assert [worker.pid for worker in rig.workers()] == [other.pid]
