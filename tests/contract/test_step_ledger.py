"""What the coordinator does with rows: insert, load, resolve, withdraw, abandon, revoke, reopen."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from sagakit.coordinator.ledger import NewRow, Resolution, StepRow, Undo
from sagakit.errors import ErrorInfo
from sagakit.states import RESOLVED_STEP_STATES, Kind, StepState
from sagakit.store import Store
from tests.contract.ledgers import COMPENSATION, PROBE, STEP, TIMER, UNDO, Ledger

SECOND = timedelta(seconds=1)
ERROR = ErrorInfo(type="sagakit.NotCalled", message="not called")

# --- insert and load ---


def test_insert_reads_back(store: Store, ledger: Ledger) -> None:
    """Rows come back as the coordinator wrote them, in order of position."""
    ledger.saga()
    now = ledger.now()
    step = replace(STEP, path="1:0", queue="q", priority=2, expires_at=now + SECOND * 9, time_limit=1.5)
    timer = replace(TIMER, position=1, path="1:1", due_at=now + SECOND)
    skipped = replace(
        COMPENSATION, position=2, state=StepState.SKIPPED, error=ERROR, resolved_seq=1, abandoned=True
    )
    with store.begin() as tx:
        tx.steps.insert("s", [skipped, timer, step], {0: "t"}, ledger_at=now)
        rows = tx.steps.load("s")
    assert rows == [
        StepRow(
            position=0,
            kind=Kind.STEP,
            name="charge",
            state=StepState.SCHEDULED,
            path="1:0",
            task="shop.charge",
            undo=UNDO,
        ),
        StepRow(
            position=1,
            kind=Kind.TIMER,
            name="sleep",
            state=StepState.SCHEDULED,
            path="1:1",
            due_at=now + SECOND,
        ),
        StepRow(
            position=2,
            kind=Kind.COMPENSATION,
            name="refund",
            state=StepState.SKIPPED,
            task="shop.refund",
            error=ERROR,
            resolved_seq=1,
            resolved_at=now,
            compensates=0,
            abandoned=True,
        ),
    ]
    columns = ledger.columns()
    assert (columns["args"], columns["queue"], columns["priority"]) == ("[1]", "q", 2)
    assert (columns["expires_at"], columns["time_limit"], columns["token"]) == (now + SECOND * 9, 1.5, "t")


def test_insert_counts_what_is_published(store: Store, ledger: Ledger) -> None:
    """Rows that are sent right after the commit count as sent; timers, later and resolved rows do not."""
    ledger.saga()
    later = replace(STEP, position=1, due_at=ledger.now() + SECOND)
    ended = replace(STEP, position=3, state=StepState.CANCELLED, resolved_seq=1)
    with store.begin() as tx:
        rows = [STEP, later, replace(TIMER, position=2), ended]
        tx.steps.insert("s", rows, {0: "a", 1: "b", 3: "c"}, ledger_at=tx.now())
    found = [ledger.columns(position=position) for position in range(4)]
    assert [row["publishes"] for row in found] == [1, 0, 0, 0]
    assert [row["published_at"] is not None for row in found] == [True, False, False, False]
    assert [row["finished_at"] is not None for row in found] == [False, False, False, True]
    assert [row["resolved_at"] is not None for row in found] == [False, False, False, True]


def test_insert_as_running(store: Store, ledger: Ledger) -> None:
    """The worker that ends a step may insert the next as already claimed by itself."""
    ledger.saga()
    row = replace(STEP, state=StepState.RUNNING, time_limit=2.0)
    with store.begin() as tx:
        tx.steps.insert("s", [row], {0: "t"}, owner="w")
        assert tx.steps.finish("s", 0, "t", state=StepState.SUCCEEDED, result=None, error=None)
    columns = ledger.columns()
    assert (columns["owner"], columns["attempt"], columns["publishes"]) == ("w", 1, 0)
    assert abs(columns["deadline_at"] - columns["started_at"] - SECOND * 2) < SECOND / 10


def test_insert_nothing(store: Store, ledger: Ledger) -> None:
    """No rows, no statement."""
    ledger.saga()
    with ledger.counting() as statements, store.begin() as tx:
        tx.steps.insert("s", [], {})
    assert statements == []


def test_insert_many(store: Store, ledger: Ledger) -> None:
    """A wide fan-out goes in as one batch."""
    ledger.saga()
    rows = [replace(STEP, position=n, path=f"1:{n}") for n in range(500)]
    with store.begin() as tx:
        tx.steps.insert("s", rows, {n: f"t{n}" for n in range(500)})
        assert [row.position for row in tx.steps.load("s")] == list(range(500))
    assert ledger.columns(position=499)["token"] == "t499"


def test_load_reads_one_saga(store: Store, ledger: Ledger) -> None:
    """A saga's rows are its own."""
    ledger.row("a")
    ledger.row("b")
    with store.read() as tx:
        assert len(tx.steps.load("a")) == 1
        assert tx.steps.load("nobody") == []


