"""``SagaKit``: the composition root, where a Celery app, a ledger and the definitions come together."""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from celery import Celery

from sagakit.client.eager import EagerRunner
from sagakit.client.handle import SagaHandle
from sagakit.client.operating import Operator
from sagakit.client.startable import StartableSaga
from sagakit.client.starting import SagaStarter, read_inputs, start_options
from sagakit.client.waiting import OutcomeWaiter
from sagakit.clock import Duration, duration
from sagakit.coordinator.ledger import Limits
from sagakit.decorators import Declaring
from sagakit.definition.registry import Declaration, Registry, shared
from sagakit.definition.saga import SagaDefinition
from sagakit.definition.step import Step, TaskFunction
from sagakit.dispatch.publisher import Publisher
from sagakit.dispatch.routing import Routing
from sagakit.errors import ConfigurationError, DatabaseNotConfigured, DefinitionError, InvalidInput, suggest
from sagakit.history import SagaSummary
from sagakit.maintenance.sweep import Surroundings, Sweep
from sagakit.settings import Settings, load_settings
from sagakit.states import SagaState
from sagakit.store import Store, WorkerInfo
from sagakit.store import schema as ledger_schema
from sagakit.worker.advance import Advancer
from sagakit.worker.bootsteps import SagaWorker, VersionQueues
from sagakit.worker.executor import Executor
from sagakit.worker.identity import identity
from sagakit.worker.notices import Notice, board
from sagakit.worker.task import create_advance_task, create_saga_task, create_step_task, saga_input

In = TypeVar("In")
R = TypeVar("R")

_ABSENT_WORKER_LEASE = 3600.0
"""Seconds a process that is no worker may take over steps it runs itself (``task_always_eager``)."""

_kits: "WeakKeyDictionary[Celery, SagaKit]" = WeakKeyDictionary()


