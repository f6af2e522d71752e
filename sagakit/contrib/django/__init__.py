"""sagakit in a Django project: ``manage.py saga …``, and starting sagas when a transaction commits.

Put ``"sagakit.contrib.django"`` into ``INSTALLED_APPS``. The Celery application is the one that
``settings.SAGAKIT_APP`` names (``"shop.celery:app"``), or the project's current one.
"""

from sagakit.contrib.django.starting import start_on_commit

__all__ = ["start_on_commit"]
