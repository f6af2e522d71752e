"""A sweep over a real ledger, with nothing else around it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from sagakit.dispatch.envelope import AdvanceEnvelope, Envelope, StepEnvelope
from sagakit.errors import StepNotFound
from sagakit.maintenance.sweep import Surroundings, Sweep
from sagakit.settings import Settings
from sagakit.store import Store
from tests.contract.ledgers import COMPENSATION, PROBE, STEP, Ledger

AT_MOST_ONCE = "shop.once"
FOREIGN = "shop.foreign"


@dataclass
class Outbox:
    """Keeps what is published."""

    sent: list[Envelope] = field(default_factory=list)
    broken: bool = False

    def publish(self, envelopes: Iterable[Envelope]) -> bool:
        """Keep the messages, unless the broker is away."""
        if self.broken:
            return not list(envelopes)
        self.sent += envelopes
        return True

    def steps(self) -> list[tuple[str, int, str]]:
        """Saga, position and token of the steps' messages; forgets them."""
        found = [(e.saga_id, e.position, e.token) for e in self.sent if isinstance(e, StepEnvelope)]
        self.sent = [e for e in self.sent if not isinstance(e, StepEnvelope)]
        return found

    def advances(self) -> list[str]:
        """Sagas of the advance messages; forgets them."""
        found = [e.saga_id for e in self.sent if isinstance(e, AdvanceEnvelope)]
        self.sent = [e for e in self.sent if not isinstance(e, AdvanceEnvelope)]
        return found


class Definitions:
    """A registry that knows the steps of the shop."""

    tasks = (STEP.task, COMPENSATION.task, PROBE.task, AT_MOST_ONCE)

    def task(self, name: str) -> Any:
        """The definition of a step."""
        if name == FOREIGN:
            raise StepNotFound(name)
        return SimpleNamespace(options=SimpleNamespace(acks_late=name != AT_MOST_ONCE))


class Sweeping:
    """A sweep, its ledger and its outbox."""

    def __init__(self, store: Store) -> None:
        self.ledger = Ledger(store)
        self.outbox = Outbox()
        self.settings = Settings(
            republish_after=timedelta(seconds=4), republish_max=timedelta(seconds=60), max_lost_attempts=3
        )
        routing: Any = SimpleNamespace(coordinator_queue="celery")
        definitions: Any = Definitions()
        outbox: Any = self.outbox
        self.sweep = Sweep(store, definitions, outbox, routing, self.settings)

    def run(self, **around: Any) -> timedelta | None:
        """Sweep once, as an idle worker of the queue ``celery`` unless told otherwise; say when to look again."""
        return self.sweep.run(Surroundings(**{"queues": {"celery"}, **around}))

    def ago(self, seconds: float) -> Any:
        """A time in the past, by the database's clock."""
        return self.ledger.now() - timedelta(seconds=seconds)
