"""What a message says, and which messages are refused."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from sagakit.dispatch.envelope import (
    HEADER,
    AdvanceEnvelope,
    Delivery,
    StepEnvelope,
    find_header,
    header_of,
    read_delivery,
)

STEP = StepEnvelope(
    saga_id="s", saga_name="shop.checkout", position=2, token="t", task="shop.charge", name="charge"
)


def test_a_step_message_says_which_row_and_under_which_token() -> None:
    """Ids and the token, and nothing of what the step is given."""
    assert header_of(STEP) == {"saga_id": "s", "position": 2, "token": "t"}
    assert read_delivery(header_of(STEP)) == Delivery("s", 2, "t")


def test_an_advance_message_says_which_saga_and_when() -> None:
    """The time of sending is the database's, in seconds."""
    at = datetime(2026, 11, 20, tzinfo=UTC)
    envelope = AdvanceEnvelope(saga_id="s", saga_name="shop.checkout", sent_at=at)
    assert header_of(envelope) == {"saga_id": "s", "sent_at": at.timestamp()}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "s",
        [],
        ["s", 2, "t"],
        {},
        {"saga_id": "s", "position": 2},
        {"saga_id": "s", "token": "t"},
        {"position": 2, "token": "t"},
        {"saga_id": None, "position": 2, "token": "t"},
        {"saga_id": 7, "position": 2, "token": "t"},
        {"saga_id": "s", "position": "2", "token": "t"},
        {"saga_id": "s", "position": 2.0, "token": "t"},
        {"saga_id": "s", "position": True, "token": "t"},
        {"saga_id": "s", "position": 2, "token": b"t"},
        {"saga_id": "s", "position": 2, "token": {"t": 1}},
    ],
)
def test_a_garbled_header_is_refused(header: Any) -> None:
    """Whatever is missing or of another type makes it no delivery."""
    assert read_delivery(header) is None


def test_what_a_later_version_adds_is_ignored() -> None:
    """A header with more in it than we know is read for what we know."""
    assert read_delivery({**header_of(STEP), "more": 1}) == Delivery("s", 2, "t")


def test_the_header_is_found_wherever_celery_puts_it() -> None:
    """On the request itself in a worker, among its headers where a task was applied."""
    header = header_of(STEP)
    assert find_header(SimpleNamespace(**{HEADER: header})) is header
    assert find_header(SimpleNamespace(headers={HEADER: header})) is header
    assert find_header(SimpleNamespace(headers=None)) is None
    assert find_header(SimpleNamespace()) is None
