"""``watch``: a line for each change outside a terminal, a live picture on one."""

import json
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from sagakit.cli.invocation import Invocation
from sagakit.cli.watching import follow
from sagakit.errors import ErrorInfo
from sagakit.history import SagaRecord
from sagakit.states import SagaState, StepState
from tests.unit.cli.conftest import FakeKit, Run
from tests.unit.cli.ledgers import RESET, at, row, saga, undo

DECLINED = ErrorInfo(type="shop.Declined", message="no funds")


def life() -> list[SagaRecord]:
    """A saga from its start to its end, as it is seen by somebody who looks now and then."""
    charge = row(0, "charge", StepState.RUNNING, times=(0, 1, None))
    again = replace(charge, state=StepState.SCHEDULED, attempt=1, error=RESET)
    charged = replace(charge, state=StepState.SUCCEEDED, attempt=2, finished_at=at(5))
    ship = row(1, "ship", StepState.FAILED, times=(5, 6, 7), error=DECLINED)
    refund = undo(2, "refund", 0, times=(7, 8, 9))
    running = saga(SagaState.RUNNING, charge)
    ended = saga(
        SagaState.COMPENSATED, charged, ship, refund, finished_at=at(9.5), failed_step="ship", error=DECLINED
    )
    return [
        running,
        running,  # nothing new: no line
        saga(SagaState.RUNNING, again),
        saga(SagaState.COMPENSATING, charged, ship),
        ended,
    ]


def test_a_line_for_each_change(run: Run, kit: FakeKit) -> None:
    """In a pipe; the last line is how it ended, and the exit code says that it did not complete."""
    kit.add(*life())
    result = run("watch", "order-42")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].endswith("  order-42  running")
    assert lines[1] == "12:00:01.0  order-42  charge running"
    assert lines[2:] == [
        "12:00:01.0  order-42  charge scheduled, to be tried again: ConnectionError: reset by peer",
        lines[3],
        "12:00:05.0  order-42  charge succeeded, attempt 2",
        "12:00:07.0  order-42  ship failed: Declined: no funds",
        "12:00:09.0  order-42  undo refund succeeded",
        "12:00:09.5  order-42  compensated after 9.50s at ship: Declined: no funds",
    ]
    assert lines[3].endswith("  order-42  compensating")


def test_json_lines(run: Run, kit: FakeKit) -> None:
    """One object a line."""
    kit.add(*life())
    changes = [json.loads(line) for line in run("watch", "order-42", "--json").stdout.splitlines()]
    assert changes[1] == {
        "saga": "order-42",
        "position": 0,
        "kind": "step",
        "step": "charge",
        "state": "running",
        "attempt": 1,
        "error": None,
    }
    assert changes[-1] == {
        "saga": "order-42",
        "state": "compensated",
        "failed_step": "ship",
        "error": "Declined: no funds",
        "trouble": None,
    }


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (SagaState.COMPLETED, 0),
        (SagaState.COMPENSATED, 1),
        (SagaState.COMPENSATION_FAILED, 1),
        (SagaState.STUCK, 1),
    ],
)
def test_it_ends_when_the_saga_does_not_move_by_itself(
    run: Run, kit: FakeKit, state: SagaState, code: int
) -> None:
    """Ended, or waiting for an operator."""
    kit.add(saga(state))
    assert run("watch", "order-42").exit_code == code


def test_it_gives_up_in_time(run: Run, kit: FakeKit) -> None:
    """The saga runs on; only the watching stops."""
    kit.add(saga(SagaState.RUNNING))
    result = run("watch", "order-42", "--timeout", "0")
    assert result.exit_code == 1
    assert result.stderr == "Error: order-42 is still running after 0 s; it runs on\n"


def test_a_live_picture_on_a_terminal(kit: FakeKit) -> None:
    """The tree and the timeline, and at the end the whole of both."""
    out = StringIO()
    file = SimpleNamespace(write=out.write, flush=lambda: None, isatty=lambda: True, encoding="utf-8")
    terminal = Console(file=file, width=100, height=10, force_terminal=True, color_system=None)  # type: ignore[arg-type]
    invocation = Invocation(kit=kit)  # type: ignore[arg-type]
    invocation.console = terminal
    record = follow(invocation, kit.add(*life()), timeout=None, as_json=False)  # type: ignore[arg-type]
    assert record.state is SagaState.COMPENSATED
    final = out.getvalue().rpartition("order-42  checkout v1  ↶ compensated")[2]
    assert "█ step" in final
    assert "↶ refund" in final
