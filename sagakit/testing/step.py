"""Call a step as the ordinary function it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagakit.worker.context import Outcome, StepContext, running_step


@contextmanager
def step_context(
    *,
    idempotency_key: str = "test",
    saga_id: str = "test-saga",
    saga_name: str = "test",
    step_name: str = "step",
    position: int = 0,
    attempt: int = 1,
    outcome: Outcome | None = None,
    session: Any = None,
) -> Iterator[StepContext]:
    """Give the steps called in this block a ``current_step``.

    Example::

        with step_context(idempotency_key="k"):
            charge_payment(order)
    """
    context = StepContext(
        saga_id=saga_id,
        saga_name=saga_name,
        step_name=step_name,
        position=position,
        attempt=attempt,
        idempotency_key=idempotency_key,
        outcome=outcome,
        session=session,
    )
    with running_step(context):
        yield context
