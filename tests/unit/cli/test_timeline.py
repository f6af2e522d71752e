"""The timeline: what it shows at a fixed width, without colours."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from sagakit.cli.draw import timeline
from sagakit.cli.signs import UNICODE
from sagakit.states import Kind, SagaState, StepState
from tests.unit.cli.ledgers import at, attempt, failed_saga, row, saga, undo

Drawn = Callable[..., str]


def test_steps_run_to_the_right_and_compensations_follow_in_reverse(drawn: Drawn) -> None:
    """Parallel steps side by side, attempts and waits, a failure marked, undoing as a staircase."""
    assert drawn(timeline(failed_saga())) == EVERYTHING


def test_ascii_terminals_see_the_same(drawn: Drawn) -> None:
    """Where the terminal has no UTF-8, ASCII stands in for every sign, cell for cell."""
    assert drawn(timeline(failed_saga()), encoding="ascii") == EVERYTHING_IN_ASCII
    assert drawn(timeline(failed_saga()), encoding="ascii").isascii()


def test_a_replay_hours_later_does_not_flatten_the_rest(drawn: Drawn) -> None:
    """Long idle times are cut out of the axis, and the axis says so."""
    record = failed_saga()
    replayed = replace(
        record.steps[5],
        state=StepState.SUCCEEDED,
        attempt=1,
        started_at=at(10_000),
        finished_at=at(10_000.3),
        error=None,
    )
    steps = (*record.steps[:5], replayed, record.steps[6])
    attempts = (*record.attempts, attempt(5, 2, 4.2, 4.4, "failed"))
    later = replace(
        record, state=SagaState.COMPENSATED, steps=steps, attempts=attempts, finished_at=at(10_000.4)
    )
    assert drawn(timeline(later)) == REPLAYED


def test_an_unfinished_saga_reaches_to_now(drawn: Drawn) -> None:
    """Running bars end in an arrow at now, timers reach to their due time, waiting rows are dotted."""
    record = saga(
        SagaState.RUNNING,
        row(0, "reserve_inventory", times=(0, 0.5, 5)),
        row(1, "sleep", StepState.SCHEDULED, kind=Kind.TIMER, times=(5, None, None), due_at=at(40)),
        row(2, "charge_payment", StepState.RUNNING, times=(5, 6, None), owner="w1"),
        row(3, "a_step_with_a_name_that_is_too_long_for_it", StepState.SCHEDULED, times=(5, None, None)),
        row(4, "send_mail", StepState.CANCELLED, times=(5, None, 10)),
        row(5, "lost_one", StepState.UNKNOWN, times=(5, 6, 12)),
    )
    assert drawn(timeline(record, now=at(20))) == UNFINISHED


def test_a_saga_without_rows_says_so(drawn: Drawn) -> None:
    """A saga that no worker has begun has no bars yet."""
    assert drawn(timeline(saga(SagaState.PENDING), now=at(3))) == (
        "order-42  checkout v1  ○ pending  3.00s\nno step has been decided yet"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_longer_than_the_terminal(drawn: Drawn, width: int, encoding: str) -> None:
    """At any width, nothing is wrapped: a bar chart with broken lines cannot be read."""
    lines = drawn(timeline(failed_saga()), width=width, encoding=encoding).splitlines()
    assert max(len(line) for line in lines) <= width
    if width >= 60:  # the bars' own lines: headline, axis and rule, seven rows
        assert [line[2:9] for line in lines[3:10]] == [
            "reserve", "charge_", "create_", "create_", "void_in", "refund_", "release",
        ]  # fmt: skip


@pytest.mark.parametrize("state", StepState)
def test_every_state_of_a_row_can_be_drawn(drawn: Drawn, state: StepState) -> None:
    """Claimed or not, ended or not: a row in any state is drawn, with its sign at the end of its line."""
    started = state not in (StepState.SCHEDULED, StepState.CANCELLED, StepState.SKIPPED)
    ended = state not in (StepState.SCHEDULED, StepState.RUNNING)
    for kind in Kind:
        times = (0.0, 1.0 if started else None, 2.0 if ended else None)
        record = saga(SagaState.RUNNING, row(0, "work", state, kind=kind, times=times))
        line = drawn(timeline(record, now=at(4))).splitlines()[3]
        assert re.search(rf" {re.escape(UNICODE.step[state])}( \d\.\d\ds)?$", line), line


def test_a_saga_that_took_no_time_is_drawn(drawn: Drawn) -> None:
    """All times equal, as under an eager test run: still a bar for each row."""
    record = saga(
        SagaState.COMPENSATED,
        row(0, "a", times=(0, 0, 0)),
        undo(1, "undo_a", 0, times=(0, 0, 0)),
        finished_at=at(0),
    )
    lines = drawn(timeline(record)).splitlines()
    assert "█" in lines[3]
    assert "▒" in lines[4]


def test_no_colours_outside_a_terminal(drawn: Drawn) -> None:
    """What is piped into a file has no escape codes, also where an error message brought some."""
    record = saga(SagaState.RUNNING, row(0, "evil\x1b[31m", times=(0, 1, 2)), id="order-\x1b[2J")
    text = drawn(timeline(record, now=at(3)))
    assert "\x1b" not in text
    assert "order-\\x1b[2J" in text


EVERYTHING = """\
order-42  checkout v1  ✗ compensation_failed  4.95s
                    0s       1s       2s        3s       4s   4.95s
                    ┬────────┬────────┬─────────┬────────┬────────┬
  reserve_inventory █████                                           ✓ 0.40s
  charge_payment        ·░░░↻···░░↻·····██████                      ✓ 0.50s x3
  create_shipment                            ·██████✗               ✗ 0.65s
  create_invoice                             ·████                  ✓ 0.30s
