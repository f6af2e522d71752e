"""An application that is deployed with changes: ``DEPLOY`` in the environment says which code is rolled out."""

import os
from typing import Any

from celery import Celery

from sagakit import Saga, SagaKit
from tests.acceptance.apps import act

DEPLOY = os.environ.get("DEPLOY", "good")
BAD = DEPLOY == "bad"

app = Celery("deploys", set_as_current=False)
kit = SagaKit(app)


@kit.step
def first(text: str) -> str:
    """A step that can be undone."""
    act(text)
    return f"{text}!"


@first.compensation
def undo_first(result: str) -> None:
    """Must not be called while a saga is stuck."""
    act()


@kit.step(queue="later")
def later(text: str) -> str:
    """A step that waits in a queue of its own until the test has a worker for it."""
    act(text)
    return f"later {text}"


@later.compensation
def undo_later(result: str) -> None:
    """Must not be called while a saga is stuck."""
    act()


@kit.step
def other(text: str) -> str:
    """Another step."""
    act(text)
    return f"other {text}"


RESULT: Any = int if BAD else str
ARGUMENT: Any = int if BAD else str
INPUT: Any = list[int] if BAD else str


@kit.step
def typed() -> RESULT:
    """A step whose declared result changes."""
    act()
    return 1 if BAD else "one"


@kit.step(queue="later")
def taking(value: ARGUMENT) -> str:
    """A step whose declared argument changes."""
    act(value)
    return f"took {value}"


if BAD:

    @kit.saga
    async def reordered(saga: Saga, text: str) -> str:
        """Does something else first."""
        text = await saga.step(other, text)
        text = await saga.step(first, text)
        return await saga.step(later, text)

    @kit.saga
    async def shortened(saga: Saga, text: str) -> str:
        """Does less."""
        return await saga.step(first, text)

else:

    @kit.saga
    async def reordered(saga: Saga, text: str) -> str:
        """Two steps, and one more after the deploy."""
        text = await saga.step(first, text)
        text = await saga.step(later, text)
        return await saga.step(other, text)

    @kit.saga
    async def shortened(saga: Saga, text: str) -> str:
        """Two steps."""
        return await saga.step(later, await saga.step(first, text))


@kit.saga
async def retyped_result(saga: Saga, text: str) -> str:
    """A result whose type changes."""
    await saga.step(first, text)
    found = await saga.step(typed)
    await saga.step(later, text)
    return f"{found}"


@kit.saga
async def retyped_argument(saga: Saga, text: str) -> str:
    """An argument whose type changes."""
    await saga.step(first, text)
    return await saga.step(taking, text)


@kit.saga
async def retyped_input(saga: Saga, given: INPUT) -> str:
    """An input whose type changes."""
    return await saga.step(later, await saga.step(first, str(given)))


@kit.saga(name="deploys.versioned", version=1)
async def versioned(saga: Saga, text: str) -> str:
    """The first version."""
    return "v1 " + await saga.step(first, text)


if DEPLOY == "v2":
    versioned_1 = versioned

    @kit.saga(name="deploys.versioned", version=2)
    async def versioned(saga: Saga, text: str) -> str:
        """The second version."""
        return "v2 " + await saga.step(other, await saga.step(first, text))
