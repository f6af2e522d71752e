"""What a message says: ids and the row's token, never arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagakit.states import Kind

HEADER = "sagakit"
STAMP = "saga_id"
ADVANCE_TASK = "sagakit.advance"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnvelope:
    """A message that lets a worker claim one row."""

    saga_id: str
    saga_name: str
    position: int
    token: str
    task: str
    name: str
    kind: Kind = Kind.STEP
    queue: str | None = None
    priority: int | None = None
    sent_at: datetime | None = None
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvanceEnvelope:
    """A message that lets a worker look at a saga."""

    saga_id: str
    saga_name: str
    queue: str | None = None
    priority: int | None = None
    sent_at: datetime | None = None


Envelope = StepEnvelope | AdvanceEnvelope


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a worker reads off a step's message. Whoever forged one needs the row's current token, too."""

    saga_id: str
    position: int
    token: str


def header_of(envelope: Envelope) -> dict[str, Any]:
    """The message header an envelope becomes."""
    header: dict[str, Any] = {"saga_id": envelope.saga_id}
    if isinstance(envelope, StepEnvelope):
        header |= {"position": envelope.position, "token": envelope.token}
    if envelope.sent_at is not None:
        header["sent_at"] = envelope.sent_at.timestamp()
    return header


def read_delivery(header: Any) -> Delivery | None:
    """Read a step's header; ``None`` if it is garbled."""
    if not isinstance(header, Mapping):
        return None
    saga_id, position, token = header.get("saga_id"), header.get("position"), header.get("token")
    if not (isinstance(saga_id, str) and type(position) is int and isinstance(token, str)):
        return None
    return Delivery(saga_id, position, token)


def find_header(request: Any) -> Any:
    """The sagakit header of a Celery request or task context, wherever Celery put it; ``None`` if it has none."""
    direct = getattr(request, HEADER, None)
    if direct is not None:
        return direct
    headers = getattr(request, "headers", None)
    return headers.get(HEADER) if isinstance(headers, Mapping) else None
