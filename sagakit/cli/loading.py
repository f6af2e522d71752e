"""Finding the Celery application that ``--app`` names."""

import os
import sys
from typing import Any

import click
from celery import Celery
from celery.app.utils import find_app

from sagakit.cli.failures import ExitCode, Failure, debugging
from sagakit.cli.wording import first_line


def load_app(name: str) -> Celery:
    """Find a Celery application by the names ``celery -A`` accepts.

    Raises:
        Failure: there is no such module, no application in it, or it cannot be imported.
    """
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found = find_app(name)
    except ModuleNotFoundError as exc:
        module, _, variable = name.partition(":")
        if (
            variable and exc.name == name
        ):  # Celery tries the whole as a module, once the variable is not there
            raise Failure(
                f"no Celery application in {name!r}: module {module!r} has no attribute {variable!r}",
                ExitCode.USAGE,
            ) from exc
        if exc.name and (module == exc.name or module.startswith(f"{exc.name}.")):
            raise Failure(
                f"no application {name!r}: there is no module {exc.name!r} here or on the path; --app takes what "
                "'celery -A' takes, such as 'workers.app' or 'workers.app:celery'",
                ExitCode.USAGE,
            ) from exc
        raise broken_import(name, exc) from exc
    except AttributeError as exc:
        raise Failure(
            f"no Celery application in {name!r}: {first_line(str(exc))}; name it, as in 'package.module:variable'",
            ExitCode.USAGE,
        ) from exc
    except Exception as exc:
        if debugging(click.get_current_context(silent=True)):
            raise
        raise broken_import(name, exc) from exc
    return _celery(found, name)


def _celery(found: Any, name: str) -> Celery:
    app = found if isinstance(found, Celery) else getattr(found, "app", None)
    if not isinstance(app, Celery):
        raise Failure(
            f"{name!r} is {type(found).__name__}, not a Celery application; name it, as in 'package.module:variable'",
            ExitCode.USAGE,
        )
    return app


def broken_import(name: str, exc: Exception) -> Failure:
    """The failure to report when importing the application, or what it imports, raised."""
    return Failure(
        f"{name} cannot be imported: {type(exc).__name__}: {first_line(str(exc))} (--debug shows where)",
        ExitCode.UNAVAILABLE,
    )