↶ void_invoice                                      ▒▒▒▒▒           ✓ 0.35s
↶ refund_payment                                        ░↻·▒▒✗      ✗ 0.20s x2
↶ release_inventory                                          ·▒▒▒▒▒ ✓ 0.45s
█ step  ▒ compensation  ░ failed attempt  ↻ tried again  · waiting"""
EVERYTHING_IN_ASCII = """\
order-42  checkout v1  x compensation_failed  4.95s
                    0s       1s       2s        3s       4s   4.95s
                    +--------+--------+---------+--------+--------+
  reserve_inventory #####                                           + 0.40s
  charge_payment        .---@...--@.....######                      + 0.50s x3
  create_shipment                            .######x               x 0.65s
  create_invoice                             .####                  + 0.30s
< void_invoice                                      =====           + 0.35s
< refund_payment                                        -@.==x      x 0.20s x2
< release_inventory                                          .===== + 0.45s
# step  = compensation  - failed attempt  @ tried again  . waiting  + succeeded
x failed"""
REPLAYED = """\
order-42  checkout v1  ↶ compensated  2h46m
                    0s           2s           4s              2h46m
                    ┬────────────┬────────────┬────────┄┄┄┄┄┄┄────┬
  reserve_inventory ████                                            ✓ 0.40s
  charge_payment       ░░↻··░↻····████                              ✓ 0.50s x3
  create_shipment                    ·████✗                         ✗ 0.65s
  create_invoice                     ·███                           ✓ 0.30s
↶ void_invoice                            ▒▒▒▒                      ✓ 0.35s
↶ refund_payment                             ░↻░░↻··············▒▒▒ ✓ 0.30s x3
↶ release_inventory                              ▒▒▒▒               ✓ 0.45s
█ step  ▒ compensation  ░ failed attempt  ↻ tried again  · waiting"""
UNFINISHED = """\
order-42  checkout v1  ► running  20.0s
                               0s       10s      20s          40.0s
                               ┬────────┬────────┬────────────────┬
  reserve_inventory            █████                                ✓ 4.50s
◷ sleep                            ──────────────────────────────── ○ 35.0s
  a_step_with_a_name_that_is_…     ···············                  ○
  send_mail                        ·····⊘                           ⊘
  charge_payment                   ·█████████████►                  ► 14.0s
  lost_one                         ·█████?                          ? 6.00s
█ step  · waiting  ─ timer  ○ scheduled  ► running  ? unknown  ⊘ cancelled"""
