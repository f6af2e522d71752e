"""Other pools than prefork, and workers that do not fit their database."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from sagakit import Compensated, SagaHandle, StepState
from tests.acceptance.stage import Stage
from tests.cluster.cluster import Cluster
from tests.cluster.nodes import WorkerNode
from tests.cluster.waiting import wait_until

APP = "manners"


def test_steps_run_side_by_side_in_threads(stage: Stage) -> None:
    """The threads of one process run several steps at once, and a step over its limit is unknown there, too."""
    [node] = stage.cluster.start(stage.app, pool="threads", concurrency=3)
    with stage.effects.gate("threads") as gate, stage.effects.gate("late") as late:
        held = [
            stage.one.start(stage.Call(step="held", args=["threads"]), saga_id=f"thread-{n}")
            for n in range(2)
        ]
        slow = stage.anchored.start(stage.Call(step="slow", args=["late"]), saga_id="thread-slow")
        arrivals = [*gate.wait_reached(2), *late.wait_reached()]
        assert {arrival.pid for arrival in arrivals} == {node.pid}
        wait_until(
            lambda: stage.row(slow, "slow").state is StepState.UNKNOWN, what="the slow step to be unknown"
        )
        assert "it ran past its time_limit" in str(stage.row(slow, "slow").error)
    assert [handle.result(30) for handle in held] == ["threads", "threads"]
    outcome = slow.outcome(30)
    assert isinstance(outcome, Compensated)
    assert outcome.compensated == ("slow", "anchor")
    assert stage.row(slow, "slow").state is StepState.UNKNOWN
    node.stop()


@pytest.fixture(scope="module", params=["threads", "solo"])
def worker(stage: Stage, request: pytest.FixtureRequest) -> Iterator[WorkerNode]:
    """One worker with the pool."""
    [node] = stage.cluster.start(stage.app, queues=["celery", "routed"], pool=request.param, concurrency=4)
    yield node
    assert node.stop() == 0


def call(stage: Stage, worker: WorkerNode, step: str, *args: Any, saga: str = "one") -> SagaHandle[Any]:
    """Start a saga that calls one step."""
    return getattr(stage.module, saga).start(
        stage.Call(step=step, args=list(args)), saga_id=f"{step}-{worker.name()}"
    )


class TestPools:
    """Sagas run in threads and in the main process."""

    @pytest.mark.parametrize(("step", "args", "result"), [("plain", [2], 4), ("asynchronous", [1], 2)])
    def test_steps(self, stage: Stage, worker: WorkerNode, step: str, args: list[Any], result: Any) -> None:
        """Sync and async steps."""
        assert call(stage, worker, step, *args).result(30) == result

    def test_retries(self, stage: Stage, worker: WorkerNode) -> None:
        """A retry that was asked for comes after its delay."""
        assert call(stage, worker, "bound", 10).result(30) == 13

    def test_compensation(self, stage: Stage, worker: WorkerNode) -> None:
        """What took effect is undone."""
        handle = call(stage, worker, "watched_failing", "x", saga="anchored")
        assert isinstance(handle.outcome(30), Compensated)
        assert stage.done(handle.id) == ["anchor", "weigh"]


class TestSchemas:
    """A worker checks its database before it does anything."""

    @pytest.fixture
    def sagas(self) -> str:
        """A small application."""
        return "tests.acceptance.apps.orders:app"

    def version(self, url: str, version: int) -> None:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            [table] = [name for name in sa.inspect(connection).get_table_names() if "version" in name]
            connection.exec_driver_sql(f"UPDATE {table} SET version_num = '{version:04d}'")
        engine.dispose()

    def refusal(self, cluster: Cluster, sagas: str) -> str:
        [node] = cluster.start(sagas, concurrency=1, ready=False)
        wait_until(lambda: not node.running, what="the worker to give up")
        assert node.exit_status not in (0, None)
        log = node.container.recent_logs()
        assert "Traceback" not in log
        return log

    def test_behind(self, cluster: Cluster, ledger_url: str, sagas: str) -> None:
        """A schema behind the code's stops the worker, in one line that names the command."""
        self.version(ledger_url, 0)
        log = self.refusal(cluster, sagas)
        assert "has schema version 0, this code needs 1: run `sagakit --app APP migrate`" in log
        assert "(or `celery -A APP saga migrate`) before you start it" in log

    def test_ahead(self, cluster: Cluster, ledger_url: str, sagas: str) -> None:
        """A schema far ahead of the code's stops it, too."""
        self.version(ledger_url, 3)
        assert "install a newer sagakit here" in self.refusal(cluster, sagas)

    def test_ahead_by_one(self, cluster: Cluster, ledger_url: str, sagas: str) -> None:
        """One version ahead is a deploy under way: the worker starts."""
        self.version(ledger_url, 2)
        [node] = cluster.start(sagas, concurrency=1)
        assert node.running


class TestNoTables:
    """A database that nobody has migrated."""

    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        """An empty database."""
        return postgres_url

    def test_missing(self, cluster: Cluster) -> None:
        """The worker says what to run."""
        log = TestSchemas().refusal(cluster, "tests.acceptance.apps.orders:app")
        assert "has no ledger yet: run `sagakit --app APP migrate`" in log
