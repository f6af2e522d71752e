"""The contract suite: what a store promises, asked of every store there is."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from sagakit.store import Store, schema
from tests.contract.ledgers import Ledger

# --- TEMPORARY: delete this fixture once tests/conftest.py has `postgres_url` ------------------------------------


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh database on the server that SAGAKIT_TEST_POSTGRES_URL names."""
    given = os.environ.get("SAGAKIT_TEST_POSTGRES_URL")
    if given is None:
        pytest.skip("SAGAKIT_TEST_POSTGRES_URL is not set")
    name = f"sagakit_store_{uuid4().hex[:12]}"
    server = sa.create_engine(given, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(given).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


# --- end of TEMPORARY ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty ledger, in each kind of database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    yield from _migrated(url)


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Store]:
    """An empty ledger in Postgres, for what only several connections show."""
    yield from _migrated(postgres_url)


def _migrated(url: str) -> Iterator[Store]:
    store = Store(url)
    schema.upgrade(store)
    yield store
    store.dispose()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Brings rows into the state a test starts from."""
    return Ledger(store)
