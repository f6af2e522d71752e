"""The deployment's configuration, read from the environment."""

from functools import cache

from pydantic import Field
from pydantic_settings import BaseSettings


class ShopSettings(BaseSettings):
    """What an operator sets; each field is read from the environment variable of its name in capitals."""

    celery_broker_url: str = "redis://localhost:6379/0"
    """The broker, as Celery itself names it."""
    sagakit_database_url: str = "postgresql+psycopg://localhost/shop"
    """The ledger. In a real shop this is the application's own Postgres."""
    shop_database_url: str = "sqlite:///shop.db"
    """Where the simulated services keep their books: another database than the ledger's, on purpose."""
    shop_latency_ms: float = Field(default=0, ge=0)
    """How long a call to one of these services is under way, in milliseconds."""
    shop_visibility_timeout: int | None = Field(default=None, ge=1)
    """Seconds after which Redis hands an unacknowledged message to another worker; Celery's default is an hour."""


@cache
def settings() -> ShopSettings:
    """The settings of this process, read once."""
    return ShopSettings()
