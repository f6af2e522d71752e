"""The applications that the acceptance tests run, in their workers and in their own process."""

from typing import Any

from sagakit import current_step
from tests.cluster import effects


def told(what: str, default: Any = None) -> Any:
    """What the test told the saga of the running step by this name (``Stage.tell``)."""
    return effects.told(f"{what} {current_step.saga_id}", default)


def act(detail: Any = None) -> None:
    """What most steps do: wait at the gate of their saga and name, if the test has shut it, and take effect."""
    effects.pass_gate(f"{current_step.step_name} {current_step.saga_id}")
    effects.record(detail=detail)
