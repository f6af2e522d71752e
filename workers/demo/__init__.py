"""The demo: a few hundred orders through a real Celery worker, and the proof that the books balance."""