class SagaKit(Declaring):
    """Durable sagas for one Celery app.

    Args:
        app: the Celery app.
        database_url: SQLAlchemy URL of the ledger; else ``app.conf.sagakit_database_url`` or ``SAGAKIT_DATABASE_URL``.
        settings: any of :class:`~sagakit.settings.Settings`; else ``app.conf.sagakit_*`` or ``SAGAKIT_*``.

    Raises:
        ConfigurationError: the app has a kit already.
    """

    def __init__(self, app: Celery, *, database_url: str | None = None, **settings: Any) -> None:
        if app in _kits:
            raise ConfigurationError("this Celery app has a SagaKit already: SagaKit.of(app) returns it")
        super().__init__(self._take_own, lambda f: app.gen_task_name(f.__name__, f.__module__))
        self.app = app
        self.registry = Registry()
        self._given = {"database_url": database_url, **settings}
        self._pending: list[Declaration] = []
        self._refused: DefinitionError | None = None
        self._leased_as: str | None = None
        _kits[app] = self
        app.sagakit = self
        app.steps["worker"].add(SagaWorker)
        app.steps["consumer"].add(VersionQueues)
        app.on_after_finalize.connect(self._create_tasks, weak=False)
        shared.follow(self._take)
        if app.finalized:
            self._create_tasks()
            self._require_definitions()

    @staticmethod
    def of(app: Celery) -> "SagaKit":
        """The kit of a Celery app.

        Raises:
            ConfigurationError: it has none.
        """
        kit = _kits.get(app)
        if kit is None:
            raise ConfigurationError(
                f"the Celery app {app.main or app!r} has no SagaKit: add `kit = SagaKit(app)` where the app is made"
            )
        return kit

    # The parts. Each is made when first needed, so that configuring the app may come after declaring steps.

    @cached_property
    def settings(self) -> Settings:
        """The settings in force.

        Raises:
            ConfigurationError: one does not exist, or does not fit.
        """
        return load_settings(self._given, dict(self.app.conf))

    @cached_property
    def store(self) -> Store:
        """The ledger's database.

        Raises:
            DatabaseNotConfigured: no URL was given.
        """
        settings = self.settings
        if settings.database_url is None:
            raise DatabaseNotConfigured(
                "sagakit has no database: pass SagaKit(app, database_url=...), set app.conf.sagakit_database_url, or "
                "export SAGAKIT_DATABASE_URL=postgresql+psycopg://user@host/database"
            )
        return Store(
            settings.database_url,
            schema=settings.database_schema,
            prefix=settings.table_prefix,
            pool_size=settings.pool_size,
        )

    @cached_property
    def routing(self) -> Routing:
        """Which queue each message goes to."""
        return Routing(self.app, self.settings.coordinator_queue)

    @cached_property
    def publisher(self) -> Publisher:
        """Sends messages."""
        return Publisher(self.app, self.routing)

    @cached_property
    def _limits(self) -> Limits:
        settings = self.settings
        return Limits(
            rows=settings.ledger_limit,
            payload=settings.payload_limit,
            payload_warning=settings.payload_warning,
        )

    @cached_property
    def advancer(self) -> Advancer:
        """Advances sagas."""
        return Advancer(
            self.store,
            self.registry,
            self.publisher,
            self.routing,
            self._limits,
            identity,
            self.settings.sweep_interval,
        )

    @cached_property
    def executor(self) -> Executor:
        """Runs steps."""
        return Executor(
            self.store,
            self.registry,
            self.advancer,
            identity,
            self._limits,
            self.settings.max_lost_attempts,
        )

    @cached_property
    def waiter(self) -> OutcomeWaiter:
        """Waits for sagas to end."""
        return OutcomeWaiter(self.store)

    @cached_property
    def operator(self) -> Operator:
        """Acts on sagas for people."""
        return Operator(
            self.store, self.registry, self.publisher, self.settings.republish_after, self._run_if_eager
        )

    @cached_property
    def _starter(self) -> SagaStarter:
        return SagaStarter(self.store, self.publisher, self.settings, self._run_if_eager)

    def _run_if_eager(self, saga_id: str) -> None:
        if self.app.conf.task_always_eager:
            EagerRunner(self.store, self.advancer, self.publisher).run(saga_id)

    @cached_property
    def _sweep(self) -> Sweep:
        return Sweep(self.store, self.registry, self.publisher, self.routing, self.settings)

    # Definitions.

    def _take_own(self, definition: Declaration) -> None:
        self._take(definition)
        if isinstance(definition, StartableSaga):
            definition.find_starter = lambda: self
        elif isinstance(definition, TaskFunction):
            definition.find_task = lambda name: self.app.tasks[name]

    def _take(self, definition: Declaration) -> None:
        """Register a definition, and create its Celery task now or when the app is finalized."""
        if isinstance(definition, SagaDefinition):
            self.registry.add_saga(definition)
        else:
            self.registry.add_task(definition)
        if self.app.finalized:
            self._create_task(definition)
        else:
            self._pending.append(definition)

    def _create_tasks(self, **_: Any) -> None:
        create_advance_task(self.app, self)
        while self._pending:
            try:
                self._create_task(self._pending.pop(0))
            except DefinitionError as exc:
                # Celery's signal would swallow it, and the definitions that follow would have no tasks.
                self._refused = self._refused or exc

    def _require_definitions(self) -> None:
        """Raise what was wrong with a definition when the app was finalized."""
        if self._refused is not None:
            raise self._refused

    def _create_task(self, definition: Declaration) -> None:
        if isinstance(definition, SagaDefinition):
            create_saga_task(self.app, definition, self)
        else:
            create_step_task(self.app, definition, self)

    @property
    def sagas(self) -> Mapping[str, StartableSaga[Any, Any]]:
        """The newest version of every saga, by name."""
        self._import_tasks()
        return cast("Mapping[str, StartableSaga[Any, Any]]", self.registry.sagas)

    @property
    def steps(self) -> Mapping[str, Step[..., Any]]:
        """Every step, by name."""
        self._import_tasks()
        return self.registry.steps

    def saga_named(self, name: str) -> StartableSaga[Any, Any]:
        """A saga by its full name, or by a short one that is unique.

        Raises:
            SagaNotFound: none or several have this name.
        """
        self._import_tasks()
        return cast("StartableSaga[Any, Any]", self.registry.latest(name))

    def _import_tasks(self) -> None:
        """Import the modules a worker would, so that what they declare is known."""
        self.app.loader.import_default_modules()
        self.app.finalize()
        self._require_definitions()

    def task(self, name: str) -> Any:
        """The Celery task of a definition."""
        self.app.finalize()
        self._require_definitions()
        return self.app.tasks[name]

    # Sagas.

    def get(self, saga_id: str) -> SagaHandle[Any]:
        """A handle on a saga. Whether there is one shows when it is used."""
        return SagaHandle(self, saga_id)

    def start(
        self, definition: SagaDefinition[In, R], input: Any = None, *, session: Any = None, **options: Any
    ) -> SagaHandle[R]:
        """See :meth:`SagaDefinition.start`."""
        given = [(input, start_options(options))]
        return SagaHandle(self, self._starter.start(definition, given, session)[0])

    async def astart(
        self, definition: SagaDefinition[In, R], input: Any = None, *, session: Any = None, **options: Any
    ) -> SagaHandle[R]:
        """See :meth:`SagaDefinition.astart`."""
        given = [(input, start_options(options))]
        return SagaHandle(self, (await self._starter.astart(definition, given, session))[0])

    def start_many(
        self, definition: SagaDefinition[In, R], inputs: Iterable[Any], *, session: Any = None, **options: Any
    ) -> list[SagaHandle[R]]:
        """See :meth:`SagaDefinition.start_many`."""
        return [
            SagaHandle(self, saga_id)
            for saga_id in self._starter.start(definition, read_inputs(inputs, options), session)
        ]

    def find(
        self,
        *,
        states: Collection[SagaState | str] | None = None,
        name: str | None = None,
        older_than: Duration | None = None,
        newer_than: Duration | None = None,
        tags: Mapping[str, Any] | None = None,
        limit: int = 100,
    ) -> list[SagaSummary]:
        """Sagas, newest first.

        Args:
            states: only sagas in one of these states.
            name: only sagas of this name.
            older_than: only sagas started longer ago.
            newer_than: only sagas started more recently.
            tags: only sagas with all of these tags.
            limit: at most this many.

        Raises:
            InvalidInput: there is no such state.
        """
        with self.store.read() as tx:
            return tx.queries.find(
                states=None if states is None else [_state(state) for state in states],
                name=name,
                older_than=None if older_than is None else duration(older_than),
                newer_than=None if newer_than is None else duration(newer_than),
                tags=tags,
                limit=limit,
            )

    # The database's schema.

    def migrate(self) -> list[str]:
        """Bring the ledger's tables up to date; return the revisions that were applied."""
        return ledger_schema.upgrade(self.store)

    def schema_status(self) -> ledger_schema.SchemaStatus:
        """How the ledger's tables and this code fit together."""
        return ledger_schema.check(self.store)

    # What workers and tasks call (see worker.task.Runtime and worker.bootsteps.WorkerRuntime).

    def require_schema(self) -> None:
        """Refuse to go on with tables this code does not fit, or with definitions that have no tasks.

        Raises:
            DefinitionError: a task of the app's own has a definition's name.
            SchemaMismatch: names the command that upgrades them.
        """
        self._require_definitions()
        ledger_schema.require(self.store)

    def saga_versions(self) -> list[tuple[str, int]]:
        """Every saga and version this process has."""
        return self.registry.versions

    def ready(self) -> None:
        """Give a process that runs steps without being a worker an identity, and its lease."""
        if identity.worker_id is not None and identity.wakeup is not None:
            return
        if identity.worker_id is None or self._leased_as != identity.worker_id:
            self._leased_as = identity.worker_id or identity.stand_in()
            info = WorkerInfo(id=self._leased_as, hostname="in-process", pid=0)
            with self.store.begin() as tx:
                tx.workers.register(info, duration(_ABSENT_WORKER_LEASE))

    def advance(self, saga_id: str) -> None:
        """Advance a saga."""
        self.advancer.advance(saga_id)

    def newest(self, name: str) -> SagaDefinition[Any, Any]:
        """A saga in its newest version."""
        return self.registry.sagas[name]

    def start_from_task(
        self, definition: SagaDefinition[Any, Any], task_id: str, args: Any, kwargs: Any
    ) -> str:
        """A message for a saga's task arrived: its id is the saga's, so that a redelivered one starts none anew."""
        value = definition.input_codec.check(saga_input(definition, tuple(args), kwargs))
        return self.start(definition, value, saga_id=task_id).id

    def start_from_call(
        self, definition: SagaDefinition[Any, Any], args: Any, kwargs: Any, options: Any
    ) -> Any:
        """``delay`` and ``apply_async`` of a saga's task."""
        options = dict(options)
        if "task_id" in options:
            options["saga_id"] = options.pop("task_id")
        value = saga_input(definition, tuple(args or ()), dict(kwargs or {}))
        return self.start(definition, value, **options)

    def sweep(
        self, *, idle: bool, queues: Collection[str], leases_trusted: bool, notices: Collection[Notice]
    ) -> timedelta | None:
        """Sweep once."""
        around = Surroundings(
            idle=idle, queues=queues, newest=board.newest, leases_trusted=leases_trusted, notices=notices
        )
        return self._sweep.run(around)


def _state(given: SagaState | str) -> SagaState:
    try:
        return SagaState(given)
    except ValueError:
        raise InvalidInput(
            f"no saga state is called {given!r}; {suggest(str(given), [state.value for state in SagaState])}"
        ) from None
