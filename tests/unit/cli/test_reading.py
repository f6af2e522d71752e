"""``list`` and ``show``: what they ask for, print and say when there is nothing."""

import json
from datetime import timedelta

import pytest

from sagakit.states import SagaState
from tests.unit.cli.conftest import FakeDefinition, FakeKit, Run
from tests.unit.cli.ledgers import NAME, failed_saga, saga, summary


def test_list_is_a_table(run: Run, kit: FakeKit) -> None:
    """Newest first, one line each; a pipe gets whole lines."""
    kit.summaries = [summary(1, SagaState.RUNNING), summary(2, SagaState.COMPLETED)]
    result = run("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["id", "saga", "state", "age"]
    assert lines[1].split()[:4] == ["order-1", "checkout", "►", "running"]
    assert lines[2].split()[:4] == ["order-2", "checkout", "✓", "completed"]
    assert "\x1b" not in result.output


def test_list_passes_its_filters_on(run: Run, kit: FakeKit) -> None:
    """States repeated or parted by commas, a short name, ages, tags, a limit."""
    kit.definitions[NAME] = FakeDefinition(kit.calls, saga(SagaState.RUNNING))
    words = "list --status running,stuck --status compensation-failed --saga checkout --older-than 1h30m"
    assert run(*words.split(), "--newer-than", "90", "--tag", "region=eu", "--limit", "7").exit_code == 0
    assert kit.told("find") == [
        {
            "states": [SagaState.RUNNING, SagaState.STUCK, SagaState.COMPENSATION_FAILED],
            "name": NAME,
            "older_than": timedelta(minutes=90),
            "newer_than": timedelta(seconds=90),
            "tags": {"region": "eu"},
            "limit": 8,
        }
    ]


def test_a_tag_is_found_as_text_and_as_number(run: Run, kit: FakeKit) -> None:
    """The command line cannot tell 7 from "7", so it finds both, newest first and each once."""
    kit.summaries = [
        summary(1, SagaState.RUNNING, tags={"customer": "7"}),
        summary(2, SagaState.RUNNING, tags={"customer": 7}),
        summary(3, SagaState.RUNNING, tags={"customer": 8}),
    ]
    found = json.loads(run("list", "--tag", "customer=7", "--json").stdout)
    assert [entry["id"] for entry in found] == ["order-1", "order-2"]


def test_list_says_when_there_is_more(run: Run, kit: FakeKit) -> None:
    """A cut list must not look like a whole one."""
    kit.summaries = [summary(number, SagaState.RUNNING) for number in range(5)]
    result = run("list", "--limit", "3")
    assert len(result.stdout.splitlines()) == 4
    assert result.stderr == "… and more: showing the newest 3 sagas; --limit shows more\n"


def test_an_empty_list(run: Run) -> None:
    """The remark is for people: standard output stays empty, as JSON is the empty list."""
    assert run("list").stderr == "no saga yet\n"
    assert run("list", "--status", "stuck").stderr == "no saga fits\n"
    assert run("list").stdout == ""
    assert run("list", "--json").stdout == "[]\n"


def test_an_unknown_name_is_an_error(run: Run, kit: FakeKit) -> None:
    """An empty list for a misspelt name would be a lie."""
    kit.definitions[NAME] = FakeDefinition(kit.calls, saga(SagaState.RUNNING))
    result = run("list", "--saga", "chekout")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no saga is named 'chekout'; ")


def test_a_name_that_only_the_ledger_knows_is_found(run: Run, kit: FakeKit) -> None:
    """Code that was deleted leaves its sagas behind."""
    kit.summaries = [summary(1, SagaState.COMPLETED, name="old.name")]
    assert "order-1" in run("list", "--saga", "old.name").stdout


def test_show_is_a_tree_with_the_next_command(run: Run, kit: FakeKit) -> None:
    """What could not be undone is followed by how to replay it, as it can be typed."""
    kit.add(failed_saga())
    result = run("show", "order-42")
    assert result.exit_code == 0
    assert result.stdout.startswith("order-42  checkout v1  ✗ compensation_failed")
    assert "┬" not in result.stdout
    assert result.stderr == (
        "once the cause is mended: sagakit --app shop.app compensate order-42 --failed-only --reason '…'\n"
    )


def test_show_with_everything(run: Run, kit: FakeKit) -> None:
    """The timeline, payloads and tracebacks, each when asked for."""
    kit.add(failed_saga())
    text = run("show", "order-42", "--timeline", "--payloads", "--traceback").stdout
    assert "┬" in text
    assert 'input   {"id": 42}' in text
    assert 'File "psp.py"' in text


def test_show_as_json_is_the_whole_record(run: Run, kit: FakeKit) -> None:
    """Programs get everything, the account included."""
    kit.add(failed_saga())
    record = json.loads(run("show", "order-42", "--json").stdout)
    assert record["state"] == "compensation_failed"
    assert record["compensated"] == ["create_invoice", "reserve_inventory"]
    assert record["not_compensated"] == ["charge_payment"]
    assert [step["name"] for step in record["steps"]][:2] == ["reserve_inventory", "charge_payment"]


def test_a_stuck_saga_is_followed_by_how_to_resume_it(run: Run, kit: FakeKit) -> None:
    """Stuck is not lost."""
    kit.add(saga(SagaState.STUCK))
    assert (
        run("show", "order-42").stderr == "once the code fits again: sagakit --app shop.app resume order-42\n"
    )


@pytest.mark.parametrize("command", ["show", "watch", "resume"])
def test_an_unknown_id(run: Run, command: str) -> None:
    """One line, exit code 3."""
    result = run(command, "order-77")
    assert result.exit_code == 3
    assert result.stderr == "Error: no saga has the id 'order-77'\n"
    assert result.stdout == ""
