"""Empty databases to be migrated."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from sagakit.store import Store

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
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store whose database is empty."""
    store = Store(url)
    yield store
    store.dispose()
