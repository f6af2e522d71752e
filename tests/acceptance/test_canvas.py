"""Sagas in Celery's canvas: each message for a saga's task starts one saga, whose id is the message's."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import group

from sagakit import Completed
from tests.acceptance.events import Events
from tests.acceptance.stage import Stage
from tests.cluster.waiting import wait_until

APP = "canvas"
APP_MODULE = "tests.acceptance.apps.canvas"


@pytest.fixture(scope="module", autouse=True)
def _worker(stage: Stage) -> None:
    stage.cluster.start(stage.app, concurrency=2)


@pytest.fixture(scope="module")
def events(stage: Stage) -> Iterator[Events]:
    """What Flower would see: tasks that succeed, and that fail."""
    with Events(stage.module.app) as found:
        yield found


@pytest.fixture
def fresh(stage: Stage) -> Iterator[list[str]]:
    """The ids that a test expects; at its end there are the sagas of these ids besides the earlier ones, no more."""
    before = {saga.id for saga in stage.kit.find(limit=1000)}
    expected: list[str] = []
    yield expected
    assert {saga.id for saga in stage.kit.find(limit=1000)} - before == set(expected)


def completes(stage: Stage, saga_id: str, result: Any) -> None:
    """Wait until there is a saga of this id, and it has run once."""
    __tracebackhide__ = True
    wait_until(lambda: _exists(stage, saga_id), what=f"a saga {saga_id}")
    handle = stage.kit.get(saga_id)
    outcome = handle.outcome(30)
    assert isinstance(outcome, Completed)
    assert outcome.result == result
    assert stage.done(saga_id) == ["book_out"]


def _exists(stage: Stage, saga_id: str) -> bool:
    return any(saga.id == saga_id for saga in stage.kit.find(limit=1000))


def succeeded(events: Events, *task_ids: str) -> None:
    """Wait until these tasks have succeeded, and none has failed on the way."""
    __tracebackhide__ = True
    for task_id in task_ids:
        events.wait_for(task_id, "task-succeeded")
        assert not events.of(task_id, "task-failed")


class TestChains:
    """A saga is a link as any other; what it passes on is its id."""

    def test_the_last_link(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """It takes what the task before it returns, and starts under the id of its message."""
        chain = (stage.plain.s(21) | stage.lend.s()).delay()
        fresh.append(chain.id)
        completes(stage, chain.id, 42)
        succeeded(events, chain.parent.id, chain.id)

    def test_the_last_link_takes_a_model(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """JSON values of the task before it become the model."""
        chain = (stage.plain.s({"reader": "Ada", "book": 7}) | stage.lend_to.s()).delay()
        fresh.append(chain.id)
        completes(stage, chain.id, "Ada: 14")
        succeeded(events, chain.parent.id, chain.id)

    def test_a_link_in_the_middle(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """The next link gets the saga's id at once."""
        chain = (stage.plain.s(4) | stage.lend.s() | stage.note.s("middle")).delay()
        saga_id = chain.parent.id
        fresh.append(saga_id)
        completes(stage, saga_id, 8)
        succeeded(events, chain.parent.parent.id, saga_id, chain.id)
        assert [effect.detail for effect in stage.effects.all(step="middle")] == [saga_id]

    def test_the_first_link(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """At the head of a chain it is started by a worker, too, for the rest of the chain is in its message."""
        chain = (stage.lend.s(5) | stage.note.s("first")).delay()
        fresh.append(chain.parent.id)
        completes(stage, chain.parent.id, 10)
        succeeded(events, chain.parent.id, chain.id)
        assert [effect.detail for effect in stage.effects.all(step="first")] == [chain.parent.id]

    @pytest.mark.parametrize("named", [False, True], ids=["by place", "by name"])
    def test_an_immutable_link_with_a_model(
        self, stage: Stage, events: Events, fresh: list[str], named: bool
    ) -> None:
        """``si(Model(...))`` takes the model along in the messages of the links before it."""
        loan = stage.Loan(reader="Bo", book=3)
        saga = stage.lend_to.si(loan=loan) if named else stage.lend_to.si(loan)
        chain = (stage.plain.s("ignored") | saga).delay()
        fresh.append(chain.id)
        completes(stage, chain.id, "Bo: 6")
        succeeded(events, chain.parent.id, chain.id)

    def test_an_input_that_does_not_fit(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """It is the saga's task that fails, not the one before it, which has done its work."""
        chain = (stage.plain.s("no number") | stage.lend.s()).delay()
        failed = events.wait_for(chain.id, "task-failed")
        assert "InvalidInput" in failed["exception"]
        succeeded(events, chain.parent.id)
        assert fresh == []


class TestOtherPlaces:
    """Links, groups, and a signature on its own."""

    def test_as_a_callback(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """``link=`` starts it with the task's result."""
        before = stage.plain.apply_async((6,), link=stage.lend.s().set(task_id="linked"))
        fresh.append("linked")
        completes(stage, "linked", 12)
        succeeded(events, before.id, "linked")

    def test_in_a_group(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """Each member starts one saga, beside plain tasks."""
        result = group(stage.lend.s(1), stage.plain.s(0), stage.lend_to.si(stage.Loan(reader="Cy", book=2)))()
        first, other, second = (member.id for member in result.results)
        fresh += [first, second]
        completes(stage, first, 2)
        completes(stage, second, "Cy: 4")
        succeeded(events, first, other, second)

    def test_in_a_group_after_a_task(self, stage: Stage, events: Events, fresh: list[str]) -> None:
        """All members take what the task before the group returns."""
        result = (stage.plain.s(8) | group(stage.lend.s(), stage.lend.s())).delay()
        ids = [member.id for member in result.results]
        fresh += ids
        for saga_id in ids:
            completes(stage, saga_id, 16)
        succeeded(events, result.parent.id, *ids)

    def test_in_a_group_that_its_input_does_not_fit(
        self, stage: Stage, events: Events, fresh: list[str]
    ) -> None:
        """One member fails, the others start, and the task before the group has succeeded."""
        before = stage.plain.s({"reader": "Ed", "book": 9})
        result = (before | group(stage.lend.s(), stage.lend_to.s())).delay()
        misfit, saga_id = (member.id for member in result.results)
        fresh.append(saga_id)
        completes(stage, saga_id, "Ed: 18")
        assert "InvalidInput" in events.wait_for(misfit, "task-failed")["exception"]
        succeeded(events, result.parent.id, saga_id)

    def test_an_immutable_signature(self, stage: Stage, fresh: list[str]) -> None:
        """Sent on its own it is a start, here and now, under the id of the signature."""
        handle = stage.lend_to.si(stage.Loan(reader="Di", book=5)).apply_async(task_id="signed")
        fresh.append(handle.id)
        assert handle.id == "signed"
        completes(stage, "signed", "Di: 10")


def test_a_worker_whose_database_is_away(stage: Stage) -> None:
    """It exits with one line that names the ledger, and no traceback."""
    away = "postgresql+psycopg://root:hush@127.0.0.1:1/nowhere"
    [node] = stage.cluster.start(
        stage.app, concurrency=1, env={"SAGAKIT_DATABASE_URL": away}, args=["--queues=none"], ready=False
    )
    assert node.wait_exit() != 0
    log = node.logs()
    assert "Traceback" not in log
    assert "hush" not in log
    [line] = [line for line in log.splitlines() if "127.0.0.1:1/nowhere" in line]
    assert line.startswith("Error: the ledger ")
    assert "postgresql+psycopg://root:***@127.0.0.1:1/nowhere" in line
    assert "cannot be reached: " in line
