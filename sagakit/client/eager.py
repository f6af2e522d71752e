"""``task_always_eager``: runs a saga to its end in the caller, in virtual time."""

from datetime import datetime, timedelta

from sagakit.dispatch.envelope import StepEnvelope
from sagakit.dispatch.publisher import Publisher
from sagakit.states import OPEN_SAGA_STATES, Kind, StepState
from sagakit.store import Store
from sagakit.worker.advance import Advancer


class EagerRunner:
    """Drives one saga after its first message: what would be waited for is due at once.

    Celery's eager mode ignores countdowns; so does this one, with the saga's own time moving on as if they had passed.
    """

    def __init__(self, store: Store, advancer: Advancer, publisher: Publisher) -> None:
        self._store = store
        self._advancer = advancer
        self._publisher = publisher

    def run(self, saga_id: str) -> None:
        """Run the saga until it ends, is stuck, or waits for something that is not time."""
        while True:
            with self._store.begin() as tx:
                saga = tx.sagas.get(saga_id)
                if saga is None or saga.state not in OPEN_SAGA_STATES:
                    return
                due = tx.steps.hurry(saga_id)
                rows = tx.steps.load(saga_id)
            if due:
                self._publisher.publish(
                    StepEnvelope(
                        saga_id=step.saga_id,
                        saga_name=step.saga_name,
                        position=step.position,
                        token=step.token,
                        task=step.task,
                        name=step.name,
                        queue=step.queue,
                        priority=step.priority,
                        run=step.run,
                    )
                    for step in due
                )
                continue
            timers = [
                row.due_at for row in rows if row.kind is Kind.TIMER and row.state is StepState.SCHEDULED
            ]
            times: list[datetime] = [at for at in (*timers, saga.deadline_at) if at is not None]
            if not times:
                return
            self._advancer.advance(saga_id, not_before=min(times) + timedelta(microseconds=1))