# --- resolve ---


def test_resolve_numbers_outcomes(store: Store, ledger: Ledger) -> None:
    """Outcomes get their place in the order of feeding; timers are settled by the same call."""
    ledger.ended(StepState.SUCCEEDED)
    ledger.ended(StepState.FAILED, row=replace(STEP, position=1))
    ledger.row(row=replace(TIMER, position=2))
    now = ledger.now()
    resolutions = [
        Resolution(position=1, seq=1),
        Resolution(position=0, seq=2),
        Resolution(position=2, seq=3, state=StepState.SUCCEEDED),
    ]
    with store.begin() as tx:
        assert tx.steps.resolve("s", resolutions, ledger_at=now)
        rows = tx.steps.load("s")
        assert not tx.steps.has_unfed("s")
    assert [(row.resolved_seq, row.resolved_at) for row in rows] == [(2, now), (1, now), (3, now)]
    assert rows[2].state is StepState.SUCCEEDED
    assert ledger.columns(position=2)["finished_at"] is not None


def test_resolve_nothing(store: Store, ledger: Ledger) -> None:
    """Nothing to resolve is resolved without a statement."""
    with ledger.counting() as statements, store.begin() as tx:
        assert tx.steps.resolve("s", [], ledger_at=tx.now())
    assert len(statements) == 1  # now()


def test_resolve_says_if_the_ledger_is_another(store: Store, ledger: Ledger) -> None:
    """A row that is open, fed already, missing or of another saga is not numbered, and the caller is told."""
    ledger.row("open")
    ledger.ended(StepState.SUCCEEDED, "fed", resolved_seq=1)
    ledger.ended(StepState.SUCCEEDED, "other", row=replace(STEP, position=5))
    with store.begin() as tx:
        for saga_id, position in (("open", 0), ("fed", 0), ("fed", 5)):
            outcome = [Resolution(position=position, seq=7)]
            assert not tx.steps.resolve(saga_id, outcome, ledger_at=tx.now()), saga_id
    assert [ledger.columns(name)["resolved_seq"] for name in ("open", "fed")] == [None, 1]


@pytest.mark.parametrize("state", sorted(frozenset(StepState) - {StepState.SCHEDULED}))
def test_resolve_settles_scheduled_rows_only(store: Store, ledger: Ledger, state: StepState) -> None:
    """A row that is not scheduled keeps its state."""
    ledger.row(state=state.value, owner="w")
    with store.begin() as tx:
        outcome = [Resolution(position=0, seq=1, state=StepState.CANCELLED)]
        assert not tx.steps.resolve("s", outcome, ledger_at=tx.now())
    assert ledger.columns()["state"] == state


# --- withdraw, revoke, abandon ---


