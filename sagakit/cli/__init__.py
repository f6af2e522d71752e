"""The command line: ``celery -A app saga …``, ``sagakit --app app …`` and ``manage.py saga …``."""
