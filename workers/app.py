"""The Celery application and its SagaKit: what ``celery -A workers.app worker`` runs."""

from typing import Any

from celery import Celery
from celery.signals import worker_init

from sagakit import SagaKit
from workers.config import settings

app = Celery(
    "shop",
    broker=settings().celery_broker_url,
    include=["workers.sagas.checkout", "workers.plain"],
)
app.conf.task_ignore_result = True  # no result backend: the ledger knows
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True
if seconds := settings().shop_visibility_timeout:
    # Redis looks for messages of dead workers only now and then; with a short timeout it has to look often as well.
    app.conf.broker_transport_options = {
        "visibility_timeout": seconds,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }

kit = SagaKit(app, database_url=settings().sagakit_database_url)


@worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def open_shop(**_: Any) -> None:
    """Let the first worker that ever starts create the simulated services' tables and fill the shelves."""
    from workers.orders import CATALOGUE
    from workers.services import shop

    shop.open(dict.fromkeys(CATALOGUE, 10_000), only_if_empty=True)
    shop.close()  # before the children are forked