def test_withdraw_takes_what_is_unclaimed(store: Store, ledger: Ledger) -> None:
    """Scheduled rows are withdrawn and numbered by position; a claimed one, and one not named, stay."""
    for position in range(5):
        ledger.row(row=replace(STEP, position=position))
    ledger.put_row("s", 1, state="running", owner="w")
    ledger.put_row("s", 3, tainted=True)
    ledger.row("other", row=STEP)
    now = ledger.now()
    with store.begin() as tx:
        landed = tx.steps.withdraw("s", [3, 2, 1, 0], ledger_at=now, first_seq=5)
        rows = tx.steps.load("s")
    assert list(landed.items()) == [
        (0, StepState.CANCELLED),
        (2, StepState.CANCELLED),
        (3, StepState.UNKNOWN),
    ]
    assert [row.resolved_seq for row in rows] == [5, None, 6, 7, None]
    assert [row.state for row in rows] == ["cancelled", "running", "cancelled", "unknown", "scheduled"]
    assert rows[0].resolved_at == now
    assert ledger.columns()["finished_at"] is not None
    assert ledger.columns("other")["state"] == "scheduled"


@pytest.mark.parametrize("state", sorted(RESOLVED_STEP_STATES | {StepState.RUNNING}))
def test_withdraw_and_revoke_leave_the_rest(store: Store, ledger: Ledger, state: StepState) -> None:
    """What runs, or has ended, cannot be withdrawn."""
    ledger.row(state=state.value, owner="w")
    with store.begin() as tx:
        assert tx.steps.withdraw("s", [0], ledger_at=tx.now(), first_seq=1) == {}
        assert tx.steps.withdraw("s", [], ledger_at=tx.now(), first_seq=1) == {}
        assert not tx.steps.revoke("s", 0, token="t0", error=ERROR)
    assert (ledger.columns()["state"], ledger.columns()["error"]) == (state, None)


@pytest.mark.parametrize(("tainted", "state"), [(False, StepState.CANCELLED), (True, StepState.UNKNOWN)])
def test_revoke_leaves_the_feeding(store: Store, ledger: Ledger, tainted: bool, state: StepState) -> None:
    """A revoked row ends, unknown if an attempt of it may have taken effect, and waits to be fed; others stay."""
    ledger.row(tainted=tainted)
    ledger.row(row=replace(STEP, position=1), token="t0")
    ledger.row("other")
    with store.begin() as tx:
        assert tx.steps.revoke("s", 0, token="t0", error=ERROR)
        row, other = tx.steps.load("s")
        assert tx.steps.has_unfed("s")
    assert (row.state, row.error, row.resolved_seq) == (state, ERROR, None)
    assert other.state is StepState.SCHEDULED
    assert ledger.columns("other")["state"] == "scheduled"


def test_revoke_needs_the_token(store: Store, ledger: Ledger) -> None:
    """A row that was claimed and given back since it was looked at is not revoked."""
    ledger.row()
    with store.begin() as tx:
        assert not tx.steps.revoke("s", 0, token="old", error=ERROR)
    assert ledger.columns()["state"] == "scheduled"


@pytest.mark.parametrize("row", [COMPENSATION, PROBE], ids=["compensation", "probe"])
@pytest.mark.parametrize(("tainted", "state"), [(False, StepState.SKIPPED), (True, StepState.UNKNOWN)])
def test_revoked_undoing_can_be_replayed(
    store: Store, ledger: Ledger, row: NewRow, tainted: bool, state: StepState
) -> None:
    """A compensation or probe that was revoked is skipped, so that an operator can have it run after all."""
    ledger.ended(StepState.SUCCEEDED)
    ledger.row(row=row, tainted=tainted)
    with store.begin() as tx:
        assert tx.steps.revoke("s", row.position, token=f"t{row.position}", error=ERROR)
        found = tx.steps.load("s")[1]
        assert (found.state, found.error) == (state, ERROR)
        tx.steps.mark_for_replay("s", [row.position])
        assert tx.steps.load("s")[1].replay
        assert tx.steps.reopen("s", [row.position], tokens={row.position: "new"}) == [row.position]
        assert tx.steps.claim("s", row.position, "new", new_token="newer", owner="w") is not None


