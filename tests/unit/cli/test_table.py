"""The table of many sagas."""

from collections.abc import Callable

from sagakit.cli.draw import table
from sagakit.states import SagaState
from tests.unit.cli.ledgers import NO_TRUCKS, START, at, summary

Drawn = Callable[..., str]
UUID = "019f3a40-aaaa-7bbb-8ccc-0123456789ab"


def test_every_state_in_a_table(drawn: Drawn) -> None:
    """One line a saga: state, age, time taken, and why it failed."""
    summaries = [
        summary(
            number, state, failed_step="create_shipment", error=NO_TRUCKS, finished_at=at(3 - 60 * number)
        )
        if state in (SagaState.COMPENSATED, SagaState.COMPENSATION_FAILED)
        else summary(number, state)
        for number, state in enumerate(SagaState, 1)
    ]
    assert drawn(table(summaries, now=START)) == STATES


def test_where_the_reason_does_not_fit_it_has_a_line_of_its_own(drawn: Drawn) -> None:
    """An id is never cut: it is what the next command wants. What follows it makes room."""
    failed = summary(
        1,
        SagaState.COMPENSATED,
        id=UUID,
        failed_step="create_shipment",
        error=NO_TRUCKS,
        tags={"region": "eu", "order": 42},
    )
    lines = drawn(table([failed, summary(2, SagaState.RUNNING)], now=START)).splitlines()
    assert lines[1] == f"{UUID}  checkout  ↶ compensated  1m"
    assert lines[2] == "  create_shipment: NoTrucks: depot='Oslo'"
    assert lines[3].startswith("order-2 ")


def test_in_a_pipe_nothing_is_cut(drawn: Drawn) -> None:
    """grep and cut want whole lines, one a saga."""
    failed = summary(
        1, SagaState.COMPENSATED, id=UUID, failed_step="create_shipment", error=NO_TRUCKS, tags={"a": 1}
    )
    lines = drawn(table([failed], now=START, whole=True), width=10_000).splitlines()
    assert lines[1] == f"{UUID}  checkout  ↶ compensated  1m   a=1   create_shipment: NoTrucks: depot='Oslo'"


def test_names_are_as_short_as_they_can_be_told_apart(drawn: Drawn) -> None:
    """Two sagas with one last name show what differs."""
    summaries = [
        summary(1, SagaState.RUNNING, name="shop.checkout"),
        summary(2, SagaState.RUNNING, name="pos.checkout"),
    ]
    text = drawn(table(summaries, now=START))
    assert "shop.checkout" in text
    assert "pos.checkout" in text


STATES = """\
id       saga      state                  age  took   why
order-1  checkout  ○ pending              1m
order-2  checkout  ► running              2m
order-3  checkout  ↶ compensating         3m
order-4  checkout  ✓ completed            4m
order-5  checkout  ↶ compensated          5m   3.00s  create_shipment: NoTrucks…
order-6  checkout  ✗ compensation_failed  6m   3.00s  create_shipment: NoTrucks…
order-7  checkout  ! stuck                7m
order-8  checkout  ‖ paused               8m"""
