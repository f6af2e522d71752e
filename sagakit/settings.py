"""The kit's configuration: from keyword arguments, ``app.conf.sagakit_*`` or ``SAGAKIT_*``, in this order."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagakit.clock import duration
from sagakit.errors import ConfigurationError, suggest

Seconds = Annotated[timedelta, BeforeValidator(duration)]

PREFIX = "sagakit_"


class Settings(BaseSettings):
    """Every knob, with its default. In ``app.conf`` each bears the prefix ``sagakit_``.

    Durations are a ``timedelta``, seconds, or text such as ``"10s"``.
    """

    model_config = SettingsConfigDict(env_prefix="SAGAKIT_", frozen=True, extra="forbid")

    database_url: str | None = None
    """SQLAlchemy URL of the ledger, e.g. ``postgresql+psycopg://localhost/shop`` or ``sqlite:///sagas.db``."""
    database_schema: str | None = None
    """Postgres schema of the ledger's tables; the connection's search path by default."""
    table_prefix: str = Field(default="", pattern=r"^[a-z0-9_]*$", max_length=20)
    """Put before every table name, for a ledger inside an application's own database."""
    pool_size: int = Field(default=5, ge=1)
    """Connections each process keeps open at most (a prefork child uses one)."""

    coordinator_queue: str | None = None
    """Queue of the ``sagakit.advance`` messages; the app's default queue if not set."""
    lease: Seconds = timedelta(seconds=9)
    """A worker that has not been heard of for this long has lost its steps."""
    heartbeat: Seconds = timedelta(seconds=3)
    """How often a worker renews its lease."""
    sweep_interval: Seconds = timedelta(seconds=5)
    """The sweep looks at least this often."""
    sweep_batch: int = Field(default=100, ge=1, le=10_000)
    """Rows one sweep statement handles at most."""
    republish_after: Seconds = timedelta(seconds=4)
    """A message unclaimed for this long may be lost; it is sent again once there is evidence that it is."""
    republish_max: Seconds = timedelta(minutes=10)
    """Ceiling of the doubling interval between sendings of one message."""
    max_lost_attempts: int = Field(default=3, ge=1)
    """A step that has cost this many workers their life ends ``unknown``."""

    payload_warning: int = Field(default=256 * 1024, ge=1)
    """Bytes of JSON above which an argument or result is logged as large."""
    payload_limit: int = Field(default=2 * 1024 * 1024, ge=1)
    """Bytes of JSON above which an argument or result is refused."""
    ledger_limit: int = Field(default=10_000, ge=1)
    """Rows one saga may have."""

    @model_validator(mode="after")
    def _heartbeat_fits_the_lease(self) -> Self:
        if self.heartbeat * 2 > self.lease:
            raise ValueError(
                f"heartbeat ({self.heartbeat.total_seconds():g} s) must be at most half of lease "
                f"({self.lease.total_seconds():g} s), or one late renewal costs a healthy worker its steps"
            )
        return self


def load_settings(given: Mapping[str, Any], conf: Mapping[str, Any]) -> Settings:
    """Read the settings.

    Args:
        given: keyword arguments of ``SagaKit``; they win.
        conf: the Celery configuration, of which only ``sagakit_*`` keys are read.

    Raises:
        ConfigurationError: an unknown setting, or a value that does not fit; the message names it.
    """
    values = {key.removeprefix(PREFIX): value for key, value in conf.items() if key.startswith(PREFIX)}
    values |= {key: value for key, value in given.items() if value is not None}
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigurationError(
                f"unknown setting {PREFIX}{name}: {suggest(name, Settings.model_fields)}"
            )
    try:
        return Settings(**values)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = f"{PREFIX}{first['loc'][0]}" if first["loc"] else "sagakit's settings"
        raise ConfigurationError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from exc
