"""The broker loses messages: all of those in flight, or all but the sweep's."""

import redis

from sagakit.states import SagaState
from tests.crash.rig import APP, Rig, check, step
from tests.crash.sagas import DROP

DONE = ["reserve", "charge", "ship"]
UNDONE = ["reserve", "charge", "refund", "release"]


def flush(url: str) -> None:
    """Empty the test's own database of the broker."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def test_the_broker_loses_everything(rig: Rig, broker_url: str) -> None:
    """Sagas that wait, and a saga that runs, survive the loss of all messages; no step runs twice for it."""
    charged = rig.effects.gate("charged")
    node = rig.worker()
    running = rig.start()
    rig.reach(charged, running)
    waiting = [rig.start() for _ in range(5)]
    flush(broker_url)
    charged.open()
    for handle in [running, *waiting]:
        record = rig.end(handle)
        assert record.state is SagaState.COMPLETED
        check(rig, record, DONE)
        assert rig.runs(record.id) == dict.fromkeys(DONE, 1)
    assert node.running


def test_the_broker_loses_everything_again_and_again(rig: Rig, broker_url: str) -> None:
    """Sagas finish under a broker that forgets every little while."""
    rig.cluster.start(APP, concurrency=2)
    handles = [rig.start(fail=number == 0) for number in range(6)]
    for number, handle in enumerate(handles):
        flush(broker_url)
        record = rig.end(handle)
        check(rig, record, UNDONE if number == 0 else DONE)
        assert record.state is (SagaState.COMPENSATED if number == 0 else SagaState.COMPLETED)


def test_only_the_sweep_gets_through(rig: Rig) -> None:
    """With every message lost but the sweep's, every kind of saga finishes, and each step runs once."""
    rig.sagas.kit.publisher = rig.sagas.SweepOnly(rig.sagas.app, rig.kit.routing)
    rig.cluster.start(APP, concurrency=2, env={DROP: "1"})
    undone = rig.start(fail=True)
    done = [rig.start(), rig.start(), rig.start("retrying"), rig.start("napping")]
    for handle in done:
        record = rig.end(handle, 90)
        assert record.state is SagaState.COMPLETED
        check(rig, record, list(dict.fromkeys(row.name for row in record.steps if row.task)))
    record = rig.end(undone)
    assert record.state is SagaState.COMPENSATED
    check(rig, record, UNDONE)


def test_a_message_lost_while_a_long_step_runs(rig: Rig) -> None:
    """A worker with a process to spare sends a lost message again, though another of its processes is busy."""
    rig.cluster.start(APP, concurrency=2)
    charged = rig.effects.gate("charged")
    long = rig.start()
    rig.reach(charged, long)
    rig.points.kill("publish.before")
    other = rig.start("napping")
    assert rig.end(other).state is SagaState.COMPLETED
    assert rig.points.has_killed("publish.before")
    charged.open()
    record = rig.end(long)
    assert record.state is SagaState.COMPLETED
    assert step(record, "charge").attempt == 1
