"""What users declare: steps, compensations, probes and sagas. Pure: knows neither Celery nor the database."""
