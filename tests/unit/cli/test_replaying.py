"""``compensate``: of one saga and of a set."""

import json

import pytest

from sagakit.states import SagaState
from tests.unit.cli.conftest import FakeKit, Run
from tests.unit.cli.ledgers import NAME, Plan, saga, summary

FAILED = SagaState.COMPENSATION_FAILED


@pytest.fixture
def three(kit: FakeKit) -> FakeKit:
    """Two sagas that were not undone, and one that was."""
    for number, state in ((1, FAILED), (2, SagaState.COMPENSATED), (3, FAILED)):
        kit.summaries.append(summary(number, state))
        kit.add(saga(state, id=f"order-{number}"))
    return kit


def test_one_saga(run: Run, three: FakeKit) -> None:
    """What is undone and what is left is printed; the audit is told who and why."""
    result = run("compensate", "order-1", "--failed-only", "--reason", "the PSP is back")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "order-1  compensating",
        "  undo   charge_payment     by refund_payment  its compensation failed",
        "  leave  reserve_inventory                     already undone",
    ]
    assert result.stderr == "undoing 1 step; follow it with: sagakit --app shop.app watch order-1\n"
    assert three.told("compensate") == [
        {
            "id": "order-1",
            "failed_only": True,
            "step": None,
            "completed": False,
            "dry_run": False,
            "reason": "the PSP is back",
            "actor": "ann",
        }
    ]


def test_a_dry_run_changes_nothing_and_needs_no_reason(run: Run, three: FakeKit) -> None:
    """Look first."""
    result = run("compensate", "order-1", "--step", "charge_payment", "--completed", "--dry-run")
    assert result.exit_code == 0
    assert "undo   charge_payment" in result.stdout
    assert result.stderr == "dry run: nothing was changed\n"
    (told,) = three.told("compensate")
    assert (told["dry_run"], told["step"], told["completed"]) == (True, "charge_payment", True)


def test_nothing_to_undo(run: Run, three: FakeKit) -> None:
    """Said in so many words."""
    three.handles["order-1"].plan = Plan("order-1", SagaState.COMPENSATED)
    assert "nothing to undo" in run("compensate", "order-1", "--reason", "r").stdout


def test_a_set_shows_its_plan_and_wants_a_yes(run: Run, three: FakeKit) -> None:
    """By default a set is what could not be undone; without a terminal nobody can say yes, so --yes must."""
    three.definitions = {}
    result = run("compensate", "--saga", NAME, "--failed-only", "--reason", "r")
    assert result.exit_code == 2
    assert result.stdout.count("undo   charge_payment") == 2
    assert result.stderr.splitlines() == [
        "2 sagas, 2 steps to undo",
        "Error: undoing 2 sagas needs a yes: add --yes (or look first with --dry-run)",
    ]
    assert all(call["dry_run"] for call in three.told("compensate"))
    assert three.told("find")[0]["states"] == [FAILED]


def test_a_set_with_yes(run: Run, three: FakeKit) -> None:
    """Planned, then done, saga by saga."""
    result = run("compensate", "--status", "compensation_failed", "--reason", "r", "--yes")
    assert result.exit_code == 0
    done = [call["id"] for call in three.told("compensate") if not call["dry_run"]]
    assert done == ["order-1", "order-3"]
    assert result.stderr.splitlines()[-1] == (
        "undoing 2 sagas; follow them with: sagakit --app shop.app list --status compensating,compensation_failed"
    )


def test_one_refusal_does_not_stop_the_others(run: Run, three: FakeKit) -> None:
    """The exit code tells that not all was done."""
    three.handles["order-1"].refusal = "order-1 is being undone already"
    result = run("compensate", "--newer-than", "1d", "--reason", "r", "--yes")
    assert result.exit_code == 1
    assert "order-1 refused: order-1 is being undone already" in result.stderr
    assert [call["id"] for call in three.told("compensate") if not call["dry_run"]] == ["order-3"]


def test_a_set_as_json(run: Run, three: FakeKit) -> None:
    """One list, refusals included; a dry run of a set needs no yes."""
    three.handles["order-3"].refusal = "no"
    result = run("compensate", "--status", "compensation_failed", "--dry-run", "--json")
    plans = json.loads(result.stdout)
    assert [(plan["id"], "refused" in plan) for plan in plans] == [("order-1", False), ("order-3", True)]
    assert plans[0]["undo"] == [
        {
            "position": 1,
            "step": "charge_payment",
            "compensation": "refund_payment",
            "reason": "its compensation failed",
        }
    ]
    assert run("compensate", "--status", "stuck", "--reason", "r", "--json").stdout == "[]\n"


def test_a_set_larger_than_the_limit_says_so(run: Run, three: FakeKit) -> None:
    """Half a job must not look like a whole one."""
    result = run("compensate", "--newer-than", "1d", "--limit", "1", "--dry-run")
    assert result.stderr.startswith(
        "more than 1 saga fit: taking the newest; run it again, or raise --limit\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("order-1", 'say why, for the audit: --reason "…" (or look first with --dry-run)'),
        (
            "--reason r",
            "which sagas? Give an ID, or a filter such as --saga NAME; 'sagakit compensate --help' shows them",
        ),
        ("order-1 --saga x --reason r", "give either an ID or filters, not both"),
    ],
)
def test_what_is_missing_or_too_much(run: Run, three: FakeKit, words: str, told: str) -> None:
    """Exit code 2, and nothing is touched."""
    result = run("compensate", *words.split())
    assert result.exit_code == 2
    assert result.stderr == f"Error: {told}\n"
    assert three.told("compensate") == []
