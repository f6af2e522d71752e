"""The reference names everything there is, and nothing else."""

import inspect
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

import click
import pytest

import sagakit
from sagakit import errors, outcomes
from sagakit.cli import main
from sagakit.cli.failures import ExitCode
from sagakit.clock import duration
from sagakit.definition.options import COMPENSATION_OPTIONS, STEP_OPTIONS, StepOptions, compensation_options
from sagakit.definition.retry import RetryPolicy
from sagakit.settings import Settings
from sagakit.states import SAGA_TRANSITIONS, STEP_TRANSITIONS, SagaState, StepState
from sagakit.worker.context import StepContext
from tests.docs.pages import ROOT, blocks, read


def table(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the page's table whose first column is headed ``first``, by what stands there in code style."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] == first:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= {"-", ":"}:
            for name in re.findall(r"`(\w+)", cells[0]):
                found[name] = cells[1:]
    return found


def test_every_option_of_a_step_is_described() -> None:
    """The table of options has all of them, and no others."""
    assert set(table("docs/reference/steps.md", "option")) == STEP_OPTIONS


def test_the_defaults_of_a_step_are_the_real_ones() -> None:
    """What the table says of a step's defaults is what the code does."""
    shown = table("docs/reference/steps.md", "option")
    retry, options = RetryPolicy(), StepOptions()
    assert shown["max_retries"][0] == str(retry.max_retries)
    assert duration(shown["retry_backoff_max"][0].replace(" min", "m")) == retry.retry_backoff_max
    assert duration(shown["default_retry_delay"][0].replace(" min", "m")) == retry.default_retry_delay
    assert shown["retry_jitter"][0] == f"`{retry.retry_jitter}`"
    assert shown["acks_late"][0] == f"`{options.acks_late}`"
    assert shown["bind"][0] == f"`{options.bind}`"


def test_what_compensations_have_of_their_own_is_the_truth() -> None:
    """Their defaults, and the options they lack."""
    text = " ".join(read("docs/reference/steps.md").split())
    own = compensation_options({}, "here").retry
    expected = (
        f"max_retries={own.max_retries}, retry_backoff={own.retry_backoff:g}, "
        f"retry_backoff_max={own.retry_backoff_max.total_seconds():g}"
    )
    assert expected in text
    assert "but for `expires`, `acks_late`, `throws` and `unknown_for`" in text
    assert {"expires", "acks_late", "throws", "unknown_for"} == STEP_OPTIONS - COMPENSATION_OPTIONS


def test_the_options_of_start_are_described() -> None:
    """All of them, and none that is not there."""
    parameters = set(inspect.signature(sagakit.StartableSaga.start).parameters) - {"self", "input", "unknown"}
    assert set(table("docs/reference/steps.md", "option of `start`")) == parameters


def test_what_a_step_knows_is_described() -> None:
    """Every public attribute of the context that works, and none that is not there."""
    there = {name for name in dir(StepContext) if not name.startswith("_")}
    shown = {
        name
        for line in read("docs/reference/steps.md").splitlines()
        if line.startswith("| `") and "|" in line
        for name in re.findall(r"`(\w+)", line.split("|")[1])
    }
    assert there - {"report", "session"} <= shown


def test_every_setting_is_described_with_its_default() -> None:
    """The table of settings is complete, and its defaults are the real ones."""
    shown = table("docs/reference/settings.md", "setting")
    assert set(shown) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        default, said = field.default, shown[name][0]
        if isinstance(default, timedelta):
            assert duration(said.replace(" min", "m").replace(" s", "s")) == default, name
        elif isinstance(default, int):
            assert said == str(default), name


@pytest.mark.parametrize(
    ("number", "transitions"), [(0, SAGA_TRANSITIONS), (1, STEP_TRANSITIONS)], ids=["sagas", "steps"]
)
def test_the_pictures_of_states_are_the_tables_of_the_code(
    number: int, transitions: Mapping[StrEnum, frozenset[StrEnum]]
) -> None:
    """Each arrow is an allowed transition, and each allowed transition an arrow."""
    pictures = [block.text for block in blocks("docs/reference/states.md") if block.language == "mermaid"]
    drawn = set(re.findall(r"^ *(\w+) --> (\w+)", pictures[number], re.MULTILINE))
    allowed = {(source.value, target.value) for source, targets in transitions.items() for target in targets}
    assert drawn == allowed


def test_every_state_is_explained() -> None:
    """Sagas' and rows'."""
    shown = set(table("docs/reference/states.md", "state"))
    assert shown == {state.value for state in [*SagaState, *StepState]}


def test_every_error_is_described() -> None:
    """All that sagakit raises, and none that it does not."""
    there = {
        name
        for module in (errors, outcomes)
        for name, found in vars(module).items()
        if inspect.isclass(found)
        and issubclass(found, errors.SagakitError)
        and found.__module__ == module.__name__
    }
    shown = set(table("docs/reference/errors.md", "error"))
    assert shown - {"StepError"} == there - {"SagakitError"}


def test_every_outcome_and_its_pattern_is_described() -> None:
    """The positional patterns are those of the classes."""
    shown = table("docs/reference/outcomes.md", "outcome")
    for name in ("Completed", "Compensated", "CompensationFailed", "Stuck"):
        fields = ", ".join(getattr(sagakit, name).__match_args__)
        assert shown[name][1] == f"`{name}({fields})`"


def test_every_attribute_of_outcomes_and_every_method_of_handles_is_described() -> None:
    """Nothing is left out."""
    text = read("docs/reference/outcomes.md")
    methods = [name for name in dir(sagakit.SagaHandle) if not name.startswith("_")]
    attributes = [name for name in sagakit.Outcome.__dataclass_fields__ if name != "result"]
    assert [name for name in methods if f"{name}" not in text] == []
    assert set(attributes) <= set(table("docs/reference/outcomes.md", "attribute"))


def _options(command: click.Command) -> set[str]:
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--") and option not in ("--json", "--help")
    }


@pytest.mark.parametrize("name", sorted(main.console.commands))
def test_every_command_and_option_is_described(name: str) -> None:
    """The table of commands names each option of each command."""
    shown = table("docs/reference/cli.md", "command")
    assert name in shown, f"docs/reference/cli.md does not tell of {name}"
    told = set(re.findall(r"--[\w-]+", shown[name][0]))
    filters = (
        {"--status", "--saga", "--older-than", "--newer-than", "--tag"} if name == "compensate" else set()
    )
    assert _options(main.console.commands[name]) - filters == told


def test_every_exit_code_is_described() -> None:
    """The table of exit codes is that of the code."""
    text = read("docs/reference/cli.md")
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert shown == {int(code) for code in ExitCode}


def test_the_decision_on_dependencies_names_each_with_its_bound() -> None:
    """ADR 0009 is what ``pyproject.toml`` says."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = dict(
        re.findall(
            r"^\| `([\w-]+)` \|.*\| `([^`]+)`.*\|$", read("docs/adr/0009-dependencies.md"), re.MULTILINE
        )
    )
    wanted = {}
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.+)", requirement)
        assert match, requirement
        wanted[match[1]] = match[2]
    assert said == wanted


def test_the_changelog_knows_this_version() -> None:
    """The version of the package has its section."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in read("CHANGELOG.md")
