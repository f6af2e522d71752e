"""The real commands in processes of their own, over a SQLite ledger, through two doors (the third has its own test)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import sagakit

ROOT = Path(sagakit.__file__).parent.parent
PYTHON = sys.executable

SHOP = """
import os
from celery import Celery
from pydantic import BaseModel
from sagakit import Saga, SagaKit, StepError

app = Celery("shop", broker=os.environ.get("BROKER", "memory://"), set_as_current=False)
app.conf.task_always_eager = "BROKER" not in os.environ
app.conf.broker_transport_options = {"data_folder_in": "messages", "data_folder_out": "messages"}
app.conf.worker_hijack_root_logger = False
kit = SagaKit(app, database_url="sqlite:///sagas.db")


class Order(BaseModel):
    id: int
    card: str = "good"


class Declined(StepError):
    reason: str


@kit.step
def reserve(order: Order) -> str:
    return f"reservation {order.id}"


@reserve.compensation(max_retries=0)
def release(reservation: str) -> None:
    if os.path.exists("warehouse-closed"):
        raise ConnectionError("the warehouse is closed")


@kit.step(throws=(Declined,))
def charge(order: Order) -> str:
    if order.card == "slow":
        with open("gate") as gate:
            gate.read()
    if order.card == "bad":
        raise Declined(reason="no funds")
    return f"payment {order.id}"


@charge.compensation
def refund(payment: str) -> None:
    pass


@kit.saga(name="shop.checkout")
async def checkout(saga: Saga, order: Order) -> str:
    reservation = await saga.step(reserve, order)
    return await saga.step(charge, order)
