"""Which queue a task's messages go to, by Celery's own routing."""

from typing import Any

from celery import Celery


class Routing:
    """Resolves and remembers the queue of each task.

    Saga messages carry no arguments, so a route can depend on the task's name alone, and is worked out once.

    Args:
        app: the Celery app.
        coordinator_queue: where ``advance`` messages go; the app's default queue if ``None``.
    """

    def __init__(self, app: Celery, coordinator_queue: str | None) -> None:
        self._app = app
        self._coordinator_queue = coordinator_queue
        self._known: dict[str, str | None] = {}

    def queue_of(self, task: str, queue: str | None = None) -> str | None:
        """The queue's name, or ``None`` where the route names an exchange instead.

        Args:
            task: Celery task name.
            queue: the step's own choice, which wins.
        """
        if queue is not None:
            return queue
        if task not in self._known:
            self._known[task] = self._route(task)
        return self._known[task]

    def _route(self, name: str) -> str | None:
        task = self._app.tasks.get(name)
        own: dict[str, Any] = {}
        if task is not None and getattr(task, "queue", None):
            own["queue"] = task.queue
        options = self._app.amqp.router.route(own, name, (), {}, task_type=task)
        queue = options.get("queue")
        found: str | None = getattr(queue, "name", queue)
        return found

    @property
    def coordinator_queue(self) -> str:
        """Where ``advance`` messages go."""
        queue: str = self._coordinator_queue or self._app.conf.task_default_queue
        return queue

    @staticmethod
    def version_queue(saga_name: str, version: int) -> str:
        """The queue of workers that have this version of a saga; used by a worker that lacks it."""
        return f"sagakit.{saga_name}.v{version}"
