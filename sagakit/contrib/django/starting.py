"""Starting a saga when Django's transaction commits."""

from functools import partial
from typing import TYPE_CHECKING, Any

from sagakit.ids import check_saga_id, new_saga_id

if TYPE_CHECKING:
    from sagakit.client.startable import StartableSaga


def start_on_commit(
    definition: "StartableSaga[Any, Any]",
    input: Any = None,
    *,
    using: str | None = None,
    robust: bool = False,
    saga_id: str | None = None,
    **options: Any,
) -> str:
    """Start a saga after the surrounding ``transaction.atomic`` block has committed; never if it rolls back.

    Outside a transaction it starts at once. The start is a transaction of its own, right after Django's: a process
    that dies between the two commits has not started the saga. Where even that must not happen, keep the ledger in
    the application's database and start with ``session=`` in the same transaction.

    Args:
        definition: the saga.
        input: its input.
        using: the database whose transaction is waited for; Django's default one if not given.
        robust: log an error of the start instead of raising it, so that the callbacks after it run.
        saga_id: the saga's id; a fresh UUIDv7 by default.
        options: the other options of ``definition.start``.

    Returns:
        The saga's id, known before it is started.

    Raises:
        ValueError: ``saga_id`` cannot be a saga id.
        InvalidInput: the input does not fit; told here and now, while the transaction can still roll back.
    """
    from django.db import transaction

    known = check_saga_id(saga_id) if saga_id is not None else new_saga_id()
    # Encoded now, too, so that the saga gets the values of this moment, whatever the caller does to them afterwards.
    codec = definition.input_codec
    frozen = codec.loads(codec.dumps(input))
    transaction.on_commit(
        partial(definition.start, frozen, saga_id=known, **options), using=using, robust=robust
    )
    return known
