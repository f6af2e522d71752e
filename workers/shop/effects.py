"""How a service acts: once per idempotency key, committed inside the call, and counted.

Every simulated service is built on these: :func:`act` for an effect, :func:`undo` for its compensation, and
:func:`note` for a call that changed nothing.
"""

from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Connection, insert, or_, select

from workers.shop import database
from workers.shop.database import call, effect

A = TypeVar("A", bound=BaseModel)

CallOutcome = Literal["done", "repeated", "nothing_to_do", "refused", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call to a service: what is asked for, for which order, under which idempotency key."""

    action: str
    order_id: str
    key: str

    @property
    def reference(self) -> str:
        """The number the service gives to what it does for this key: the same however often it is asked."""
        return f"{self.action}_{sha256(self.key.encode()).hexdigest()[:10]}"


def act(
    connection: Connection,
    request: Request,
    answer: A,
    *,
    amount: Decimal = Decimal(0),
    undoes: int | None = None,
) -> tuple[A, bool]:
    """Write down an effect, once per key.

    Args:
        connection: the call's transaction; the caller commits before it answers.
        request: the call.
        answer: what a first call is answered with; every later call with this key gets the same.
        amount: the money that moves.
        undoes: the effect that this one takes back.

    Returns:
        The answer, and whether this call was the first. Only then does the caller move goods.
    """
    statement = (
        database.insert(connection, effect)
        .values(
            action=request.action,
            order_id=request.order_id,
            idempotency_key=request.key,
            reference=request.reference,
            cents=int(amount * 100),
            answer=answer.model_dump_json(),
            undoes=undoes,
        )
        .on_conflict_do_nothing()
        .returning(effect.c.id)
    )
    first = connection.execute(statement).first() is not None
    note(connection, request, "done" if first else "repeated")
    if first:
        return answer, True
    # ON CONFLICT has waited for the other call's commit, so its row can be read now: by its key, or (another key,
    # but the same thing to take back) by what it undoes.
    rivals: list[ColumnElement[bool]] = [
        (effect.c.action == request.action) & (effect.c.idempotency_key == request.key)
    ]
    if undoes is not None:
        rivals.append(effect.c.undoes == undoes)
    text = connection.execute(select(effect.c.answer).where(or_(*rivals))).scalars().one()
    return type(answer).model_validate_json(text), False


class Undone(BaseModel):
    """What a service answers when it has taken something back: the reference of that."""

    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An effect that stands or stood in the shop's books, with the answer its caller got."""

    id: int
    reference: str
    amount: Decimal
    answer: str


def find(connection: Connection, *, action: str, order_id: str, reference: str | None = None) -> Found | None:
    """The order's effect of this kind, or the one with this reference; ``None`` if there is none."""
    query = select(effect).where(effect.c.action == action, effect.c.order_id == order_id)
    if reference is not None:
        query = query.where(effect.c.reference == reference)
    row = connection.execute(query.order_by(effect.c.id)).first()
    if row is None:
        return None
    return Found(id=row.id, reference=row.reference, amount=Decimal(row.cents) / 100, answer=row.answer)


def undo(
    connection: Connection, request: Request, *, action: str, reference: str | None = None
) -> Found | None:
    """Take back the order's effect of kind ``action``: once, under whatever key.

    Args:
        connection: the call's transaction.
        request: the call; its own action names the taking back, for example ``refund``.
        action: what is taken back, for example ``charge``.
        reference: which one; if the caller does not know, the order's.

    Returns:
        What was taken back by this very call; ``None`` if there was nothing, or an earlier call had done it.
    """
    found = find(connection, action=action, order_id=request.order_id, reference=reference)
    if found is None:
        note(connection, request, "nothing_to_do")
        return None
    answer = Undone(reference=found.reference)
    _, first = act(connection, request, answer, amount=found.amount, undoes=found.id)
    return found if first else None


def note(connection: Connection, request: Request, outcome: CallOutcome) -> None:
    """Log a call."""
    connection.execute(
        insert(call).values(
            action=request.action, order_id=request.order_id, idempotency_key=request.key, outcome=outcome
        )
    )
