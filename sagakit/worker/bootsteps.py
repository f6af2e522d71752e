"""What a Celery worker does for sagakit when it boots: check the schema, take a lease, keep the sweep going."""

import os
import socket
from collections.abc import Collection
from datetime import timedelta
from typing import Any, Protocol

import click
from celery import bootsteps, signals
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from sqlalchemy.exc import SQLAlchemyError

from sagakit import probes
from sagakit.dispatch.routing import Routing
from sagakit.errors import SagakitError
from sagakit.settings import Settings
from sagakit.store import Store, WorkerInfo
from sagakit.worker.identity import identity
from sagakit.worker.keeper import Keeper
from sagakit.worker.notices import Notice


class WorkerRuntime(Protocol):
    """What a worker needs of the kit."""

    settings: Settings
    store: Store
    routing: Routing

    def require_schema(self) -> None: ...

    def saga_versions(self) -> list[tuple[str, int]]: ...

    def sweep(
        self, *, idle: bool, queues: Collection[str], leases_trusted: bool, notices: Collection[Notice]
    ) -> timedelta | None: ...


class SagaWorker(bootsteps.StartStopStep):
    """The worker's own step: identity before the pool forks, lease and sweep once it runs."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Any:
        """Check the schema and take on an identity, which forked children inherit.

        Raises:
            click.ClickException: the worker cannot run; Celery's command line shows it without a traceback.
        """
        runtime: WorkerRuntime = worker.app.sagakit
        try:
            runtime.require_schema()
        except SagakitError as exc:
            raise click.ClickException(str(exc)) from exc
        except SQLAlchemyError as exc:
            reason = str(getattr(exc, "orig", None) or exc).strip().partition("\n")[0]
            raise click.ClickException(
                f"the ledger {runtime.store!r} cannot be reached: {reason}. Check sagakit_database_url, and start the "
                "database before its workers (or let a supervisor start them again)"
            ) from exc
        probes.install_from_environment()
        identity.become_worker()
        # The parent's connection must not be shared with the children that are about to be forked.
        runtime.store.dispose()
        self._keeper = Keeper(
            runtime.store,
            runtime.settings,
            identity,
            runtime.sweep,
            describe=lambda: _describe(worker, runtime),
            queues=lambda: _queues(worker),
            has_room=lambda: _has_room(worker),
        )
        return self

    def start(self, worker: Any) -> None:
        """Take the lease, before the consumer receives its first message."""
        self._keeper.start()
        # Not in `stop`, which comes before the pool has finished its running steps: they need the lease until then.
        signals.worker_shutdown.connect(self._shut_down, sender=worker, weak=False)

    def _shut_down(self, sender: Any = None, **_: Any) -> None:
        self._leave(sender, give_back=True)

    def _leave(self, worker: Any, *, give_back: bool) -> None:
        signals.worker_shutdown.disconnect(self._shut_down, sender=worker)
        self._keeper.stop(give_back=give_back)
        identity.resign()

    def stop(self, worker: Any) -> None:
        """Nothing yet, see :meth:`start`."""

    def terminate(self, worker: Any) -> None:
        """A cold shutdown: Celery sends no signal at its end. The lease runs out, for steps may still be running."""
        self._leave(worker, give_back=False)


class VersionQueues(bootsteps.StartStopStep):
    """Consumes the queues of the saga versions this worker has, to which workers that lack them pass sagas on."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Consumer) -> None:
        """Add the queues, if this worker coordinates at all."""
        runtime: WorkerRuntime = consumer.app.sagakit
        if runtime.routing.coordinator_queue not in consumer.app.amqp.queues.consume_from:
            return
        for name, version in runtime.saga_versions():
            consumer.add_task_queue(runtime.routing.version_queue(name, version))


def _describe(worker: Any, runtime: WorkerRuntime) -> WorkerInfo:
    return WorkerInfo(
        id=identity.worker_id or "",
        hostname=str(getattr(worker, "hostname", None) or socket.gethostname()),
        pid=os.getpid(),
        queues=sorted(_queues(worker)),
        versions=[f"{name}:{version}" for name, version in runtime.saga_versions()],
        concurrency=int(getattr(worker.pool, "num_processes", None) or worker.concurrency or 1),
    )


def _queues(worker: Any) -> list[str]:
    """The queues consumed now; those configured while the consumer is not connected."""
    consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)
    if consumer is not None:
        return [queue.name for queue in consumer.queues]
    return list(worker.app.amqp.queues.consume_from)


def _has_room(worker: Any) -> bool:
    """Whether a message in the worker's queues would reach it now: it is connected, and not fully occupied."""
    consumer = getattr(worker, "consumer", None)
    prefetch = getattr(consumer, "qos", None)
    if prefetch is None or getattr(consumer, "connection", None) is None:
        return False
    if len(worker_state.active_requests) >= (worker.pool.num_processes or 1):
        return False  # prefetched messages wait here; and a solo worker does not even receive any
    return not prefetch.value or len(worker_state.reserved_requests) < prefetch.value
