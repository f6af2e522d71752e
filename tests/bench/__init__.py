"""Measures sagakit against a plain Celery chain of the same tasks: ``python -m tests.bench``, or ``make bench``."""
