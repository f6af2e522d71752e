"""What a worker does with a row: claim, finish, retry, hand back, lose. Each guard has a test of its own."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sagakit.coordinator.ledger import NewRow
from sagakit.errors import ErrorInfo
from sagakit.states import OPEN_SAGA_STATES, Kind, SagaState, StepState
from sagakit.store import Claimed, Store, Target, Transaction
from tests.contract.ledgers import COMPENSATION, PROBE, STEP, TIMER, Ledger

SECOND = timedelta(seconds=1)
ERROR = ErrorInfo(type="OSError", message="\udcff")

# --- claim ---


def claim(store: Store, token: str = "t0", *, saga_id: str = "s", position: int = 0) -> Claimed | None:
    """Claim a row in a transaction of its own, as a worker does."""
    with store.begin() as tx:
        return tx.steps.claim(saga_id, position, token, new_token="new", owner="w")


def test_claim_returns_what_a_worker_needs(store: Store, ledger: Ledger) -> None:
    """A claim answers with everything about the run, under the new token and the next attempt's number."""
    row = replace(STEP, queue="payments", priority=4, time_limit=2.5)
    ledger.row(row=row, retries=2, lost=1, attempt=3, tainted=True)
    before = ledger.now()
    assert claim(store) == Claimed(
        saga_id="s",
        saga_name="shop.checkout",
        saga_version=1,
        position=0,
        kind=Kind.STEP,
        name="charge",
        task="shop.charge",
        attempt=4,
        retries=2,
        lost=1,
        tainted=True,
        token="new",
        args="[1]",
        queue="payments",
        priority=4,
        compensates=None,
        time_limit=2.5,
    )
    columns = ledger.columns()
    assert (columns["state"], columns["token"], columns["owner"]) == ("running", "new", "w")
    assert columns["started_at"] >= before
    assert abs(columns["deadline_at"] - columns["started_at"] - SECOND * 2.5) < SECOND / 10


def test_claim_without_a_time_limit(store: Store, ledger: Ledger) -> None:
    """A step without a time limit has no deadline."""
    ledger.row()
    assert claim(store)
    assert ledger.columns()["deadline_at"] is None


def test_claim_lands_once(store: Store, ledger: Ledger) -> None:
    """A message delivered twice runs the step once, whether the first run has ended or not."""
    ledger.row()
    assert claim(store)
    assert claim(store) is None
    assert claim(store, "new") is None


def test_claim_touches_one_row(store: Store, ledger: Ledger) -> None:
    """Other rows, and rows of other sagas, stay scheduled even under the same token."""
    ledger.row()
    ledger.row(row=replace(STEP, position=1), token="t0")
    ledger.row("other", token="t0")
    assert claim(store)
    assert ledger.columns(position=1)["state"] == "scheduled"
    assert ledger.columns("other")["state"] == "scheduled"


def test_claim_needs_the_token(store: Store, ledger: Ledger) -> None:
    """A message from before a retry or a republishing under a new token claims nothing."""
    ledger.row()
    assert claim(store, "old") is None
    assert ledger.columns()["state"] == "scheduled"


@pytest.mark.parametrize("state", sorted(frozenset(StepState) - {StepState.SCHEDULED}))
def test_claim_needs_a_scheduled_row(store: Store, ledger: Ledger, state: StepState) -> None:
    """A row that runs or has ended is not claimed, though the token fits."""
    ledger.row(state=state.value, owner="other")
    assert claim(store) is None
    assert ledger.columns()["owner"] == "other"


def test_claim_waits_for_the_due_time(store: Store, ledger: Ledger) -> None:
    """A retry cannot be claimed before it is due, whatever message arrives."""
    now = ledger.now()
    ledger.row(due_at=now + SECOND * 60)
    assert claim(store) is None
    ledger.put_row("s", 0, due_at=now - SECOND)
    assert claim(store)


def test_claim_refuses_the_expired(store: Store, ledger: Ledger) -> None:
    """A row that should have started by now is not started any more."""
    now = ledger.now()
    ledger.row(expires_at=now - SECOND)
    assert claim(store) is None
    ledger.put_row("s", 0, expires_at=now + SECOND * 60)
    assert claim(store)


def test_claim_of_a_step_needs_a_running_saga(store: Store, ledger: Ledger) -> None:
    """A step runs only while the body does: not while the saga compensates, is held, or has ended."""
    for state in SagaState:
        ledger.saga(state, state)
        ledger.row(state)
        assert (claim(store, saga_id=state) is not None) is (state is SagaState.RUNNING), state


@pytest.mark.parametrize("row", [COMPENSATION, PROBE], ids=["compensation", "probe"])
def test_claim_of_an_undoing_needs_an_open_saga(store: Store, ledger: Ledger, row: NewRow) -> None:
    """Compensations and probes run while the saga is open, scopes' while it runs; not once it is held or over."""
    for state in SagaState:
        ledger.saga(state, state)
        ledger.ended(StepState.SUCCEEDED, state)
        token = ledger.row(state, row)
        claimed = claim(store, token, saga_id=state, position=row.position)
        assert (claimed is not None) is (state in OPEN_SAGA_STATES), state


