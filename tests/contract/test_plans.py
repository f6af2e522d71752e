"""That the sweeps' and lists' statements can use the indexes made for them, on Postgres."""

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.sql.selectable import TextualSelect

from sagakit.store import Store

pytestmark = pytest.mark.postgres

BACKOFF = {"limit": 10, "republish_after": 4.0, "republish_max": 600.0}


def plan(store: Store, statement: TextualSelect, parameters: Mapping[str, Any]) -> str:
    """The plan of a statement, if reading a whole table is the last resort."""
    text = statement.element
    explained = sa.text(f"EXPLAIN {text.text}").bindparams(*text._bindparams.values())
    with store.begin() as tx:
        tx.connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        tx.connection.execute(sa.text("SET LOCAL enable_bitmapscan = off"))
        return "\n".join(tx.connection.execute(explained, parameters).scalars())


@pytest.mark.parametrize(
    ("statement", "parameters", "index", "condition"),
    [
        ("sagas.due", {"limit": 10}, "ix_saga_wake", "wake_at <= "),
        ("sagas.due_again", BACKOFF, "ix_saga_published", "published_at <= "),
        ("steps.sweep.due", {"limit": 10}, "ix_saga_step_due", "due_at <= "),
        ("steps.sweep.due_again", BACKOFF, "ix_saga_step_published", "published_at <= "),
        ("steps.sweep.orphaned", {"limit": 10}, "ix_saga_step_owner", None),
        ("steps.sweep.overdue", {"limit": 10}, "ix_saga_step_owner", None),
        ("steps.sweep.expired", {"limit": 10}, "ix_saga_step_expires", "expires_at <= "),
        ("steps.sweep.unfed", {"limit": 10, "older_than": 1.0}, "ix_saga_step_unfed", "finished_at <= "),
        ("queries.next_due", {}, "ix_saga_wake", None),
        ("queries.next_due", {}, "ix_saga_step_due", None),
        ("queries.ended", {"ids": ["a"]}, "pk_saga", "id = "),
        ("queries.oldest_unclaimed", {}, "ix_saga_step_published", None),
    ],
)
def test_sweeps_use_their_index(
    postgres: Store, statement: str, parameters: Mapping[str, Any], index: str, condition: str | None
) -> None:
    """A sweep reads the few rows that concern it, up to a bound, and not the whole table."""
    found: Any = postgres._statements
    for name in statement.split("."):
        found = getattr(found, name)
    text = plan(postgres, found, parameters)
    assert index in text, text
    if condition is not None:
        bounds = [line for line in text.splitlines() if "Index Cond" in line and condition in line]
        assert bounds, text
