"""The tree of one saga: state, attempts, times, errors and the compensation ledger."""

from collections.abc import Callable

import pytest

from sagakit.cli.draw import tree
from sagakit.errors import ErrorInfo
from sagakit.states import Kind, SagaState, StepState
from tests.unit.cli.ledgers import NO_TRUCKS, at, attempt, failed_saga, operator, row, saga, undo

Drawn = Callable[..., str]


def test_a_saga_that_could_not_be_undone(drawn: Drawn) -> None:
    """Steps, each failed attempt with its error, compensations with what they undo, the account, the operators."""
    record = failed_saga(
        audit=(operator("compensate", "the PSP is back", 100), operator("resume", None, 200))
    )
    assert drawn(tree(record)) == EVERYTHING


def test_payloads_and_tracebacks_only_when_asked_for(drawn: Drawn) -> None:
    """Inputs and results may hold personal data: they are shown on purpose only."""
    record = failed_saga()
    plain, full = drawn(tree(record)), drawn(tree(record, payloads=True, tracebacks=True))
    assert '{"id": 42}' not in plain
    assert "Traceback" not in plain
    assert 'input   {"id": 42}' in full
    assert 'args    {"order": 42}' in full
    assert 'result  {"number": 7}' in full
    assert 'File "psp.py", line 7, in charge' in full


def test_an_unfinished_saga(drawn: Drawn) -> None:
    """Where a step runs, what it waits for, when it is due."""
    record = saga(
        SagaState.RUNNING,
        row(0, "nap", StepState.SCHEDULED, kind=Kind.TIMER, times=(0, None, None), due_at=at(3600)),
        row(1, "charge", StepState.RUNNING, times=(0, 1, None), attempt=2, owner="host:77:ab", lost=1),
        row(2, "ship", StepState.SCHEDULED, times=(0, None, None), queue="eu"),
        row(3, "mail", StepState.SCHEDULED, times=(0, 2, None), attempt=1, due_at=at(30)),
        attempts=(attempt(1, 1, 0.1, 0.9, "lost"), attempt(3, 1, 2, 3)),
        deadline_at=at(86_400),
    )
    assert drawn(tree(record, now=at(10)), width=100) == UNFINISHED


@pytest.mark.parametrize("state", SagaState)
def test_every_state_of_a_saga_can_be_drawn(drawn: Drawn, state: SagaState) -> None:
    """The first line names the saga and its state."""
    first = drawn(tree(saga(state), now=at(61))).splitlines()[0]
    assert first.startswith("order-42  checkout v1  ")
    assert first.endswith(f"{state.value}  1m01s")


@pytest.mark.parametrize("state", StepState)
@pytest.mark.parametrize("kind", Kind)
def test_every_state_of_a_row_can_be_drawn(drawn: Drawn, state: StepState, kind: Kind) -> None:
    """Each row names its state."""
    record = saga(
        SagaState.STUCK,
        row(0, "a"),
        row(1, "b", state, kind=kind, times=(0, 1, 2), compensates=0),
        finished_at=at(3),
    )
    line = next(line for line in drawn(tree(record)).splitlines() if " b " in line)
    assert state.value in line


def test_a_stuck_saga_says_why(drawn: Drawn) -> None:
    """What the code did and what the ledger expected, ahead of everything else."""
    trouble = ErrorInfo(
        type="sagakit.errors.NonDeterminismError", message="expected step charge, found step ship"
    )
    lines = drawn(tree(saga(SagaState.STUCK, trouble=trouble))).splitlines()
    assert lines[2] == "stuck: NonDeterminismError: expected step charge, found step ship"


