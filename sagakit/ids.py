"""Identifiers: saga ids, dispatch tokens, worker ids and the Celery task id of a step."""

import os
import re
import secrets
import socket

from uuid_utils import uuid7

MAX_ID_LENGTH = 200
_SAGA_ID = re.compile(r"[^\s\x00-\x1f\x7f/?#]+")


def new_saga_id() -> str:
    """A fresh saga id: a UUIDv7, so that ids sort by the time they were made."""
    return str(uuid7())


def new_token() -> str:
    """A random token. Whoever holds a row's current token may write to the row; nobody else."""
    return secrets.token_hex(8)


def new_worker_id() -> str:
    """A name for one worker process, unique over restarts and readable in the ledger."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def step_task_id(saga_id: str, position: int, run: int = 0) -> str:
    """The Celery task id of a step: the same over all its attempts, as Celery keeps it over retries."""
    return f"{_instance(saga_id, run)}.{position}"


def idempotency_key(saga_id: str, position: int, run: int = 0) -> str:
    """The key a step hands to the services it calls: the same over all its attempts."""
    return f"{_instance(saga_id, run)}:{position}"


def _instance(saga_id: str, run: int) -> str:
    # A saga that was undone and is started anew is another operation: a service that remembers the first one's key
    # would answer with what has been undone.
    return f"{saga_id}~{run}" if run else saga_id


def check_saga_id(saga_id: object) -> str:
    """Return ``saga_id`` if it can name a saga.

    Raises:
        ValueError: it is empty, too long, or has white space or one of ``/ ? #`` in it (it goes into URLs).
    """
    if not isinstance(saga_id, str) or not _SAGA_ID.fullmatch(saga_id) or len(saga_id) > MAX_ID_LENGTH:
        raise ValueError(
            f"{saga_id!r} cannot be a saga id: use 1 to {MAX_ID_LENGTH} characters "
            "without white space and without / ? #, for example 'order-42'"
        )
    return saga_id
