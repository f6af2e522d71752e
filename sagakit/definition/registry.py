"""All definitions of one kit, by name, and the shared ones that belong to every kit."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakMethod

from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import Compensation, Probe, Step, TaskFunction
from sagakit.errors import DefinitionError, SagaNotFound, StepNotFound, suggest


class Registry:
    """Names to definitions; one name means one thing."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskFunction[..., Any]] = {}
        self._sagas: dict[tuple[str, int], SagaDefinition[Any, Any]] = {}

    def add_task(self, declared: TaskFunction[..., Any]) -> None:
        """Add a step, compensation or probe.

        Raises:
            DefinitionError: another has this name.
        """
        existing = self._tasks.get(declared.name)
        if existing is not None and existing is not declared and not _redeclared(existing, declared):
            raise DefinitionError(
                f"{declared.where}: the name {declared.name!r} is taken by {existing.label}, declared at "
                f"{existing.where}; give one of them another name=..."
            )
        self._refuse_saga_name(declared.name, declared.where)
        self._tasks[declared.name] = declared

    def add_saga(self, definition: SagaDefinition[Any, Any]) -> None:
        """Add a saga; several versions of one name may stand side by side.

        Raises:
            DefinitionError: this version of this name is taken, or a step has the name.
        """
        key = definition.name, definition.version
        existing = self._sagas.get(key)
        if existing is not None and existing is not definition and not _redeclared(existing, definition):
            raise DefinitionError(
                f"{definition.where}: saga {definition.name!r} version {definition.version} is declared at "
                f"{existing.where} already; give one of them another name=... or version=..."
            )
        if definition.name in self._tasks:
            raise DefinitionError(
                f"{definition.where}: the name {definition.name!r} is taken by a step, declared at "
                f"{self._tasks[definition.name].where}"
            )
        self._sagas[key] = definition
        definition.registry = self

    def _refuse_saga_name(self, name: str, where: str) -> None:
        taken = next((saga for saga in self._sagas.values() if saga.name == name), None)
        if taken is not None:
            raise DefinitionError(f"{where}: the name {name!r} is taken by a saga, declared at {taken.where}")

    def task(self, name: str) -> TaskFunction[..., Any]:
        """The step, compensation or probe of this Celery task name.

        Raises:
            StepNotFound: this process does not define it.
        """
        try:
            return self._tasks[name]
        except KeyError:
            raise StepNotFound(
                f"no step, compensation or probe named {name!r} is defined in this process; "
                f"{suggest(name, self._tasks)} (is its module imported by the worker's app?)"
            ) from None

    def saga(self, name: str, version: int) -> SagaDefinition[Any, Any] | None:
        """The saga of this name and version, or ``None`` if this process lacks it."""
        return self._sagas.get((name, version))

    def latest(self, name: str) -> SagaDefinition[Any, Any]:
        """The newest version of the saga of this name; a short name will do if only one saga ends in it.

        Raises:
            SagaNotFound: none or several have this name.
        """
        sagas = self.sagas
        if name in sagas:
            return sagas[name]
        short = [
            full for full, saga in sagas.items() if saga.label == name or full.rpartition(".")[2] == name
        ]
        if len(short) == 1:
            return sagas[short[0]]
        if short:
            raise SagaNotFound(f"{name!r} may be any of {', '.join(sorted(short))}: give the full name")
        labels = {saga.label for saga in sagas.values()}
        raise SagaNotFound(
            f"no saga is named {name!r}; {suggest(name, labels if '.' not in name else sagas)}"
        )

    @property
    def sagas(self) -> Mapping[str, SagaDefinition[Any, Any]]:
        """The newest version of every saga, by name."""
        newest: dict[str, SagaDefinition[Any, Any]] = {}
        for (name, _), saga in sorted(self._sagas.items()):
            newest[name] = saga
        return MappingProxyType(newest)

    @property
    def versions(self) -> list[tuple[str, int]]:
        """Every saga and version this process has."""
        return sorted(self._sagas)

    @property
    def steps(self) -> Mapping[str, Step[..., Any]]:
        """Every step, by name."""
        return {name: task for name, task in self._tasks.items() if isinstance(task, Step)}

    @property
    def tasks(self) -> Mapping[str, TaskFunction[..., Any]]:
        """Every step, compensation and probe, by name."""
        return MappingProxyType(self._tasks)


def _redeclared(old: Any, new: Any) -> bool:
    """Whether the same source was executed twice (a module reloaded, or imported under two names).

    Two functions made by one function, in a loop over regions, say, are two.
    """
    name = new.__wrapped__.__qualname__
    return bool(old.where == new.where and old.__wrapped__.__qualname__ == name and "<locals>" not in name)


Declaration = Step[..., Any] | Compensation[..., Any] | Probe[..., Any] | SagaDefinition[Any, Any]


class SharedDefinitions:
    """Definitions made with ``shared_step`` and ``shared_saga``: every kit, present and future, has them."""

    def __init__(self) -> None:
        self._declared: list[Declaration] = []
        # Weakly: an app that nobody needs any more must not live on because it once had a kit.
        self._followers: list[WeakMethod[Callable[[Declaration], None]]] = []

    def declare(self, definition: Declaration) -> None:
        """Hand a new definition to every kit there is, and keep it for those to come."""
        for reference in self._followers:
            follower = reference()
            if follower is not None:
                follower(definition)
        self._declared.append(definition)

    def follow(self, follower: Callable[[Declaration], None]) -> None:
        """Have a bound method receive every shared definition, past and future, as long as its object lives."""
        for definition in self._declared:
            follower(definition)
        self._followers[:] = [reference for reference in self._followers if reference() is not None]
        self._followers.append(WeakMethod(follower))


shared = SharedDefinitions()
