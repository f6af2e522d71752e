"""The Django application: it brings the ``saga`` management command."""

from django.apps import AppConfig


class SagakitConfig(AppConfig):
    """sagakit's Django application; it has no models, as the ledger has migrations of its own."""

    name = "sagakit.contrib.django"
    label = "sagakit"
    verbose_name = "Sagas"
