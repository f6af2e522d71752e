"""The contract suite: what a store promises, asked of every store there is."""

from collections.abc import Iterator

import pytest

from sagakit.store import Store
from tests.contract.ledgers import Ledger


@pytest.fixture(
    params=["sqlite_ledger_url", pytest.param("ledger_url", marks=pytest.mark.postgres)],
    ids=["sqlite", "postgres"],
)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty ledger, in each kind of database."""
    yield from _opened(request.getfixturevalue(request.param))


@pytest.fixture
def postgres(ledger_url: str) -> Iterator[Store]:
    """An empty ledger in Postgres, for what only several connections show."""
    yield from _opened(ledger_url)


def _opened(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.dispose()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Brings rows into the state a test starts from."""
    return Ledger(store)