def test_the_account_tells_undone_from_not_undone_from_unknown(drawn: Drawn) -> None:
    """Nobody should have to add it up from the rows."""
    record = saga(
        SagaState.COMPENSATION_FAILED,
        row(0, "reserve", times=(0, 0, 1), compensatable=True),
        row(1, "charge", times=(1, 1, 2), compensatable=True),
        row(2, "ship", StepState.UNKNOWN, times=(2, 2, 3), compensatable=True),
        undo(3, "refund", 1, StepState.FAILED, times=(3, 3, 4)),
        undo(4, "release", 0, times=(4, 4, 5)),
        error=NO_TRUCKS,
        finished_at=at(5),
    )
    account = drawn(tree(record)).partition("account\n")[2].splitlines()
    assert [line[4:] for line in account] == [
        "├── undone      reserve",
        "├── NOT undone  charge",
        "└── unknown     ship",
    ]


def test_a_completed_saga_accounts_for_what_its_body_abandoned(drawn: Drawn) -> None:
    """A step that a timeout gave up on and that succeeded late is undone, though the saga completed."""
    record = saga(
        SagaState.COMPLETED,
        row(0, "quote", times=(0, 0, 3), compensatable=True, abandoned=True),
        undo(1, "withdraw", 0, times=(3, 3, 4)),
        finished_at=at(4),
    )
    text = drawn(tree(record))
    assert "abandoned by the body" in text
    assert "undone      quote" in text
    assert "account" not in drawn(
        tree(saga(SagaState.COMPLETED, row(0, "quote", times=(0, 0, 3)), finished_at=at(4)))
    )


def test_text_from_elsewhere_commands_nothing(drawn: Drawn) -> None:
    """Markup is shown as it is; what could move a terminal's cursor is shown as an escape."""
    error = ErrorInfo(type="x.Evil", message="[bold]hi[/bold] \x1b]0;title\x07 \x9b2J\nsecond line")
    record = saga(
        SagaState.COMPENSATED, row(0, "pay", StepState.FAILED, times=(0, 0, 1), error=error), error=error
    )
    text = drawn(tree(record, now=at(2)))
    assert r"Evil: [bold]hi[/bold] \x1b]0;title\x07 \x9b2J" in text
    assert "second line" not in text


EVERYTHING = """\
order-42  checkout v1  ✗ compensation_failed  4.95s
2026-11-20 12:00:00 +00:00 · priority 3 · region=eu customer=7
failed at create_shipment: NoTrucks: depot='Oslo'
├── steps
│   ├── ✓ reserve_inventory  succeeded   0.40s   +0.10s
│   ├── ✓ charge_payment     succeeded   0.50s   +2.20s  x3
│   │     ↻ attempt 1 failed after 0.35s: ConnectionError: reset by peer
│   │     ↻ attempt 2 failed after 0.20s: ConnectionError: reset by peer
│   ├── ✗ create_shipment    failed      0.65s   +2.75s
│   │     NoTrucks: depot='Oslo'
│   └── ✓ create_invoice     succeeded   0.30s   +2.80s
├── compensations
│   ├── ✓ void_invoice       succeeded   0.35s   +3.45s  of create_invoice
│   ├── ✗ refund_payment     failed      0.20s   +4.20s  of charge_payment  x2
│   │     ConnectionError: reset by peer
│   │     ↻ attempt 1 failed after 0.15s: ConnectionError: reset by peer
│   └── ✓ release_inventory  succeeded   0.45s   +4.45s  of reserve_inventory
├── account
│   ├── undone      create_invoice, reserve_inventory
│   └── NOT undone  charge_payment
└── operators
    ├── 2026-11-20 12:01:40 +00:00  compensate by ann: the PSP is back
    └── 2026-11-20 12:03:20 +00:00  resume by ann"""
UNFINISHED = """\
order-42  checkout v1  ► running  10.0s
2026-11-20 12:00:00 +00:00 · deadline 2026-11-21 12:00:00 +00:00
└── steps
    ├── ○ nap     scheduled   10.0s     +0ms  due in 59m50s
    ├── ► charge  running     9.00s   +1.00s  x2  1 lost with a worker  on host:77:ab
    │     ↻ attempt 1 was lost with its worker after 0.80s: ConnectionError: reset by peer
    ├── ○ ship    scheduled             +0ms  queue eu
    └── ○ mail    scheduled           +2.00s  due in 20.0s
          ↻ attempt 1 failed after 1.00s: ConnectionError: reset by peer"""
