"""Fixtures of the acceptance tests: one application with its servers and workers for all tests of a module."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.acceptance.stage import Stage, shared_definitions_kept, staged
from tests.cluster import services
from tests.cluster.effects import Effects
from tests.cluster.postgres import fresh_name
from tests.cluster.redis import RedisServer


@pytest.fixture(autouse=True)
def _shared_definitions_kept() -> Iterator[None]:
    with shared_definitions_kept():
        yield


@pytest.fixture(scope="module")
def stage(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: services.Postgres,
    _ledger_template: str,
    redis_server: RedisServer,
) -> Iterator[Stage]:
    """The application that the test module names in ``APP``, with a ledger and a broker of its own, no worker yet."""
    folder = tmp_path_factory.mktemp("stage")
    name, number = fresh_name(), redis_server.borrow()
    ledger_url = postgres_server.create_database(name, _ledger_template)
    with (
        closing(Effects(folder / "effects.db")) as effects,
        staged(
            request.module.APP,
            folder,
            broker_url=redis_server.database_url(number),
            ledger_url=ledger_url,
            effects=effects,
        ) as found,
    ):
        yield found
    redis_server.give_back(number)
    postgres_server.drop_database(name)
