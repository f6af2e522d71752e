"""Imported first, makes every Celery application of this process run its tasks in the caller, by default."""

from celery.app import defaults, utils

defaults.DEFAULTS["task_always_eager"] = True
utils.DEFAULTS["task_always_eager"] = True
