"""The project's Celery app: eager, so that a saga has ended when its start returns."""

import os

from celery import Celery

from sagakit import SagaKit

app = Celery("shopsite", broker="memory://")
app.conf.task_always_eager = True
app.autodiscover_tasks(["shopsite"])
kit = SagaKit(app, database_url=os.environ.get("SHOPSITE_LEDGER", "sqlite:///sagas.db"))
