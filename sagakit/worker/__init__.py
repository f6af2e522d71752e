"""The runtime inside a Celery worker: from a message to a claimed, run and recorded step."""
