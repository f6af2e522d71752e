"""``doctor``: each finding from a ledger and an application made for it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from sagakit.cli import environment, fleet
from sagakit.cli.doctor import examine
from sagakit.cli.findings import Finding, Level, report
from sagakit.cli.invocation import Invocation
from sagakit.cli.main import console
from sagakit.dispatch.routing import Routing
from sagakit.states import SagaState
from sagakit.store.schema import check, upgrade
from sagakit.store.store import Store
from sagakit.store.workers import WorkerInfo, WorkerRecord
from tests.unit.cli.ledgers import START, at


def say(*words: str) -> str:
    return " ".join(("saga", *words))


def step(name: str, queue: str | None = None, undo: Any = None) -> Any:
    label = name.rpartition(".")[2]
    return SimpleNamespace(
        label=label, options=SimpleNamespace(queue=queue), undo=undo, find_out=None, name=name
    )


@pytest.fixture
def app() -> Celery:
    app = Celery("doctored", broker="memory://", set_as_current=False)
    app.conf.task_routes = {"shop.ship": {"queue": "trucks"}}
    return app


@pytest.fixture
def kit(app: Celery, tmp_path: Path) -> Any:
    """A kit over a real, empty ledger: one step on a queue of its own, one routed, one with a compensation."""
    store = Store(f"sqlite:///{tmp_path}/sagas.db")
    refund = step("shop.refund", queue="refunds")
    return SimpleNamespace(
        store=store,
        app=app,
        routing=Routing(app, None),
        sagas={"shop.checkout": object()},
        steps={
            "shop.charge": step("shop.charge", queue="payments", undo=refund),
            "shop.ship": step("shop.ship"),
            "shop.mail": step("shop.mail"),
        },
        schema_status=lambda: check(store),
    )


def of(findings: Sequence[Finding], subject: str) -> list[tuple[Level, str, str | None]]:
    return [
        (finding.level, finding.message, finding.remedy) for finding in findings if finding.subject == subject
    ]


def worker(*queues: str, versions: tuple[str, ...] = ("shop.checkout:1",)) -> WorkerRecord:
    return WorkerRecord(
        id="w",
        hostname="box",
        pid=1,
        queues=queues,
        versions=versions,
        concurrency=4,
        started_at=START,
        renewed_at=START,
        expires_at=at(9),
    )


QUIET = fleet.Facts(
    now=START,
    skew=timedelta(0),
    slack=timedelta(milliseconds=3),
    workers=(worker("celery", "payments", "refunds", "trucks"),),
    unclaimed={},
    versions=(),
    states={},
)


def test_all_is_well(kit: Any) -> None:
    """A live worker on every queue: nothing but good news, apart from the broker that a test uses."""
    upgrade(kit.store)
    info = WorkerInfo(
        id="w",
        hostname="box",
        pid=1,
        queues=("celery", "payments", "refunds", "sagakit.shop.checkout.v1", "trucks"),
        concurrency=4,
    )
    with kit.store.begin() as tx:
        tx.workers.register(info, timedelta(minutes=5))
    findings = examine(kit, say, worker="celery -A shop worker")
    assert [finding.subject for finding in findings if finding.level is not Level.OK] == ["broker"]
    assert of(findings, "messages") == [(Level.OK, "JSON only", None)]
    assert of(findings, "schema")[0][1].endswith("up to date")
    assert of(findings, "workers") == [
        (Level.OK, "1 worker alive with 4 slots on box, consuming celery, payments, refunds, trucks", None)
    ]
    assert of(findings, "queues") == [
        (Level.OK, "every queue the steps need has a live consumer (celery, payments, refunds, trucks)", None)
    ]
    assert of(findings, "sagas") == [(Level.OK, "none yet", None)]


def test_a_database_that_is_not_there(kit: Any, tmp_path: Path) -> None:
    """Nothing that needs it is looked at, and its password is not shown."""
    kit.store = Store("postgresql://shop:secret@127.0.0.1:1/shop?connect_timeout=1")
    findings = examine(kit, say, worker="w")
    ((level, message, remedy),) = of(findings, "database")
    assert level is Level.ERROR
    assert message.startswith(
        "postgresql+psycopg://shop:***@127.0.0.1:1/shop?connect_timeout=1 cannot be reached: "
    )
    assert remedy == "start it, or set sagakit_database_url (SAGAKIT_DATABASE_URL)"
    assert of(findings, "workers") == []
    kit.store = Store(f"sqlite:///{tmp_path}/nowhere/sagas.db")
    assert (
        "cannot be reached: the folder of the SQLite ledger does not exist"
        in of(examine(kit, say, worker="w"), "database")[0][1]
    )


def test_tables_that_are_missing(kit: Any) -> None:
    """With the command that creates them."""
    findings = examine(kit, say, worker="w")
    assert of(findings, "schema") == [
        (Level.ERROR, "the database has no sagakit tables yet", "run 'saga migrate'")
    ]
    assert of(findings, "sagas") == []


@pytest.mark.parametrize(
    ("conf", "level", "words"),
    [
        ({"accept_content": ["json", "pickle"]}, Level.WARNING, "workers accept pickle"),
        (
            {"accept_content": ["application/json", "application/x-python-serialize"]},
            Level.WARNING,
            "accept pickle",
        ),
        ({"accept_content": ["yaml"]}, Level.ERROR, "workers accept yaml, and sagakit's messages are JSON"),
        ({"task_serializer": "yaml"}, Level.WARNING, "task_serializer is 'yaml'"),
        ({"task_always_eager": True}, Level.WARNING, "task_always_eager is set"),
    ],
)
def test_messages_that_are_not_plain_json(
    app: Celery, conf: dict[str, Any], level: Level, words: str
) -> None:
    """Pickle is a hole, anything but JSON a misunderstanding."""
    app.conf.update(conf)
    found = of(list(environment.configuration(app.conf)), "messages")
    assert any(at_level is level and words in message for at_level, message, _ in found), found


def test_a_broker_that_is_not_there(app: Celery) -> None:
    """Found within seconds."""
    app.conf.broker_url = "redis://:secret@127.0.0.1:1/0"
    finding = environment.broker(app)
    assert finding.level is Level.ERROR
    assert finding.message.startswith("cannot be reached: ")
    assert "secret" not in finding.message


def test_a_broker_that_is_there(app: Celery, tmp_path: Path) -> None:
    """Named without its password."""
    app.conf.broker_url = "filesystem://"
    folder = str(tmp_path)
    app.conf.broker_transport_options = {"data_folder_in": folder, "data_folder_out": folder}
    assert environment.broker(app).level is Level.OK


def test_no_worker(kit: Any) -> None:
    """Worse when sagas wait for one."""
    idle = replace(QUIET, workers=())
    start = "start one: celery -A shop worker"
    assert of([fleet.workers(idle, "celery -A shop worker")], "workers") == [
        (Level.WARNING, "none is alive", start)
    ]
    waiting = replace(idle, states={SagaState.RUNNING: 2, SagaState.PENDING: 1, SagaState.COMPLETED: 9})
    assert of([fleet.workers(waiting, "celery -A shop worker")], "workers") == [
        (Level.ERROR, "none is alive, and 3 sagas wait for one", start)
    ]
    assert list(fleet.queues(waiting, kit)) == []
    assert list(fleet.versions(waiting)) == []


def test_queues_that_nobody_consumes(kit: Any) -> None:
    """An error where rows wait, a warning where they would."""
    facts = replace(QUIET, workers=(worker("celery", "refunds"),), unclaimed={"payments": (3, at(-300))})
    assert of(list(fleet.queues(facts, kit)), "queues") == [
        (
            Level.ERROR,
            "no live worker consumes 'payments', which charge needs; 3 rows wait in it",
            "start a worker with -Q payments",
        ),
        (
            Level.WARNING,
            "no live worker consumes 'trucks', which ship needs",
            "start a worker with -Q trucks",
        ),
    ]


def test_rows_that_wait_too_long(kit: Any) -> None:
    """A consumed queue may be blocked all the same; a short wait is nothing."""
    facts = replace(QUIET, unclaimed={"payments": (12, at(-301)), "celery": (1, at(-5))})
    assert of(list(fleet.queues(facts, kit)), "queues")[1:] == [
        (
            Level.WARNING,
            "12 rows for 'payments' sent and not claimed, the oldest 5m ago",
            "start more workers for it, or look whether those there are busy or blocked",
        )
    ]


def test_versions_that_nobody_has() -> None:
    """A rollout that was too quick for its sagas."""
    facts = replace(QUIET, versions=(("shop.checkout", 1, 4), ("shop.checkout", 2, 1)))
    assert of(list(fleet.versions(facts)), "versions") == [
        (
            Level.ERROR,
            "1 saga of checkout v2 waits, and no live worker has that version",
            "start a worker whose code defines shop.checkout with version=2",
        )
    ]


def test_clocks_that_differ() -> None:
    """Beyond what the round trip explains."""
    assert fleet.clock(QUIET).level is Level.OK
    behind = fleet.clock(replace(QUIET, skew=timedelta(seconds=-65)))
    assert (behind.level, behind.message) == (Level.WARNING, "this machine is 65.0 s behind the database")
    slow = replace(QUIET, skew=timedelta(seconds=4), slack=timedelta(seconds=5))
    assert fleet.clock(slow).level is Level.OK


def test_sagas_that_wait_for_an_operator() -> None:
    """With the commands that list and mend them."""
    facts = replace(QUIET, states={SagaState.COMPENSATION_FAILED: 1_234, SagaState.STUCK: 1})
    assert of(list(fleet.sagas(facts, say)), "sagas") == [
        (
            Level.WARNING,
            "1,234 sagas could not be undone",
            "see 'saga list --status compensation_failed', then 'saga compensate ID --failed-only'",
        ),
        (
            Level.WARNING,
            "1 saga is stuck: the code no longer fits the ledger",
            "see 'saga list --status stuck', mend the code, then 'saga resume ID'",
        ),
    ]


def test_the_report(drawn: Any) -> None:
    """A sign, a subject, a sentence, and an arrow to the remedy."""
    findings = [
        Finding(level=Level.OK, subject="database", message="answers"),
        Finding(level=Level.WARNING, subject="workers", message="none is alive", remedy="start one"),
        Finding(level=Level.ERROR, subject="schema", message="missing", remedy="run 'saga migrate'"),
    ]
    assert drawn(report(findings)).splitlines() == [
        "✓ database  answers",
        "! workers   none is alive",
        "            → start one",
        "✗ schema    missing",
        "            → run 'saga migrate'",
        "1 error, 1 warning",
    ]
    assert drawn(report(findings), encoding="ascii").isascii()


def test_the_command(kit: Any) -> None:
    """Exit code 4 if there is an error, and everything as JSON on request."""

    def run(*words: str) -> Any:
        return CliRunner().invoke(
            console, ["doctor", *words], obj=Invocation(kit=kit, door="sagakit --app shop")
        )

    failed = run()
    assert failed.exit_code == 4
    assert "→ run 'sagakit --app shop migrate'" in failed.stdout
    upgrade(kit.store)
    healthy = run("--json")
    assert healthy.exit_code == 0
    told = json.loads(healthy.stdout)
    assert told["healthy"] is True
    no_worker = next(finding for finding in told["findings"] if finding["subject"] == "workers")
    assert no_worker == {
        "level": "warning",
        "subject": "workers",
        "message": "none is alive",
        "remedy": "start one: celery -A shop worker",
    }