def test_abandon_marks_rows(store: Store, ledger: Ledger) -> None:
    """Rows that the body stopped waiting for are marked, and only those."""
    ledger.running()
    ledger.running(row=replace(STEP, position=1))
    ledger.running("other")
    with store.begin() as tx:
        tx.steps.abandon("s", [0])
        tx.steps.abandon("s", [])
        assert [row.abandoned for row in tx.steps.load("s")] == [True, False]
        assert [row.abandoned for row in tx.steps.load("other")] == [False]


# --- reopen ---


@pytest.mark.parametrize("state", list(StepState))
@pytest.mark.parametrize("row", [COMPENSATION, PROBE], ids=["compensation", "probe"])
def test_reopen_what_failed(store: Store, ledger: Ledger, row: NewRow, state: StepState) -> None:
    """A compensation or probe that failed, is unknown or was skipped starts afresh; any other is left alone."""
    open_ = state in (StepState.SCHEDULED, StepState.RUNNING)
    ledger.ended(StepState.SUCCEEDED)
    values = {"state": state.value, "owner": "w", "attempt": 3, "retries": 2, "lost": 1, "result": "1"}
    values |= {"tainted": True, "replay": True}
    values |= {} if open_ else {"resolved_seq": 4, "resolved_at": ledger.now(), "finished_at": ledger.now()}
    ledger.row(row=row, **values)
    with store.begin() as tx:
        landed = tx.steps.reopen("s", [0, row.position], tokens={0: "x", row.position: "new"})
        loaded = tx.steps.load("s")
    assert loaded[0].state is StepState.SUCCEEDED
    if state not in (StepState.FAILED, StepState.UNKNOWN, StepState.SKIPPED):
        assert (landed, loaded[1].state) == ([], state)
        return
    assert landed == [row.position]
    columns = ledger.columns(position=row.position)
    assert (columns["state"], columns["token"], columns["owner"]) == ("scheduled", "new", None)
    assert (columns["retries"], columns["lost"], columns["attempt"]) == (0, 0, 3)
    assert (columns["tainted"], columns["replay"]) == (False, False)
    assert (columns["result"], columns["error"], columns["finished_at"]) == (None, None, None)
    assert (columns["resolved_seq"], columns["resolved_at"], columns["publishes"]) == (None, None, 0)
    with store.begin() as tx:
        claimed = tx.steps.claim("s", row.position, "new", new_token="newer", owner="w")
    assert claimed is not None
    assert (claimed.task, claimed.attempt) == (row.task, 4)


def test_reopen_with_another_task(store: Store, ledger: Ledger) -> None:
    """A replay may call what the code says now rather than what the row says."""
    ledger.ended(StepState.SUCCEEDED)
    ledger.ended(StepState.FAILED, row=COMPENSATION)
    ledger.ended(StepState.FAILED, row=PROBE)
    undo = Undo(compensation="shop.refund2", name="refund2", probe="shop.probe2", queue="q", priority=5)
    with store.begin() as tx:
        assert tx.steps.reopen("s", [1, 2], tokens={1: "a", 2: "b"}, undo={1: undo, 2: undo}) == [1, 2]
    compensation, probe = ledger.columns(position=1), ledger.columns(position=2)
    assert (compensation["task"], compensation["name"]) == ("shop.refund2", "refund2")
    assert (probe["task"], probe["name"]) == ("shop.probe2", "probe charge")
    assert (compensation["queue"], probe["queue"], compensation["priority"]) == ("q", "q", 5)


def test_reopen_touches_one_saga(store: Store, ledger: Ledger) -> None:
    """A row at the same position of another saga stays as it is."""
    for name in ("s", "other"):
        ledger.ended(StepState.FAILED, name, row=COMPENSATION)
    with store.begin() as tx:
        tx.steps.reopen("s", [1], tokens={1: "a"})
    assert ledger.columns("other", 1)["state"] == "failed"


