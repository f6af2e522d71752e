"""Applications in the test's own process, which leave nothing behind."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType

import pytest
from celery import Celery
from celery import _state as celery_state

from sagakit import SagaKit
from sagakit.definition.registry import shared


class AppLoader:
    """Imports application modules anew, with a test's broker and ledger in the environment."""

    def __init__(self, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._env = env
        self._monkeypatch = monkeypatch
        self._before = GlobalState()
        self._loaded: list[ModuleType] = []

    def __call__(self, path: str, package: str | None = None) -> ModuleType:
        """Import the module of ``"package.module:app"``, as ``cluster.start()`` takes it, and return it.

        Args:
            package: import this one anew as well, with all that is in it: ``load_app("workers.app:app", "workers")``.
        """
        module = path.partition(":")[0]
        for variable, value in self._env.items():
            self._monkeypatch.setenv(variable, value)
        for name in list(sys.modules):
            if name == module or (package is not None and f"{name}.".startswith(f"{package}.")):
                self._monkeypatch.delitem(sys.modules, name)
        self._loaded.append(importlib.import_module(module))
        return self._loaded[-1]

    def close(self) -> None:
        """Disconnect and forget what was imported."""
        for module in self._loaded:
            for value in list(vars(module).values()):
                if isinstance(value, SagaKit):
                    value.store.dispose()
                elif isinstance(value, Celery):
                    value.close()
            sys.modules.pop(module.__name__, None)
        self._before.restore()


class GlobalState:
    """What Celery and sagakit keep in global variables: the current application, and definitions for those to come."""

    def __init__(self) -> None:
        self._default = celery_state.default_app
        self._current = celery_state._tls.current_app
        self._shared = [(found, found.copy()) for found in (shared._declared, shared._followers)]
        self._shared_tasks = set(celery_state._on_app_finalizers)

    def restore(self) -> None:
        """Put back what was there when this object was made."""
        celery_state.default_app = self._default
        celery_state._tls.current_app = self._current
        for found, before in self._shared:
            found[:] = before
        celery_state._on_app_finalizers.clear()
        celery_state._on_app_finalizers.update(self._shared_tasks)
