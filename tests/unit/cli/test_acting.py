"""``start``, ``cancel`` and ``resume``."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sagakit.codec import Codec, build_adapter
from sagakit.states import SagaState
from tests.unit.cli.conftest import FakeDefinition, FakeKit, Run
from tests.unit.cli.ledgers import NAME, saga


class Order(BaseModel):
    id: int
    items: list[str] = []


@dataclass
class Shop:
    """A kit with one saga."""

    kit: FakeKit
    definition: FakeDefinition

    def started(self) -> dict[str, Any]:
        (arguments,) = self.kit.told("start")
        return arguments


@pytest.fixture
def shop(kit: FakeKit) -> Shop:
    codec: Codec[Any] = Codec(build_adapter(Order), "the input of checkout")
    definition = FakeDefinition(kit.calls, saga(SagaState.COMPLETED), input_codec=codec)
    kit.definitions[NAME] = definition
    return Shop(kit, definition)


def test_start_prints_the_id(run: Run, shop: Shop) -> None:
    """Standard output is the id alone, for $(…); the rest goes to stderr."""
    result = run("start", "checkout", "--input", '{"id": 42}')
    assert result.exit_code == 0
    assert result.stdout == "new-id\n"
    assert result.stderr == "completed; follow it with: sagakit --app shop.app watch new-id\n"
    assert shop.started() == {
        "input": Order(id=42),
        "saga_id": None,
        "tags": None,
        "priority": None,
        "deadline": None,
        "if_exists": "return",
    }


def test_start_with_everything(run: Run, shop: Shop, tmp_path: Path) -> None:
    """Every option reaches the saga, and the input may come from a file."""
    file = tmp_path / "order.json"
    file.write_text('{"id": 1, "items": ["ä"]}', "utf-8")
    words = (
        "--id order-1 --tag region=eu --tag zip=01234 --priority 7 --deadline 48h --if-exists raise --json"
    )
    result = run("start", NAME, "--input", f"@{file}", *words.split())
    assert json.loads(result.stdout) == {"id": "order-1", "saga": NAME, "state": "completed"}
    assert shop.started() == {
        "input": Order(id=1, items=["ä"]),
        "saga_id": "order-1",
        "tags": {"region": "eu", "zip": "01234"},
        "priority": 7,
        "deadline": timedelta(hours=48),
        "if_exists": "raise",
    }


def test_start_reads_standard_input(run: Run, shop: Shop) -> None:
    """For pipes."""
    assert run("start", "checkout", "--input", "-", input='{"id": 5}').exit_code == 0
    assert shop.started()["input"] == Order(id=5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "{id: 1}",
            "Error: Invalid value for '--input': the text given is not JSON: Expecting property name",
        ),
        ("NaN", "Error: Invalid value for '--input': the text given is not JSON: NaN is not JSON"),
        (
            "@/nowhere/order.json",
            "Error: Invalid value for '--input': cannot read /nowhere/order.json: No such file",
        ),
        ("-", "Error: Invalid value for '--input': standard input is not JSON: Expecting value"),
        ("[" * 100_000, "Error: Invalid value for '--input': the text given is "),
        ('{"id": "x"}', "Error: the input does not fit checkout: id: Input should be a valid integer"),
        ('{"items": []}', "Error: the input does not fit checkout: id: Field required (shop/sagas.py:7)"),
        ("42", "Error: the input does not fit checkout: "),
    ],
)
def test_input_that_does_not_do(run: Run, shop: Shop, given: str, told: str) -> None:
    """One line that says what was wrong, and nothing is started."""
    result = run("start", "checkout", "--input", given)
    assert result.exit_code == 2
    assert result.stderr.startswith(told), result.stderr
    assert result.stderr.count("\n") == 1
    assert shop.kit.told("start") == []


def test_input_left_out_or_too_much(run: Run, shop: Shop) -> None:
    """A saga with an input says how to give it; one without says to leave it out."""
    result = run("start", "checkout")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: checkout takes an input: give it as --input JSON, --input @file or --input - (shop/sagas.py:7)\n"
    )
    shop.definition.takes_input = False
    assert run("start", "checkout").exit_code == 0
    assert shop.started()["input"] is None
    assert (
        run("start", "checkout", "--input", "1").stderr
        == "Error: checkout takes no input: leave --input out\n"
    )


def test_starting_what_does_not_exist(run: Run, shop: Shop) -> None:
    """The nearest name is in the message."""
    result = run("start", "shop.sagas.chekout", "--input", "{}")
    assert result.exit_code == 3
    assert result.stderr == f"Error: no saga is named 'shop.sagas.chekout'; did you mean {NAME!r}?\n"


@pytest.mark.parametrize(
    ("state", "code"), [(SagaState.COMPLETED, 0), (SagaState.COMPENSATED, 1), (SagaState.STUCK, 1)]
)
def test_start_and_wait(run: Run, shop: Shop, state: SagaState, code: int) -> None:
    """The exit code says whether it completed."""
    shop.definition.record = saga(state)
    result = run("start", "checkout", "--input", '{"id": 1}', "--id", "order-1", "--wait")
    assert result.exit_code == code
    assert result.stdout.rstrip().endswith(f"order-1  {state.value}")


def test_cancel_says_who_and_why(run: Run, kit: FakeKit) -> None:
    """The audit gets the reason and, unless told otherwise, the user of this process."""
    kit.add(saga(SagaState.RUNNING))
    result = run("cancel", "order-42", "--reason", "customer withdrew")
    assert result.exit_code == 0
    assert result.stdout == "order-42 cancelled, now running\n"
    assert run("cancel", "order-42", "--reason", "r", "--actor", "bob", "--json").stdout
    assert run("cancel", "order-42", "--reason", "r", env={"SAGAKIT_ACTOR": "cron"}).exit_code == 0
    assert kit.told("cancel") == [
        {"reason": "customer withdrew", "actor": "ann"},
        {"reason": "r", "actor": "bob"},
        {"reason": "r", "actor": "cron"},
    ]


def test_cancel_wants_a_reason(run: Run, kit: FakeKit) -> None:
    """Nobody remembers next month."""
    kit.add(saga(SagaState.RUNNING))
    result = run("cancel", "order-42")
    assert result.exit_code == 2
    assert result.stderr == "Error: Missing option '--reason'; see 'sagakit cancel --help'\n"


def test_resume(run: Run, kit: FakeKit) -> None:
    """A stuck saga goes on; the reason may be left out."""
    kit.add(saga(SagaState.STUCK))
    assert json.loads(run("resume", "order-42", "--json").stdout) == {
        "id": "order-42",
        "done": "resumed",
        "state": "stuck",
    }
    assert kit.told("resume") == [{"reason": None, "actor": "ann"}]


def test_what_the_state_does_not_allow(run: Run, kit: FakeKit) -> None:
    """The kit's own line, exit code 1."""
    kit.add(saga(SagaState.COMPLETED), refusal="order-42 is completed: use compensate --completed to undo it")
    result = run("cancel", "order-42", "--reason", "r")
    assert result.exit_code == 1
    assert result.stderr == "Error: order-42 is completed: use compensate --completed to undo it\n"
