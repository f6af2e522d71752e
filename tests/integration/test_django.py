"""``manage.py saga …`` and starting sagas when Django's transaction commits, in a real Django project."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sagakit

pytest.importorskip("django")

PROJECT = Path(__file__).parent / "django_project"
ROOT = Path(sagakit.__file__).parent.parent


@dataclass
class Project:
    """The project, over databases of this test's own."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = ("SAGAKIT_", "DJANGO_", "FORCE_COLOR")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(ROOT)]),
            "DJANGO_SETTINGS_MODULE": "shopsite.settings",
            "SHOPSITE_DATABASE": str(self.folder / "django.db"),
            "SHOPSITE_LEDGER": f"sqlite:///{self.folder}/sagas.db",
            **self.extra,
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.python(str(PROJECT / "manage.py"), *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def script(self, source: str) -> str:
        done = self.python("-c", f"import django; django.setup()\n{source}")
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def migrated(project: Project) -> Project:
    assert project.manage("saga", "migrate").returncode == 0
    return project


def test_the_same_commands(migrated: Project) -> None:
    """Start, list and show, with Django's current Celery app and sagas found by autodiscovery."""
    started = migrated.manage("saga", "start", "welcome", "--input", '"ann"', "--id", "hello-1")
    assert (started.returncode, started.stdout) == (0, "hello-1\n"), started.stderr
    assert started.stderr == "completed; follow it with: python manage.py saga watch hello-1\n"
    listed = json.loads(migrated.manage("saga", "list", "--json").stdout)
    assert [(entry["id"], entry["state"]) for entry in listed] == [("hello-1", "completed")]
    assert "greet" in migrated.manage("saga", "show", "hello-1", "--timeline").stdout


def test_help_is_the_groups_own(project: Project) -> None:
    """Not argparse's: it lists the commands and the exit codes; so does a command's own."""
    for arguments in (("saga", "--help"), ("saga", "-h")):
        done = project.manage(*arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: python manage.py saga [OPTIONS] COMMAND")
        assert "Exit codes:" in done.stdout
    assert "--failed-only" in project.manage("saga", "compensate", "--help").stdout


def test_errors_are_djangos_with_our_exit_codes(migrated: Project) -> None:
    """One line, as every management command has it."""
    missing = migrated.manage("saga", "show", "nobody")
    assert missing.returncode == 3
    assert missing.stderr.startswith("CommandError: ")
    assert missing.stderr.count("\n") == 1
    wrong = migrated.manage("saga", "list", "--stauts", "x")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("CommandError: No such option '--stauts'")


def test_tables_first(project: Project) -> None:
    """The way out is named in the words of this door."""
    done = project.manage("saga", "list")
    assert done.returncode == 5
    assert "run 'python manage.py saga migrate'" in done.stderr


def test_djangos_own_options(migrated: Project) -> None:
    """Before the command's words they are Django's; --settings and --pythonpath are so anywhere."""
    done = migrated.manage(
        "saga", "--no-color", "--verbosity", "0", "list", "--settings", "shopsite.settings", "--json"
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    absent = migrated.python(str(PROJECT / "manage.py"), "saga", "list", "--settings=nowhere.settings")
    assert "No module named 'nowhere'" in absent.stderr


def test_the_application_may_be_named_in_the_settings(migrated: Project) -> None:
    """By the name ``celery -A`` takes; a wrong one is one line."""
    migrated.extra["SHOPSITE_APP"] = "shopsite.celery:app"
    assert migrated.manage("saga", "list").returncode == 0
    migrated.extra["SHOPSITE_APP"] = "shopsite.nowhere"
    done = migrated.manage("saga", "list")
    assert done.returncode == 2
    assert done.stderr.startswith("CommandError: no ")
    assert done.stderr.count("\n") == 1


def test_call_command(migrated: Project) -> None:
    """From code, with options among the words, and output where the caller wants it."""
    output = migrated.script(
        "from io import StringIO\n"
        "from django.core.management import CommandError, call_command\n"
        "out = StringIO()\n"
        "call_command('saga', 'list', '--json', stdout=out)\n"
        "print(repr(out.getvalue()))\n"
        "try:\n"
        "    call_command('saga', 'show', 'nobody')\n"
        "except CommandError as exc:\n"
        "    print(exc.returncode)\n"
    )
    assert output.splitlines() == [repr("[]\n"), "3"]


def test_a_start_waits_for_the_commit(migrated: Project) -> None:
    """Nothing before it, nothing after a rollback; the id is known at once; a bad input is told in the block."""
    output = migrated.script(
        "from django.db import transaction\n"
        "from sagakit.contrib.django import start_on_commit\n"
        "from sagakit.errors import InvalidInput\n"
        "from shopsite.celery import kit\n"
        "from shopsite.tasks import welcome\n"
        "with transaction.atomic():\n"
        "    first = start_on_commit(welcome, 'ann', tags={'from': 'django'})\n"
        "    print(len(kit.find()))\n"
        "print(kit.get(first).status().value, [saga.id == first for saga in kit.find(tags={'from': 'django'})])\n"
        "try:\n"
        "    with transaction.atomic():\n"
        "        start_on_commit(welcome, 'bob', saga_id='hello-bob')\n"
        "        raise RuntimeError\n"
        "except RuntimeError:\n"
        "    print(len(kit.find()))\n"
        "try:\n"
        "    start_on_commit(welcome, 7)\n"
        "except InvalidInput as exc:\n"
        "    print(exc)\n"
        "print(start_on_commit(welcome, 'eve', saga_id='hello-eve'), kit.get('hello-eve').status().value)\n"
    )
    lines = output.splitlines()
    assert lines[:3] == ["0", "completed [True]", "1"]
    assert lines[3].startswith("the input of welcome does not fit: ")
    assert lines[4] == "hello-eve completed"
