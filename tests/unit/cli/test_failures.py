"""Failures: one line on stderr, an exit code, no traceback; and the help that documents the codes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kombu.exceptions import OperationalError as BrokerDown
from sqlalchemy.exc import OperationalError

from sagakit.cli.invocation import Invocation
from sagakit.cli.main import COMMANDS, console, saga
from sagakit.errors import ConfigurationError, SchemaMismatch
from sagakit.states import SagaState
from tests.unit.cli import ledgers
from tests.unit.cli.conftest import FakeKit, Run


class Broken(FakeKit):
    """A kit that raises whatever it was given."""

    def __init__(self, fault: BaseException) -> None:
        super().__init__()
        self.fault = fault

    def schema_status(self) -> object:
        raise self.fault


def fail(fault: BaseException, *words: str) -> tuple[int, str]:
    kit = Broken(fault)
    result = CliRunner().invoke(console, ["list", *words], obj=Invocation(kit=kit))  # type: ignore[arg-type]
    assert result.stdout == ""
    return result.exit_code, result.stderr


def test_a_database_that_cannot_be_reached() -> None:
    """What the driver said, without the statement, and where to look."""
    fault = OperationalError(
        "SELECT 1", {}, Exception('connection to server at "db" failed: refused\n\tIs it running?')
    )
    assert fail(fault) == (
        5,
        'Error: the database cannot be used: connection to server at "db" failed: refused; check that it is up and '
        "that sagakit_database_url (or SAGAKIT_DATABASE_URL) is right\n",
    )


def test_a_broker_that_cannot_be_reached() -> None:
    """As for the database."""
    assert fail(BrokerDown("[Errno 111] Connection refused")) == (
        5,
        "Error: the broker cannot be reached: [Errno 111] Connection refused; start it, or check broker_url\n",
    )


def test_a_kit_that_is_not_configured() -> None:
    """The kit's own line."""
    assert fail(ConfigurationError("this Celery app has no SagaKit:\n  create SagaKit(app)")) == (
        5,
        "Error: this Celery app has no SagaKit: create SagaKit(app)\n",
    )


def test_anything_else_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is no reason to show people a traceback; --debug is."""
    assert fail(ZeroDivisionError("division by zero")) == (
        1,
        "Error: ZeroDivisionError: division by zero (unexpected; --debug shows the traceback)\n",
    )
    kit = Broken(ZeroDivisionError("division by zero"))
    for words, variable in ((["--debug", "list"], "0"), (["list"], "1")):
        monkeypatch.setenv("SAGAKIT_DEBUG", variable)
        result = CliRunner().invoke(console, words, obj=Invocation(kit=kit))  # type: ignore[arg-type]
        assert isinstance(result.exception, ZeroDivisionError)


def test_an_interruption_is_quiet() -> None:
    """Ctrl-C while watching is no failure to tell of."""
    assert fail(KeyboardInterrupt()) == (130, "\n")


@pytest.mark.parametrize(
    ("current", "head", "told"),
    [
        (None, 1, "the database has no sagakit tables yet; run 'sagakit --app shop.app migrate'"),
        (1, 2, "the tables have schema version 1, this code needs 2; run 'sagakit --app shop.app migrate'"),
        (4, 2, "the tables have schema version 4, this code knows 2; install a newer sagakit here"),
    ],
)
def test_tables_that_do_not_fit(run: Run, kit: FakeKit, current: int | None, head: int, told: str) -> None:
    """Every command that needs the tables says which command makes them fit."""
    kit.schema.current, kit.schema.head, kit.schema.usable = current, head, False
    result = run("list")
    assert result.exit_code == 5
    assert result.stderr == f"Error: {told}\n"


def test_migrate_itself_needs_no_tables(run: Run, kit: FakeKit) -> None:
    """Or nobody could ever begin."""
    kit.schema.usable = False
    kit.applied = ["0001", "0002"]
    assert run("migrate").stdout == "applied 2 migrations: 0001, 0002\n"
    assert run("migrate", "--json").stdout.split() == ["{", '"applied":', "[", '"0001",', '"0002"', "]", "}"]
    kit.applied = []
    assert run("migrate").stdout == "nothing to do: the tables are up to date\n"


def test_a_failed_migration_is_one_line(run: Run, kit: FakeKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit's own words."""

    def refuse() -> list[str]:
        raise SchemaMismatch("the tables are newer than this code")

    monkeypatch.setattr(kit, "migrate", refuse)
    result = run("migrate")
    assert (result.exit_code, result.stderr) == (5, "Error: the tables are newer than this code\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lst", "No such command 'lst'"),
        ("list --stauts x", "No such option '--stauts'"),
        ("list --status done", "Invalid value for '--status': 'done' is not a state of a saga: "),
        ("list --status complete", "'complete' is not a state of a saga: did you mean 'completed'?"),
        (
            "list --older-than soon",
            "'soon' is not a duration: a duration is a timedelta, a number of seconds, or text",
        ),
        ("list --older-than inf", "Invalid value for '--older-than': "),
        ("list --tag region", "'region' is not a tag: write it as key=value, for example region=eu"),
        ("list --limit 0", "Invalid value for '--limit': 0 is not in the range"),
        ("show", "Missing argument 'ID'"),
        ("show a/b", "'a/b' cannot be a saga id"),
        ("show --app shop.app x", "--app goes before the command: sagakit --app APP show …"),
        ("list -A shop.app", "-A goes before the command: sagakit -A APP list …"),
    ],
)
def test_a_wrong_command_line(run: Run, words: str, told: str) -> None:
    """One line that names what was wrong, exit code 2."""
    result = run(*words.split())
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


