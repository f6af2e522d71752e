"""Ledgers to sweep."""

from collections.abc import Iterator

import pytest

from sagakit.store import Store
from tests.unit.maintenance.sweeping import Sweeping


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty ledger."""
    name = {"sqlite": "sqlite_ledger_url", "postgres": "ledger_url"}[request.param]
    found = Store(request.getfixturevalue(name))
    yield found
    found.dispose()


@pytest.fixture
def sweeping(store: Store) -> Sweeping:
    """A sweep over it."""
    return Sweeping(store)
