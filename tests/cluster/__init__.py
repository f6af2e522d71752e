"""What the tests run sagas on: servers, worker processes, and a record of what the steps did."""

from tests.cluster.cluster import Cluster
from tests.cluster.effects import Effect, Effects
from tests.cluster.messages import PublishedMessages, unacked_messages, waiting_messages
from tests.cluster.nodes import WorkerNode
from tests.cluster.waiting import wait_until

__all__ = [
    "Cluster",
    "Effect",
    "Effects",
    "PublishedMessages",
    "WorkerNode",
    "unacked_messages",
    "wait_until",
    "waiting_messages",
]
