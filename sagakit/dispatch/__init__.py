"""From rows to Celery messages: the only place that publishes."""