"""

BROKER = {"BROKER": "filesystem://", "SAGAKIT_SWEEP_INTERVAL": "0.5s"}
DISTRIBUTION = "Metadata-Version: 2.1\nName: door\nVersion: 0\n"
ENTRY_POINT = "[celery.commands]\nsaga = sagakit.cli.main:saga\n"


@dataclass
class Shop:
    """A folder with an application in it, and the words before a command."""

    folder: Path
    door: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def env(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), str(ROOT)])
        hidden = ("SAGAKIT_APP", "SAGAKIT_DEBUG", "SAGAKIT_ACTOR", "SAGAKIT_DATABASE_URL", "FORCE_COLOR")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "error::ResourceWarning", **self.environment}

    def run(self, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PYTHON, *self.door, *words],
            cwd=self.folder,
            env=self.env(),
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def ok(self, *words: str, **more: Any) -> str:
        done = self.run(*words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))


def make_shop(folder: Path, door: tuple[str, ...], environment: Mapping[str, str] | None = None) -> Shop:
    (folder / "shop.py").write_text(SHOP)
    (folder / "messages").mkdir()
    if not entry_points(
        group="celery.commands", name="saga"
    ):  # not installed: say so as an installation would
        info = folder / "door-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(DISTRIBUTION)
        (info / "entry_points.txt").write_text(ENTRY_POINT)
    return Shop(folder, door, dict(environment or {}))


DOORS = {
    "celery": ("-m", "celery", "-A", "shop", "saga"),
    "sagakit": ("-m", "sagakit.cli.main", "--app", "shop:app"),
}


@pytest.fixture(params=DOORS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """An empty folder with the application, and one of the doors."""
    return make_shop(tmp_path, DOORS[request.param])


@pytest.fixture
def open_shop(tmp_path: Path) -> Shop:
    """The application with its tables."""
    shop = make_shop(tmp_path, DOORS["sagakit"])
    shop.ok("migrate")
    return shop


def test_from_nothing_to_a_list(shop: Shop) -> None:
    """Without tables the way out is named in the words of the door; after it, everything works."""
    done = shop.run("list")
    words = " ".join(("python", *shop.door)).replace("python -m sagakit.cli.main", "sagakit")
    assert done.returncode == 5
    assert done.stderr == f"Error: the database has no sagakit tables yet; run '{words} migrate'\n"
    assert shop.ok("migrate").startswith("applied ")
    assert shop.ok("start", "checkout", "--input", '{"id": 1}', "--id", "order-1") == "order-1\n"
    lines = shop.ok("list").splitlines()
    assert lines[1].split()[:4] == ["order-1", "checkout", "✓", "completed"]
    assert shop.ok("show", "order-1").startswith("order-1  checkout v1  ✓ completed")
    assert shop.run("show", "order-2").returncode == 3


@pytest.mark.slow
def test_a_failed_compensation_is_replayed(tmp_path: Path) -> None:
    """Declined, not undone because the warehouse is closed; seen, planned, replayed with a reason, audited."""
    shop = make_shop(tmp_path, DOORS["sagakit"], BROKER)
    shop.ok("migrate")
    closed = shop.folder / "warehouse-closed"
    closed.touch()
    with worker(shop):
        for number in (1, 2):
            order = json.dumps({"id": number, "card": "bad"})
            words = (
                "start",
                "checkout",
                "--input",
                "-",
                "--id",
                f"order-{number}",
                "--wait",
                "--timeout",
                "60",
            )
            started = shop.run(*words, input=order)
            assert started.returncode == 1
            last = started.stdout.splitlines()[-1]
            assert f"order-{number}  compensation_failed" in last, started.stderr
            assert last.endswith("at charge: Declined: reason='no funds'")
        shown = shop.run("show", "order-1", "--timeline")
        assert "✗ release" in shown.stdout
        assert "ConnectionError: the warehouse is closed" in shown.stdout
        assert "NOT undone  reserve" in shown.stdout
        assert "compensate order-1 --failed-only --reason" in shown.stderr
        planned = shop.json("compensate", "order-1", "--failed-only", "--dry-run")
        assert [entry["step"] for entry in planned["undo"]] == ["reserve"]

        closed.unlink()
        shop.ok(
            "compensate", "order-1", "--failed-only", "--reason", "the warehouse is open", "--actor", "ann"
        )
        assert (
            shop.run("watch", "order-1", "--timeout", "60")
            .stdout.splitlines()[-1]
            .count("order-1  compensated")
        )
        record = shop.json("show", "order-1")
        assert record["compensated"] == ["reserve"]
        (entry,) = [entry for entry in record["audit"] if entry["actor"] == "ann"]
        assert (entry["action"], entry["reason"]) == ("compensate", "the warehouse is open")

        of_a_set = ("compensate", "--saga", "checkout", "--failed-only", "--reason", "open")
        refused = shop.run(*of_a_set)
        assert refused.returncode == 2
        assert "undoing 1 saga needs a yes: add --yes" in refused.stderr
        shop.ok(*of_a_set, "--yes")
        assert (
            shop.run("watch", "order-2", "--timeout", "60")
            .stdout.splitlines()[-1]
            .count("order-2  compensated")
        )
    again = shop.run("compensate", "order-1", "--reason", "again")
    assert again.returncode == 1
    assert again.stderr.startswith("Error: saga order-1 is compensated: ")


def test_undoing_a_completed_saga_needs_to_be_said(open_shop: Shop) -> None:
    """A wrong id must not refund a happy customer."""
    shop = open_shop
    shop.ok("start", "shop.checkout", "--input", '{"id": 7}', "--id", "order-7")
    refused = shop.run("compensate", "order-7", "--reason", "r")
    assert refused.returncode == 1
    assert "--completed" in refused.stderr
    shop.ok("compensate", "order-7", "--completed", "--reason", "returned goods")
    record = shop.json("show", "order-7")
    assert (record["state"], record["compensated"]) == ("compensated", ["charge", "reserve"])


def test_celery_without_an_application(tmp_path: Path) -> None:
    """Celery makes one up, which has no sagas: the line says how to name the right one."""
    shop = make_shop(tmp_path, ("-m", "celery", "saga"))
    done = shop.run("list")
    assert done.returncode == 5
    assert "has no SagaKit" in done.stderr
    assert done.stderr.endswith("; name the app, as in 'python -m celery -A workers.app saga list'\n")


def test_a_reader_that_has_seen_enough(open_shop: Shop) -> None:
    """``saga list | head -1`` ends without a word on stderr."""
    shop = open_shop
    shop.ok("start", "checkout", "--input", '{"id": 1}')
    listing = subprocess.Popen(
        [PYTHON, *shop.door, "list"],
        cwd=shop.folder,
        env=shop.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listing.stdout is not None
    listing.stdout.close()
    _, stderr = listing.communicate(timeout=60)
    assert stderr == b""


def test_a_database_that_is_gone(open_shop: Shop) -> None:
    """One line and exit code 5, and from the doctor a finding and exit code 4."""
    shop = open_shop
    source = (shop.folder / "shop.py").read_text()
    (shop.folder / "shop.py").write_text(
        source.replace("sqlite:///sagas.db", "postgresql://nobody@127.0.0.1:1/gone")
    )
    done = shop.run("list")
    assert done.returncode == 5
    assert done.stderr.startswith("Error: the database cannot be used: ")
    assert done.stderr.count("\n") == 1
    assert shop.run("doctor").returncode == 4


@contextmanager
def worker(shop: Shop) -> Iterator[None]:
    """A real worker in a process of its own, gone at the end."""
    log = (shop.folder / "worker.log").open("wb")
    command = [PYTHON, "-m", "celery", "-A", "shop", "worker", "--pool", "solo", "--loglevel", "INFO"]
    process = subprocess.Popen(command, cwd=shop.folder, env=shop.env(), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


@pytest.mark.slow
def test_watching_a_saga_on_a_real_worker(tmp_path: Path) -> None:
    """Watched from its start, held in the middle until the test opens the gate, to its end."""
    shop = make_shop(tmp_path, DOORS["sagakit"], BROKER)
    shop.ok("migrate")
    gate = shop.folder / "gate"
    os.mkfifo(gate)
    with worker(shop):
        shop.ok("start", "checkout", "--input", '{"id": 1, "card": "slow"}', "--id", "order-1")
        watching = subprocess.Popen(
            [PYTHON, *shop.door, "watch", "order-1", "--timeout", "60"],
            cwd=shop.folder,
            env=shop.env(),
            stdout=subprocess.PIPE,
            text=True,
        )
        gate.write_text("go")  # waits until the step has opened the other end
        output, _ = watching.communicate(timeout=60)
        assert watching.returncode == 0, (output, (shop.folder / "worker.log").read_text())
        assert "  order-1  charge succeeded" in output
        assert "  order-1  completed after" in output.splitlines()[-1]
        told = shop.run("doctor", "--json")
        findings = {finding["subject"]: finding for finding in json.loads(told.stdout)["findings"]}
        assert told.returncode == 0, told.stdout
        assert findings["workers"]["message"].startswith("1 worker alive with ")
        assert findings["queues"]["level"] == "ok"
        assert findings["broker"]["message"] == "filesystem://"