def test_claim_of_a_timer(store: Store, ledger: Ledger) -> None:
    """Timers are the coordinator's; no worker runs them."""
    ledger.row(row=TIMER, token="t0")
    assert claim(store) is None


def test_claim_of_a_compensation_brings_its_target(store: Store, ledger: Ledger) -> None:
    """A compensation or probe comes with the arguments, result and state of the step it concerns."""
    ledger.ended(StepState.UNKNOWN, result='{"id":7}')
    ledger.row(row=COMPENSATION)
    claimed = claim(store, "t1", position=1)
    assert claimed is not None
    assert (claimed.kind, claimed.args, claimed.compensates) == (Kind.COMPENSATION, None, 0)
    assert claimed.target == Target(
        position=0, name="charge", args="[1]", result='{"id":7}', state=StepState.UNKNOWN
    )


# --- what ends a run: the guards they share ---

Ending = Callable[[Transaction, str, str], Any]


def finish(tx: Transaction, saga_id: str, token: str) -> Any:
    """Record a success."""
    return tx.steps.finish(saga_id, 0, token, state=StepState.SUCCEEDED, result="2", error=None)


def retry(tx: Transaction, saga_id: str, token: str) -> Any:
    """Schedule a retry."""
    return tx.steps.retry(saga_id, 0, token, new_token="new", delay=SECOND * 30, error=ERROR)


def hand_back(tx: Transaction, saga_id: str, token: str) -> Any:
    """Give the row back."""
    return tx.steps.hand_back(saga_id, 0, token, new_token="new")


def report(tx: Transaction, saga_id: str, token: str) -> Any:
    """Note how far the run is; it ends nothing, but the guards are the same."""
    return tx.steps.report(saga_id, 0, token, progress="1 of 2")


def lose(tx: Transaction, saga_id: str, token: str) -> Any:
    """Give the run up for lost."""
    return tx.steps.lose(saga_id, 0, token, new_token="new", rerun=True, max_lost=3, error=ERROR)


endings = pytest.mark.parametrize("end", [finish, retry, hand_back, report, lose])


@endings
def test_ending_needs_the_token(store: Store, ledger: Ledger, end: Ending) -> None:
    """Whoever lost the row to another run cannot end that run, and the guess of a token changes nothing."""
    ledger.running()
    before = ledger.columns()
    with store.begin() as tx:
        assert not end(tx, "s", "old")
    assert ledger.columns() == before


@endings
@pytest.mark.parametrize("state", sorted(frozenset(StepState) - {StepState.RUNNING}))
def test_ending_needs_a_running_row(store: Store, ledger: Ledger, end: Ending, state: StepState) -> None:
    """A run ends once: a row that has ended, or waits to be claimed, is not ended again though the token fits."""
    ledger.row(state=state.value)
    before = ledger.columns()
    with store.begin() as tx:
        assert not end(tx, "s", "t0")
    assert ledger.columns() == before


@endings
def test_ending_touches_one_row(store: Store, ledger: Ledger, end: Ending) -> None:
    """Other rows, and rows of other sagas, run on even under the same token."""
    ledger.running()
    ledger.running(row=replace(STEP, position=1), token="t0")
    ledger.running("other", token="t0")
    with store.begin() as tx:
        assert end(tx, "s", "t0")
    for untouched in (ledger.columns(position=1), ledger.columns("other")):
        assert (untouched["state"], untouched["progress"]) == ("running", None)


@endings
def test_ending_does_not_ask_for_the_lease(store: Store, ledger: Ledger, end: Ending) -> None:
    """A run whose worker is late with its lease, or gone, still ends: the token alone decides."""
    ledger.running(owner="gone")
    with store.begin() as tx:
        assert end(tx, "s", "t0")


# --- finish ---


@pytest.mark.parametrize("state", [StepState.SUCCEEDED, StepState.FAILED, StepState.UNKNOWN])
def test_finish_records_the_outcome(store: Store, ledger: Ledger, state: StepState) -> None:
    """State, result, error and time are on the row; it waits to be fed."""
    ledger.running()
    with store.begin() as tx:
        assert tx.steps.finish("s", 0, "t0", state=state, result="2", error=ERROR)
        [row] = tx.steps.load("s")
        assert tx.steps.has_unfed("s")
    assert (row.state, row.result, row.error, row.resolved_seq) == (state, "2", ERROR, None)
    assert ledger.columns()["finished_at"] is not None
    assert ledger.columns()["owner"] == "w"