# --- finding the application ---


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules in it that is the current one, and is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "proj_nothing.py").write_text("value = 1\n")
    (tmp_path / "proj_wrong.py").write_text("app = 'text'\n")
    (tmp_path / "proj_broken.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "proj_raises.py").write_text("raise RuntimeError('no settings\\nat all')\n")
    (tmp_path / "proj_plain.py").write_text(
        "from celery import Celery\napp = Celery('plain', set_as_current=False)\n"
    )
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        (
            "nowhere",
            2,
            "no application 'nowhere': there is no module 'nowhere' here or on the path; --app takes what",
        ),
        ("nowhere.app:celery", 2, "there is no module 'nowhere'"),
        ("proj_nothing", 2, "no Celery application in 'proj_nothing': "),
        (
            "proj_nothing:app",
            2,
            "no Celery application in 'proj_nothing:app': module 'proj_nothing' has no attribute 'app'",
        ),
        (
            "proj_wrong",
            2,
            "'proj_wrong' is str, not a Celery application; name it, as in 'package.module:variable'",
        ),
        (
            "proj_broken",
            5,
            "proj_broken cannot be imported: ModuleNotFoundError: No module named 'not_installed_anywhere'",
        ),
        ("proj_raises", 5, "proj_raises cannot be imported: RuntimeError: no settings (--debug shows where)"),
    ],
)
def test_an_application_that_is_not_there(project: Path, name: str, code: int, told: str) -> None:
    """One line whatever is wrong with it, and no traceback."""
    result = CliRunner().invoke(console, ["--app", name, "list"])
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_no_application_at_all(project: Path) -> None:
    """The way out is in the line."""
    result = CliRunner().invoke(console, ["list"])
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: which application? Say --app, as in 'sagakit --app workers.app list', or set SAGAKIT_APP\n"
    )


def test_the_application_may_come_from_the_environment(project: Path) -> None:
    """SAGAKIT_APP stands in for --app."""
    result = CliRunner().invoke(console, ["list"], env={"SAGAKIT_APP": "proj_broken"})
    assert "proj_broken cannot be imported" in result.stderr


# --- help ---


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_command_has_help_and_json(run: Run, command: object) -> None:
    """Both doors have the same commands, each explained, each with --json."""
    name = str(getattr(command, "name", ""))
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert console.commands[name] is saga.commands[name]


def test_help_documents_the_exit_codes(run: Run) -> None:
    """At the end of both groups' help; a bare call shows it."""
    text = run("--help").stdout
    for line in (
        "  0    done",
        "  1    the action failed",
        "  3    no such saga",
        "  4    doctor found errors",
    ):
        assert line in text
    assert "Exit codes:" in CliRunner().invoke(saga, ["--help"]).stdout
    assert "Exit codes:" in run().output


def test_the_state_in_a_message_is_safe(run: Run, kit: FakeKit) -> None:
    """What a ledger holds cannot command the terminal through an error message."""
    kit.add(ledgers.saga(SagaState.RUNNING), refusal="no \x1b[2J way")
    assert run("cancel", "order-42", "--reason", "r").stderr == "Error: no \\x1b[2J way\n"