@pytest.mark.parametrize("state", list(StepState))
def test_mark_for_replay(store: Store, ledger: Ledger, state: StepState) -> None:
    """Compensations and probes that failed, are unknown or were skipped can be marked; steps and others cannot."""
    for row in (STEP, COMPENSATION, PROBE):
        ledger.row(row=row, state=state.value, owner="w")
    ledger.row("other", row=COMPENSATION, state="failed")
    with store.begin() as tx:
        tx.steps.mark_for_replay("s", [0, 1, 2])
        tx.steps.mark_for_replay("s", [])
        marked = [row.replay for row in tx.steps.load("s")]
        assert [row.replay for row in tx.steps.load("other")] == [False]
    failed = state in (StepState.FAILED, StepState.UNKNOWN, StepState.SKIPPED)
    assert marked == [False, failed, failed]


def test_set_undo(store: Store, ledger: Ledger) -> None:
    """A step's undo is replaced by what the code says now; other rows, and other sagas, keep theirs."""
    new = Undo(compensation="shop.refund2", name="refund2")
    ledger.ended(StepState.SUCCEEDED)
    ledger.ended(StepState.FAILED, row=COMPENSATION)
    ledger.ended(StepState.SUCCEEDED, row=replace(STEP, position=2))
    ledger.ended(StepState.SUCCEEDED, "other")
    with store.begin() as tx:
        tx.steps.set_undo("s", {0: new, 1: new})
        tx.steps.set_undo("s", {})
        assert [row.undo for row in tx.steps.load("s")] == [new, None, UNDO]
        assert [row.undo for row in tx.steps.load("other")] == [UNDO]


# --- unfed ---


def test_has_unfed(store: Store, ledger: Ledger) -> None:
    """Only an outcome without a number waits to be fed: not an open row, a fed one, or another saga's."""
    ledger.row()
    ledger.ended(StepState.SUCCEEDED, row=replace(STEP, position=1), resolved_seq=1)
    ledger.ended(StepState.SUCCEEDED, "other")
    with store.read() as tx:
        assert not tx.steps.has_unfed("s")
        assert tx.steps.has_unfed("other")


# --- what the schema itself refuses ---


@pytest.mark.parametrize(
    ("row", "values"),
    [
        (STEP, {"kind": "other"}),
        (STEP, {"state": "other"}),
        (STEP, {"attempt": -1}),
        (STEP, {"state": "running", "owner": None}),
        (STEP, {"state": "running", "owner": "w", "token": None}),
        (STEP, {"token": None}),
        (STEP, {"task": None}),
        (STEP, {"publishes": 0}),
        (STEP, {"resolved_seq": 1}),
        (replace(STEP, position=1), {"path": "1:0"}),
        (replace(STEP, position=1), {"state": "failed", "resolved_seq": 1}),
        (replace(COMPENSATION, position=3), {"compensates": 9}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_constraints(store: Store, ledger: Ledger, row: NewRow, values: dict[str, object]) -> None:
    """A bug, or a hand in the database, cannot write a row that the code would misread."""
    ledger.ended(StepState.SUCCEEDED, row=replace(STEP, position=7, path="1:0"), resolved_seq=1)
    ledger.row(row=replace(COMPENSATION, position=8, compensates=9))
    ledger.row(row=row)
    with pytest.raises(IntegrityError):
        ledger.put_row("s", row.position, **values)


def test_saga_constraints(store: Store, ledger: Ledger) -> None:
    """A saga has a known state, an end if it has ended; rows have a saga, and a position of their own."""
    ledger.row("a")
    for values in ({"state": "other"}, {"state": "completed", "finished_at": None}):
        with pytest.raises(IntegrityError):
            ledger.put_saga("a", **values)
    with pytest.raises(IntegrityError), store.begin() as tx:
        tx.steps.insert("nobody", [STEP], {0: "t"})
    with pytest.raises(IntegrityError), store.begin() as tx:
        tx.steps.insert("a", [STEP], {0: "t"})
