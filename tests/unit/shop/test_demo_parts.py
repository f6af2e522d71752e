"""The parts of the demo: its folder, its progress lines, and the commands it prints."""

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

from workers.demo import screen
from workers.demo.__main__ import main
from workers.demo.folder import demo_folder
from workers.demo.progress import Progress, Standing, follow
from workers.orders import generate, read


def test_the_folder_is_emptied_of_the_last_demo_and_of_nothing_else(tmp_path):
    """Somebody may have put a file of his own there."""
    path = tmp_path / "demo"
    path.mkdir()
    for name in ("ledger.db", "ledger.db-wal", "shop.db", "mine.txt"):
        (path / name).write_text("old")
    with demo_folder(path) as folder:
        assert sorted(file.name for file in path.iterdir()) == [
            ".gitignore",
            "lock",
            "mine.txt",
            "worker.log",
        ]
        assert folder.ledger_url == f"sqlite:///{path}/ledger.db"
    assert (path / "mine.txt").read_text() == "old"


def test_two_demos_do_not_share_a_folder(tmp_path):
    """The second would delete the first one's databases."""
    refused = pytest.raises(click.ClickException, match="another demo is running")
    with demo_folder(tmp_path), refused, demo_folder(tmp_path):
        pass
    with demo_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """With the option that names another."""
    (tmp_path / "file").write_text("")
    refused = pytest.raises(click.ClickException, match=r"cannot write to .*file/demo .*--folder")
    with refused, demo_folder(tmp_path / "file" / "demo"):
        pass


def lines_of(standings: list[Standing], total: int) -> list[str]:
    out = io.StringIO()
    with Progress(Console(file=out, width=200), "sagas", total) as progress:
        for standing in standings:
            progress.show(standing)
    return out.getvalue().splitlines()


def test_a_log_gets_a_few_plain_lines():
    """Not one for each order, and the last one always."""
    steps = [Standing(ended=n, counts={"completed": n, "stuck": 0}) for n in range(201)]
    assert lines_of(steps, 200) == [
        "sagas: 0/200  ",
        *(f"sagas: {n}/200  {n} completed" for n in (40, 80, 120, 160, 200)),
    ]


def test_a_run_of_one_order_gets_its_lines_too():
    """The arithmetic of small numbers."""
    steps = [Standing(ended=n, counts={"completed": n}) for n in (0, 0, 1, 1)]
    assert lines_of(steps, 1) == ["sagas: 0/1  ", "sagas: 1/1  1 completed"]


def test_waiting_ends_when_nothing_changes_any_more():
    """A run that stands still is given up, a slow one is not."""
    standings = iter(
        [*(Standing(ended=n, counts={}) for n in range(5)), *[Standing(ended=4, counts={})] * 1000]
    )
    with Progress(Console(file=io.StringIO()), "sagas", 10) as progress:
        assert not follow(
            progress, lambda: next(standings), lambda now: now.ended == 10, patience=0.02, interval=0.001
        )
        assert follow(progress, lambda: Standing(ended=10, counts={}), lambda _: True, patience=0, interval=0)


def test_commands_name_the_package_only_where_the_shell_would_not_find_it(tmp_path, monkeypatch):
    """In a clone ``celery -A workers.app`` works as it is; elsewhere it needs a path."""
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    text = screen.command("sqlite:///ledger.db", "list")
    assert text.startswith("SAGAKIT_DATABASE_URL=sqlite:///ledger.db ")
    assert text.endswith("celery -A workers.app saga list")
    monkeypatch.chdir(tmp_path)
    assert screen.command("sqlite:///a b.db", "list").startswith(
        f"PYTHONPATH={root} SAGAKIT_DATABASE_URL='sqlite:///a b.db' "
    )


def test_orders_can_be_written_and_sent_again(tmp_path):
    """``--write-orders`` gives a file to start from."""
    path = tmp_path / "orders.jsonl"
    main(["--count", "20", "--seed", "3", "--write-orders", str(path)], standalone_mode=False)
    assert read(path) == generate(20, seed=3)


def test_bad_orders_end_the_command_with_2_and_one_line(tmp_path):
    """Before anything is started."""
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": "order-1"}\n')
    command = [sys.executable, "-m", "workers.demo", "--orders", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 2
    assert done.stderr == f"Error: {path}:1: customer: Field required; items: Field required\n"
