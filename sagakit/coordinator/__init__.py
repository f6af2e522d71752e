"""The deterministic heart: a saga's body run over its ledger. Pure: no database, no Celery, no clock of its own."""
