"""One saga of one step, found by autodiscovery."""

from sagakit import Saga, shared_saga, shared_step


@shared_step
def greet(name: str) -> str:
    """Say hello."""
    return f"hello {name}"


@shared_saga(name="shopsite.welcome")
async def welcome(saga: Saga, name: str) -> str:
    """Greet somebody."""
    return await saga.step(greet, name)
