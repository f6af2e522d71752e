"""What the sweep does about rows for which nobody speaks, and what it leaves alone."""

from dataclasses import replace
from datetime import timedelta

import pytest

from sagakit.dispatch.envelope import Delivery
from sagakit.maintenance.sweep import OVERTAKEN
from sagakit.states import SagaState, StepState
from sagakit.store import WorkerInfo
from sagakit.worker.notices import Notice, NoticeKind
from tests.contract.ledgers import STEP
from tests.unit.maintenance.sweeping import AT_MOST_ONCE, FOREIGN, Sweeping

SENT = {"publishes": 1}
BUSY = {"idle": False}
MARGIN = timedelta(seconds=2)


class TestMessages:
    """Messages are sent when they are due, and again when they are lost."""

    def test_a_row_that_was_never_sent_is_sent_once(self, sweeping: Sweeping) -> None:
        """Even a busy worker sends a retry that is due, and only the first of two sweeps does."""
        token = sweeping.ledger.row(publishes=0, published_at=None, due_at=sweeping.ago(1))
        sweeping.run(**BUSY)
        assert sweeping.outbox.steps() == [("s", 0, token)]
        sweeping.run(**BUSY)
        assert sweeping.outbox.steps() == []

    def test_what_the_broker_refused_is_sent_by_the_next_sweep(self, sweeping: Sweeping) -> None:
        """A message that never left does not wait out the back-off of one that may be lost."""
        token = sweeping.ledger.row(publishes=0, published_at=None, due_at=sweeping.ago(1))
        sweeping.ledger.saga("t", wake_at=sweeping.ago(1), publishes=0, published_at=None)
        sweeping.outbox.broken = True
        for _ in range(3):
            sweeping.run(**BUSY)
        sweeping.outbox.broken = False
        sweeping.run(**BUSY)
        assert sweeping.outbox.steps() == [("s", 0, token)]
        assert sweeping.outbox.advances() == ["t"]

    def test_one_part_that_fails_does_not_stop_the_others(
        self, sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its fault is raised in the end, once everything else has been seen to."""
        token = sweeping.ledger.row(publishes=0, published_at=None, due_at=sweeping.ago(1))

        def fail() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(sweeping.sweep, "_stop_overdue", fail)
        with pytest.raises(ZeroDivisionError):
            sweeping.run()
        assert sweeping.outbox.steps() == [("s", 0, token)]

    @pytest.mark.parametrize("what", ["expires_at", "deadline_at"])
    def test_a_limit_is_told_in_time(self, sweeping: Sweeping, what: str) -> None:
        """The sweep looks again when a row expires or runs past its time limit, not at the end of its interval."""
        limit = {what: sweeping.ago(-3)}
        if what == "expires_at":
            sweeping.ledger.row(**limit, **SENT)
        else:
            sweeping.ledger.running(**limit)
        found = sweeping.run(**BUSY, leases_trusted=False)
        assert found is not None
        assert timedelta(seconds=1) < found <= timedelta(seconds=3.002)

    def test_a_retry_that_is_not_due_waits(self, sweeping: Sweeping) -> None:
        """Nothing is sent before its time."""
        sweeping.ledger.row(publishes=0, published_at=None, due_at=sweeping.ago(-60))
        sweeping.run()
        assert sweeping.outbox.steps() == []

    def test_an_idle_worker_presumes_messages_of_its_queues_lost(self, sweeping: Sweeping) -> None:
        """What it would have received by now is sent again; what another worker may be sitting on is not."""
        old = sweeping.ago(5)
        sweeping.ledger.row("default", published_at=old, **SENT)
        sweeping.ledger.row("mine", queue="celery", published_at=old, **SENT)
        sweeping.ledger.row("theirs", queue="other", published_at=old, **SENT)
        sweeping.ledger.row("fresh", published_at=sweeping.ago(3), **SENT)
        sweeping.run()
        assert sorted(sweeping.outbox.steps()) == [("default", 0, "t0"), ("mine", 0, "t0")]

    def test_a_busy_worker_presumes_nothing(self, sweeping: Sweeping) -> None:
        """Behind a backlog, a message that does not come is no sign of its loss."""
        sweeping.ledger.row(queue="celery", published_at=sweeping.ago(50), **SENT)
        sweeping.run(**BUSY)
        assert sweeping.outbox.steps() == []

    def test_without_any_evidence_a_message_is_sent_again_in_the_end(self, sweeping: Sweeping) -> None:
        """Other traffic must not keep a lost message lost: after ``republish_max``, and then ever more rarely."""
        sweeping.ledger.row("step", published_at=sweeping.ago(61), **SENT)
        sweeping.ledger.saga("start", wake_at=sweeping.ago(61), published_at=sweeping.ago(61), **SENT)
        for _ in range(3):
            sweeping.run(**BUSY)
        assert sweeping.outbox.steps() == [("step", 0, "t0")]
        assert sweeping.outbox.advances() == ["start"]

    @pytest.mark.parametrize(("lead", "sent"), [(OVERTAKEN + MARGIN, True), (OVERTAKEN - MARGIN, False)])
    def test_a_message_that_was_overtaken_is_lost(
        self, sweeping: Sweeping, lead: timedelta, sent: bool
    ) -> None:
        """A busy worker sends again what was sent well before the newest message it has received from that queue."""
        newest = sweeping.ago(20)
        sweeping.ledger.row(queue="celery", published_at=newest - lead, **SENT)
        sweeping.run(**BUSY, newest={"celery": newest.timestamp()})
        assert bool(sweeping.outbox.steps()) is sent

    @pytest.mark.parametrize(
        ("publishes", "age", "sent"),
        [
            (1, 5, True),
            (2, 7, False),
            (2, 9, True),
            (4, 31, False),
            (4, 33, True),
            (10, 59, False),
            (10, 61, True),
        ],
    )
    def test_it_backs_off(self, sweeping: Sweeping, publishes: int, age: float, sent: bool) -> None:
        """The interval doubles with each sending, up to its ceiling."""
        sweeping.ledger.row(queue="celery", publishes=publishes, published_at=sweeping.ago(age))
        sweeping.run()
        assert bool(sweeping.outbox.steps()) is sent

    def test_a_long_backlog_is_not_multiplied(self, sweeping: Sweeping) -> None:
        """However often sweeps look within the interval, a message is sent once more."""
        for number in range(30):
            sweeping.ledger.row(f"s{number:02}", published_at=sweeping.ago(60), **SENT)
        for _ in range(5):
            sweeping.run()
        assert len(sweeping.outbox.steps()) == 30

    def test_rows_of_sagas_that_stand_still_are_left_alone(self, sweeping: Sweeping) -> None:
        """A stuck saga's steps wait for the fix."""
        sweeping.ledger.row(published_at=sweeping.ago(60), **SENT)
        sweeping.ledger.put_saga("s", state=SagaState.STUCK.value)
        sweeping.run()
        assert sweeping.outbox.sent == []

    def test_a_batch_is_bounded(self, sweeping: Sweeping) -> None:
        """No more rows in one sweep than the settings say; the next one takes the rest."""
        sweeping.settings.__dict__["sweep_batch"] = 2
        for number in range(3):
            sweeping.ledger.row(f"s{number}", publishes=0, published_at=None, due_at=sweeping.ago(1))
        sweeping.run(**BUSY)
        assert len(sweeping.outbox.steps()) == 2
        sweeping.run(**BUSY)
        assert len(sweeping.outbox.steps()) == 1

    def test_the_next_due_time_is_told(self, sweeping: Sweeping) -> None:
        """So that the sweep can sleep until then."""
        sweeping.ledger.row(publishes=0, published_at=None, due_at=sweeping.ago(-7))
        found = sweeping.run()
        assert found is not None
        assert timedelta(seconds=5) < found <= timedelta(seconds=7.002)


class TestLostRuns:
    """Runs whose worker is gone."""

    def test_a_run_without_a_worker_goes_back(self, sweeping: Sweeping) -> None:
        """It is scheduled under a new token, sent in the same sweep, and on record as lost."""
        token = sweeping.ledger.running()
        sweeping.run()
        row = sweeping.ledger.columns()
        assert (row["state"], row["lost"], row["tainted"], row["owner"]) == ("scheduled", 1, True, None)
        assert row["token"] != token
        assert sweeping.outbox.steps() == [("s", 0, row["token"])]
        with sweeping.ledger.store.read() as tx:
            record = tx.queries.record("s")
        assert record is not None
        [attempt] = record.attempts
        assert (attempt.attempt, attempt.outcome, attempt.owner) == (1, "lost", "w")
        assert attempt.error is not None
        assert attempt.error.message == "worker w has not been heard of"

    def test_a_run_of_a_living_worker_goes_on(self, sweeping: Sweeping) -> None:
        """Its lease speaks for it."""
        sweeping.ledger.worker()
        token = sweeping.ledger.running()
        sweeping.run()
        assert sweeping.ledger.columns()["token"] == token

    def test_leases_that_cannot_be_trusted_are_not_judged(self, sweeping: Sweeping) -> None:
        """After an outage every worker is given the time to speak first."""
        sweeping.ledger.running()
        sweeping.run(leases_trusted=False)
        assert sweeping.ledger.columns()["state"] == "running"

    def test_a_step_that_keeps_losing_its_worker_is_given_up(self, sweeping: Sweeping) -> None:
        """After so many losses it is unknown, and the saga is told to go on."""
        sweeping.ledger.running(lost=2, attempt=3)
        sweeping.run()
        row = sweeping.ledger.columns()
        assert (row["state"], row["lost"]) == (StepState.UNKNOWN.value, 3)
        assert sweeping.outbox.advances() == ["s"]
        assert sweeping.outbox.steps() == []

    def test_a_step_at_most_once_is_not_run_again(self, sweeping: Sweeping) -> None:
        """One loss is enough if it must not run twice."""
        sweeping.ledger.running(row=replace(STEP, task=AT_MOST_ONCE))
        sweeping.run()
        assert sweeping.ledger.columns()["state"] == StepState.UNKNOWN.value
        assert sweeping.outbox.advances() == ["s"]

    def test_a_step_that_this_worker_lacks_is_left_to_others(self, sweeping: Sweeping) -> None:
        """Whether it may run again is for a worker to say that knows it."""
        sweeping.ledger.running(row=replace(STEP, task=FOREIGN))
        sweeping.run()
        assert sweeping.ledger.columns()["state"] == "running"

    def test_a_run_past_its_time_limit_is_unknown(self, sweeping: Sweeping) -> None:
        """In every pool: its worker may live, and yet the saga goes on."""
        sweeping.ledger.worker()
        sweeping.ledger.running(deadline_at=sweeping.ago(1))
        sweeping.run()
        row = sweeping.ledger.columns()
        assert row["state"] == StepState.UNKNOWN.value
        assert "past its time_limit" in row["error"]
        assert sweeping.outbox.advances() == ["s"]

    def test_a_row_that_expired_is_withdrawn(self, sweeping: Sweeping) -> None:
        """What nobody has begun by its start deadline is cancelled, not sent."""
        sweeping.ledger.row(expires_at=sweeping.ago(1), published_at=sweeping.ago(60), **SENT)
        sweeping.run()
        row = sweeping.ledger.columns()
        assert row["state"] == StepState.CANCELLED.value
        assert "expired" in row["error"]
        assert sweeping.outbox.steps() == []
        assert sweeping.outbox.advances() == ["s"]


class TestNotices:
    """What the worker's main process knows without a lease running out."""

    DELIVERY = Delivery("s", 0, "t0")
    RUN = "t0.7b.f00"
    """The token of a run that process 123 has claimed."""

    @pytest.fixture(autouse=True)
    def alive(self, sweeping: Sweeping) -> None:
        """The worker lives: without the notice nothing would happen."""
        sweeping.ledger.worker()

    def test_a_dead_process_frees_its_step(self, sweeping: Sweeping) -> None:
        """At once, whatever the lease says, and though leases cannot be trusted."""
        sweeping.ledger.running(token=self.RUN)
        sweeping.run(notices=[Notice(NoticeKind.LOST, self.DELIVERY, 123)], leases_trusted=False)
        row = sweeping.ledger.columns()
        assert (row["state"], row["lost"]) == ("scheduled", 1)
        assert "the process that ran it died" in row["error"]

    @pytest.mark.parametrize("pid", [123, None])
    def test_a_notice_of_a_process_that_had_moved_on(self, sweeping: Sweeping, pid: int | None) -> None:
        """A process that died after it committed a retry does not cost the retry its run."""
        sweeping.ledger.running(token="other.7b.f00", attempt=2, retries=1)
        sweeping.run(notices=[Notice(NoticeKind.LOST, self.DELIVERY, pid)])
        row = sweeping.ledger.columns()
        assert (row["state"], row["lost"], row["token"]) == ("running", 0, "other.7b.f00")

    def test_a_notice_of_a_process_that_held_a_duplicate(self, sweeping: Sweeping) -> None:
        """A process that died over a duplicate does not cost the one that runs the step its run."""
        sweeping.ledger.running(token=self.RUN)
        sweeping.run(notices=[Notice(NoticeKind.LOST, self.DELIVERY, 124)])
        assert sweeping.ledger.columns()["token"] == self.RUN

    @pytest.mark.parametrize(
        ("kind", "message"),
        [(NoticeKind.TIMED_OUT, "hard time limit"), (NoticeKind.TERMINATED, "terminated while it ran")],
    )
    def test_a_run_that_was_ended_on_purpose(
        self, sweeping: Sweeping, kind: NoticeKind, message: str
    ) -> None:
        """Killed at its limit or by an operator: unknown, and not run again."""
        sweeping.ledger.running(token=self.RUN)
        sweeping.run(notices=[Notice(kind, self.DELIVERY, 123)])
        row = sweeping.ledger.columns()
        assert row["state"] == StepState.UNKNOWN.value
        assert message in row["error"]
        assert sweeping.outbox.advances() == ["s"]

    def test_a_revoked_task_cancels_its_step(self, sweeping: Sweeping) -> None:
        """Flower's button, before a worker has begun it."""
        sweeping.ledger.row(**SENT, published_at=sweeping.ago(1))
        sweeping.run(notices=[Notice(NoticeKind.REVOKED, self.DELIVERY)])
        row = sweeping.ledger.columns()
        assert row["state"] == StepState.CANCELLED.value
        assert "revoked" in row["error"]
        assert sweeping.outbox.advances() == ["s"]

    def test_a_revoked_message_of_long_ago(self, sweeping: Sweeping) -> None:
        """A token that is no longer the row's revokes nothing."""
        sweeping.ledger.row(**SENT, published_at=sweeping.ago(1), token="newer")
        sweeping.run(notices=[Notice(NoticeKind.REVOKED, self.DELIVERY)])
        assert sweeping.ledger.columns()["state"] == "scheduled"

    def test_a_notice_about_nothing(self, sweeping: Sweeping) -> None:
        """A saga that is gone."""
        sweeping.run(notices=[Notice(kind, self.DELIVERY, 123) for kind in NoticeKind])
        assert sweeping.outbox.sent == []


class TestOutcomes:
    """Outcomes that nobody fed to their saga."""

    def test_an_outcome_that_waits_wakes_its_saga(self, sweeping: Sweeping) -> None:
        """Its recorder died between two commits: the saga is advanced, by one message."""
        sweeping.ledger.ended(StepState.SUCCEEDED, finished_at=sweeping.ago(5))
        sweeping.ledger.put_saga("s", wake_at=None, publishes=0, published_at=None)
        sweeping.run()
        assert sweeping.outbox.advances() == ["s"]

    def test_the_wake_is_not_multiplied(self, sweeping: Sweeping) -> None:
        """As long as the message may be under way, further sweeps send no other."""
        sweeping.ledger.ended(StepState.SUCCEEDED, finished_at=sweeping.ago(5))
        sweeping.ledger.put_saga("s", wake_at=None, publishes=0, published_at=None)
        for _ in range(4):
            sweeping.run()
        assert sweeping.outbox.advances() == ["s"]

    def test_a_fresh_outcome_is_left_to_its_recorder(self, sweeping: Sweeping) -> None:
        """It has just been committed, and is about to be fed."""
        sweeping.ledger.ended(StepState.SUCCEEDED)
        sweeping.ledger.put_saga("s", wake_at=None, publishes=0, published_at=None)
        sweeping.run()
        assert sweeping.outbox.sent == []

    def test_a_saga_that_was_started_long_ago(self, sweeping: Sweeping) -> None:
        """Its first message is presumed lost by a worker that would have had it, and by no busy one."""
        sweeping.ledger.saga(
            state=SagaState.PENDING, wake_at=sweeping.ago(5), published_at=sweeping.ago(9), **SENT
        )
        sweeping.run(**BUSY)
        sweeping.run(queues={"other"})
        assert sweeping.outbox.sent == []
        sweeping.run()
        assert sweeping.outbox.advances() == ["s"]


def test_any_number_of_sweeps_can_meet(sweeping: Sweeping) -> None:
    """A second sweep right after the first finds nothing left to do."""
    sweeping.ledger.running("lost")
    sweeping.ledger.row("doubtful", published_at=sweeping.ago(60), **SENT)
    sweeping.run()
    assert len(sweeping.outbox.steps()) == 2
    with sweeping.ledger.store.begin() as tx:
        tx.workers.register(WorkerInfo(id="other", hostname="h", pid=2), timedelta(seconds=9))
    sweeping.run()
    assert sweeping.outbox.sent == []
