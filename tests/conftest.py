"""Fixtures of all tests: servers and databases, worker processes, the record of effects, and a kit.

Nothing here starts before a test asks for it. Names that other folders rely on: ``postgres_url``, ``ledger_url``,
``sqlite_ledger_url``, ``redis_url``, ``amqp_url``; ``broker_url`` and ``database_url``, to be overridden by tests that
want another broker or ledger; ``effects``, ``cluster``, ``published``, ``kit``, ``load_app``.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryBrokerCluster, CeleryWorkerCluster

from sagakit import SagaKit
from sagakit.store import Store, schema
from tests.cluster import process, services
from tests.cluster.cluster import Cluster
from tests.cluster.effects import VARIABLE as EFFECTS_URL
from tests.cluster.effects import Effects
from tests.cluster.loading import AppLoader, GlobalState
from tests.cluster.messages import PublishedMessages
from tests.cluster.nodes import BrokerNode, ServerContainer
from tests.cluster.postgres import fresh_name
from tests.cluster.rabbitmq import RabbitMQ
from tests.cluster.redis import RedisServer

_MARKED_BY_FIXTURE = {"postgres_server": "postgres", "redis_server": "redis", "amqp_server": "amqp"}
_CRASH = Path(__file__).parent / "crash"


# --- pytest ---------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by the servers they use, and those in ``crash/`` by what they do."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in _MARKED_BY_FIXTURE:
                item.add_marker(_MARKED_BY_FIXTURE[fixture])
        if _CRASH in item.path.parents:
            item.add_marker("crash")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the workers' logs with a failure."""
    report = yield
    if report.failed and (logs := process.report_all()):
        report.sections.append(("workers", logs))
    return report


def pytest_sessionfinish() -> None:
    """Kill what the tests have started and not ended; nothing else."""
    process.kill_leftovers()


# --- servers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[services.Postgres]:
    """The Postgres of SAGAKIT_TEST_POSTGRES_URL, or our own."""
    with services.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The Redis of SAGAKIT_TEST_REDIS_URL, or a Valkey of our own."""
    with services.redis() as server:
        yield server


@pytest.fixture(scope="session")
def amqp_server() -> RabbitMQ:
    """The RabbitMQ of SAGAKIT_TEST_AMQP_URL; skips without."""
    return services.rabbitmq()


# --- databases ------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres_url(postgres_server: services.Postgres) -> Iterator[str]:
    """URL of a fresh, empty Postgres database."""
    name = fresh_name()
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def _ledger_template(postgres_server: services.Postgres) -> Iterator[str]:
    """Name of a Postgres database with an empty ledger, to be copied."""
    name = fresh_name()
    _migrate(postgres_server.create_database(name))
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def ledger_url(postgres_server: services.Postgres, _ledger_template: str) -> Iterator[str]:
    """URL of a fresh Postgres database with an empty ledger."""
    name = fresh_name()
    yield postgres_server.create_database(name, _ledger_template)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def _sqlite_ledger_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with an empty ledger, to be copied."""
    path = tmp_path_factory.mktemp("ledger") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_ledger_url(_sqlite_ledger_template: Path, tmp_path: Path) -> str:
    """URL of a fresh SQLite file with an empty ledger."""
    return f"sqlite:///{shutil.copyfile(_sqlite_ledger_template, tmp_path / 'ledger.db')}"


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """URL of a Redis database that is empty and nobody else's."""
    number = redis_server.borrow()
    yield redis_server.database_url(number)
    redis_server.give_back(number)


@pytest.fixture
def amqp_url(amqp_server: RabbitMQ) -> Iterator[str]:
    """URL of a virtual host of RabbitMQ that is empty and nobody else's."""
    with amqp_server.virtual_host() as url:
        yield url


def _migrate(url: str) -> None:
    store = Store(url)
    try:
        schema.upgrade(store)
    finally:
        store.dispose()  # a database with connections cannot be copied


# --- sagas ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """Broker of the test's workers and of its kit; override it for another one."""
    return redis_url


@pytest.fixture
def database_url(ledger_url: str) -> str:
    """Ledger of the test's workers and of its kit; override it for another one."""
    return ledger_url


@pytest.fixture
def effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Effects]:
    """What the steps of this test did, with gates to hold them up; empty at first."""
    with closing(Effects(tmp_path / "effects.db")) as found:
        monkeypatch.setenv(EFFECTS_URL, found.url)
        yield found
        found.open_gates()


@pytest.fixture
def worker_env(broker_url: str, database_url: str, effects: Effects) -> dict[str, str]:
    """What tells a worker, or an application imported here, where this test's servers are."""
    return {
        "CELERY_BROKER_URL": broker_url,
        "SAGAKIT_DATABASE_URL": database_url,
        EFFECTS_URL: effects.url,
    }


@pytest.fixture
def cluster(worker_env: Mapping[str, str], tmp_path: Path) -> Iterator[Cluster]:
    """Starts worker processes on this test's broker and ledger; kills them at its end."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with closing(Cluster(env=worker_env, logs=logs)) as found:
        yield found


@pytest.fixture
def published(broker_url: str) -> Iterator[PublishedMessages]:
    """Records the task messages that are published on this test's broker, a Redis, from now on."""
    with PublishedMessages(broker_url) as found:
        yield found


@pytest.fixture
def load_app(worker_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[AppLoader]:
    """Imports an application into this process, with the broker and the ledger that the workers have."""
    with closing(AppLoader(worker_env, monkeypatch)) as loader:
        yield loader


@pytest.fixture
def kit(broker_url: str, database_url: str) -> Iterator[SagaKit]:
    """A kit in this process, on a Celery application of its own, with this test's broker and ledger."""
    before = GlobalState()
    app = Celery("tests", broker=broker_url)
    found = SagaKit(app, database_url=database_url)
    yield found
    found.store.dispose()
    app.close()
    before.restore()


# --- pytest-celery --------------------------------------------------------------------------------------------


@pytest.fixture
def celery_broker_cluster(request: pytest.FixtureRequest, broker_url: str) -> Iterator[CeleryBrokerCluster]:
    """The test's broker as pytest-celery's cluster; its node can be killed if the server is the tests' own."""
    own = None
    if broker_url.startswith("redis:"):
        redis_server: RedisServer = request.getfixturevalue("redis_server")
        own = redis_server.server if redis_server.has(broker_url) else None
    node = BrokerNode(ServerContainer("broker", broker_url, own))
    yield CeleryBrokerCluster(node)
    node.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """No result backend: sagas need none."""
    return None


@pytest.fixture
def worker_options() -> dict[str, Any]:
    """Arguments of ``cluster.start()`` for the workers of ``celery_setup``; override it."""
    return {"app": "tests.cluster.plain:app", "workers": 1}


@pytest.fixture
def celery_worker_cluster(cluster: Cluster, worker_options: Mapping[str, Any]) -> CeleryWorkerCluster:
    """The workers of ``celery_setup``, as processes."""
    cluster.start(**worker_options)
    return cluster.workers
