"""The commands of console blocks: Celery's and sagakit's own, with every saga run in the caller."""

from celery.bin import celery as celery_command

from sagakit.cli import main
from tests.docs import eager

assert eager  # imported for what it does


def sagakit() -> None:
    """The console script ``sagakit``."""
    main.main()


def celery() -> None:
    """The console script ``celery``, with the command that sagakit adds to it."""
    group = celery_command.celery
    if "saga" not in group.commands:  # sagakit is on the path, but not installed
        group.add_command(main.saga)
    celery_command.main()
