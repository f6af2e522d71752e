"""An application of ``tests.acceptance.apps`` on servers and workers of its own, kept for all tests of a module."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import _state as state

from sagakit import SagaHandle, SagaKit, SagaState
from sagakit.definition.registry import shared
from sagakit.history import SagaRecord, StepRecord
from tests.cluster.cluster import Cluster, worker_environment
from tests.cluster.effects import Effects
from tests.cluster.messages import unacked_messages
from tests.cluster.process import ROOT
from tests.cluster.waiting import wait_until

APPS = "tests.acceptance.apps"


@dataclass(frozen=True, slots=True)
class Stage:
    """One application, its servers, its workers and what its steps did.

    Attributes:
        app: what ``celery --app`` is given.
        module: the application, imported in this process too, so that it can start sagas.
    """

    app: str
    module: ModuleType
    cluster: Cluster
    effects: Effects
    broker_url: str
    ledger_url: str
    folder: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    @property
    def kit(self) -> SagaKit:
        """The application's kit."""
        return self.module.kit

    def tell(self, saga_id: str, what: str, value: Any = True) -> None:
        """Tell the steps of one saga something; they ask with ``told(what)`` of the applications."""
        self.effects.tell(f"{what} {saga_id}", value)

    def wait_for_state(
        self, saga: SagaHandle[Any] | str, state: SagaState, timeout: float = 30.0
    ) -> SagaRecord:
        """Wait until a saga is in this state; return its record."""
        __tracebackhide__ = True
        handle = self.kit.get(saga) if isinstance(saga, str) else saga
        wait_until(lambda: handle.status() is state, timeout, f"saga {handle.id} to be {state}")
        return handle.history()

    def row(self, saga: SagaHandle[Any] | str, name: str) -> StepRecord:
        """The only row of this name in a saga's ledger."""
        handle = self.kit.get(saga) if isinstance(saga, str) else saga
        [row] = [row for row in handle.history().steps if row.name == name]
        return row

    def stop_workers(self) -> None:
        """Warm shutdown of all workers, once they have nothing in hand."""
        # A child waits up to 30 s for its main process to take its last result, and one that shuts down may not.
        wait_until(lambda: unacked_messages(self.broker_url) == 0, what="the workers to have nothing in hand")
        self.cluster.stop_all()

    def done(self, saga_id: str, kind: str | None = None) -> list[str]:
        """Names of what a saga's steps and compensations did, in order."""
        return self.effects.names(saga_id, **({} if kind is None else {"kind": kind}))

    def saga(self, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """``celery -A … saga …`` in a process of its own."""
        environment = worker_environment({**self.cluster.env, **(env or {})})
        if not entry_points(group="celery.commands", name="saga"):
            environment["PYTHONPATH"] += os.pathsep + self._door()
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.app, "saga", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def saga_json(self, *words: str, env: Mapping[str, str] | None = None) -> Any:
        """What a command that succeeds says with ``--json``."""
        done = self.saga(*words, "--json", env=env)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def _door(self) -> str:
        """A folder that gives Celery its command where sagakit is run from a checkout that is not installed."""
        folder = self.folder / "door"
        metadata = folder / "door-0.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: door\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text("[celery.commands]\nsaga = sagakit.cli.main:saga\n")
        return str(folder)


@contextmanager
def staged(name: str, folder: Path, *, broker_url: str, ledger_url: str, effects: Effects) -> Iterator[Stage]:
    """Import the application ``name`` with these servers in the environment; end its workers afterwards."""
    env = {
        "CELERY_BROKER_URL": broker_url,
        "SAGAKIT_DATABASE_URL": ledger_url,
        "EFFECTS_URL": effects.url,
    }
    logs = folder / "logs"
    logs.mkdir()
    cluster = Cluster(env=env, logs=logs)
    with pytest.MonkeyPatch.context() as patch, shared_definitions_kept():
        for variable, value in env.items():
            patch.setenv(variable, value)
        path = f"{APPS}.{name}"
        sys.modules.pop(path, None)
        module = importlib.import_module(path)
        try:
            yield Stage(f"{path}:app", module, cluster, effects, broker_url, ledger_url, folder)
        finally:
            effects.open_gates()
            cluster.close()
            module.kit.store.dispose()
            module.app.close()
            sys.modules.pop(path, None)


@contextmanager
def shared_definitions_kept() -> Iterator[None]:
    """Forget the definitions that the block shares with every kit: there are other kits in this process."""
    before = [(kept, kept.copy()) for kept in (shared._declared, shared._followers)]
    tasks = set(state._on_app_finalizers)  # what @app.task shares
    try:
        yield
    finally:
        for kept, content in before:
            kept[:] = content
        state._on_app_finalizers.clear()
        state._on_app_finalizers.update(tasks)
