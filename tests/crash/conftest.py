"""Servers of the test's own, for tests that kill or restart them (``server.kill()``, ``start()``, ``restart()``).

Override ``broker_url`` and ``database_url`` with the URLs below, and the cluster and the kit use them.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from sagakit.local import PostgresServer, ValkeyServer
from sagakit.store import Store, schema
from tests.cluster import services
from tests.cluster.cluster import Cluster
from tests.cluster.effects import VARIABLE as EFFECTS_URL
from tests.cluster.effects import Effects
from tests.cluster.postgres import fresh_name
from tests.cluster.redis import RedisServer
from tests.crash.points import VARIABLE as CRASH_POINTS
from tests.crash.points import Points
from tests.crash.rig import QUICK, Rig

SAGAS = "tests.crash.sagas"


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres for this test alone; its commits reach the disk."""
    with services.own_postgres() as server:
        yield server


@pytest.fixture
def own_ledger_url(own_postgres: PostgresServer) -> str:
    """URL of an empty ledger on ``own_postgres``."""
    store = Store(own_postgres.create_database("ledger"))
    schema.upgrade(store)
    store.dispose()
    return store.url


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A Valkey for this test alone; it keeps its data over a kill, as Redis does with its log on."""
    with services.own_valkey() as server:
        yield server


@pytest.fixture
def own_redis_url(own_valkey: ValkeyServer) -> str:
    """URL of ``own_valkey``."""
    return own_valkey.url


@pytest.fixture
def points(tmp_path: Path) -> Points:
    """Crash points of this test's workers."""
    return Points(tmp_path / "points")


@pytest.fixture
def settings() -> dict[str, str]:
    """Settings of the workers; override it for others."""
    return QUICK


@pytest.fixture
def rig(
    cluster: Cluster,
    effects: Effects,
    points: Points,
    settings: dict[str, str],
    load_app: Callable[[str], ModuleType],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Rig]:
    """Workers to be killed, none of them started yet."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    cluster.env |= {**settings, CRASH_POINTS: str(points.folder)}
    yield Rig(cluster, effects, points, load_app(SAGAS), database_url)
    points.disarm()


@pytest.fixture(scope="module")
def module_rig(
    postgres_server: services.Postgres,
    _ledger_template: str,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rig]:
    """A rig that the tests of a module share."""
    folder = tmp_path_factory.mktemp("rig")
    name, number = fresh_name(), redis_server.borrow()
    database_url = postgres_server.create_database(name, _ledger_template)
    points = Points(folder / "points")
    env = {
        "CELERY_BROKER_URL": redis_server.database_url(number),
        "SAGAKIT_DATABASE_URL": database_url,
        **QUICK,
    }
    with pytest.MonkeyPatch.context() as patch, closing(Effects(folder / "effects.db")) as effects:
        env[EFFECTS_URL] = effects.url
        for variable, value in env.items():
            patch.setenv(variable, value)
        patch.delitem(sys.modules, SAGAS, raising=False)
        sagas = importlib.import_module(SAGAS)
        with closing(Cluster(env={**env, CRASH_POINTS: str(points.folder)}, logs=folder)) as cluster:
            yield Rig(cluster, effects, points, sagas, database_url)
        sagas.kit.store.dispose()
        sagas.app.close()
        sys.modules.pop(SAGAS, None)
    redis_server.give_back(number)
    postgres_server.drop_database(name)