@pytest.mark.parametrize(
    "state", [StepState.SCHEDULED, StepState.RUNNING, StepState.CANCELLED, StepState.SKIPPED]
)
def test_finish_with_what_is_no_outcome(store: Store, ledger: Ledger, state: StepState) -> None:
    """A run cannot end in a state that the table of transitions does not know for it."""
    ledger.running()
    with store.begin() as tx, pytest.raises(ValueError, match="cannot end"):
        tx.steps.finish("s", 0, "t0", state=state, result=None, error=None)


def test_finish_clears_the_error_of_an_earlier_attempt(store: Store, ledger: Ledger) -> None:
    """A step that succeeded at its second attempt bears no error."""
    ledger.running(error=ERROR.dumps().encode("utf-8", "backslashreplace").decode())
    with store.begin() as tx:
        finish(tx, "s", "t0")
        [row] = tx.steps.load("s")
    assert row.error is None


# --- retry, hand back, lose ---


def test_retry_schedules_again(store: Store, ledger: Ledger) -> None:
    """A retry is due after its delay, under a new token, not published, and counted."""
    ledger.running(retries=1, deadline_at=ledger.now())
    with store.begin() as tx:
        assert retry(tx, "s", "t0")
        [row] = tx.steps.load("s")
        now = tx.now()
    columns = ledger.columns()
    assert (row.state, row.error, row.attempt) == (StepState.SCHEDULED, ERROR, 1)
    assert (columns["token"], columns["owner"], columns["retries"], columns["lost"]) == ("new", None, 2, 0)
    assert (columns["publishes"], columns["published_at"], columns["deadline_at"]) == (0, None, None)
    assert abs(columns["due_at"] - now - SECOND * 30) < SECOND
    assert claim(store, "new") is None


def test_report_is_for_people(store: Store, ledger: Ledger) -> None:
    """Progress is on the record, and the run goes on under the same token."""
    ledger.running()
    with store.begin() as tx:
        assert report(tx, "s", "t0")
        record = tx.queries.record("s")
        assert finish(tx, "s", "t0")
    assert record is not None
    assert record.steps[0].progress == "1 of 2"


@pytest.mark.parametrize(
    ("before", "now", "after"), [(False, False, False), (False, True, True), (True, False, True)]
)
def test_taint_stays(store: Store, ledger: Ledger, before: bool, now: bool, after: bool) -> None:
    """Once an attempt may have taken effect, every later claim is told so."""
    ledger.running(tainted=before)
    with store.begin() as tx:
        assert tx.steps.retry("s", 0, "t0", new_token="new", delay=SECOND * 0, error=ERROR, tainted=now)
    claimed = claim(store, "new")
    assert claimed is not None
    assert claimed.tainted is after


@pytest.mark.parametrize("end", [hand_back, lose])
def test_given_back_rows_can_be_claimed_at_once(store: Store, ledger: Ledger, end: Ending) -> None:
    """A row that was handed back or lost is due at once under its new token, and the sweep will publish it."""
    ledger.running(deadline_at=ledger.now())
    with store.begin() as tx:
        assert end(tx, "s", "t0")
    columns = ledger.columns()
    assert (columns["state"], columns["owner"], columns["publishes"]) == ("scheduled", None, 0)
    assert (columns["published_at"], columns["deadline_at"], columns["retries"]) == (None, None, 0)
    assert claim(store) is None
    claimed = claim(store, "new")
    assert claimed is not None
    assert (claimed.attempt, claimed.lost, claimed.tainted) == (
        (2, 1, True) if end is lose else (2, 0, False)
    )


@pytest.mark.parametrize(
    ("rerun", "lost", "state"),
    [(True, 0, "scheduled"), (True, 1, "scheduled"), (True, 2, "unknown"), (False, 0, "unknown")],
)
def test_lose_gives_up_in_time(store: Store, ledger: Ledger, rerun: bool, lost: int, state: str) -> None:
    """A run is repeated until it has been lost too often; one that must not be repeated is unknown at once."""
    ledger.running(lost=lost)
    with store.begin() as tx:
        found = tx.steps.lose("s", 0, "t0", new_token="new", rerun=rerun, max_lost=3, error=ERROR)
        [row] = tx.steps.load("s")
    columns = ledger.columns()
    assert (found, row.state, row.error) == (StepState(state), StepState(state), ERROR)
    assert (columns["lost"], columns["token"]) == (lost + 1, "new")
    assert (columns["finished_at"] is not None, columns["owner"]) == (
        (True, "w") if state == "unknown" else (False, None)
    )


def test_lose_fences_a_late_finish(store: Store, ledger: Ledger) -> None:
    """A zombie that finishes after it was given up for lost is told that its outcome does not count."""
    ledger.running()
    with store.begin() as tx:
        tx.steps.lose("s", 0, "t0", new_token="new", rerun=False, max_lost=3, error=None)
        assert not finish(tx, "s", "t0")
        [row] = tx.steps.load("s")
    assert row.state is StepState.UNKNOWN
