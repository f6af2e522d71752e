"""A Django project; importing it makes its Celery app the current one, as Celery's own guide has it."""

from shopsite.celery import app

__all__ = ["app"]
