"""A kit made up by hand, and the command line over it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console, RenderableType

import sagakit.cli.invocation
from sagakit.cli.invocation import Invocation
from sagakit.cli.main import console
from sagakit.errors import NotAllowed, SagaNotFound, suggest
from sagakit.history import SagaRecord, SagaSummary
from sagakit.states import SagaState
from tests.unit.cli.ledgers import NAME, Plan, Undoing


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in the reader's zone: here everybody reads in UTC, and nobody asks for colours."""
    with monkeypatch.context() as patch:
        for name in ("SAGAKIT_APP", "SAGAKIT_DEBUG", "SAGAKIT_ACTOR", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
            patch.delenv(name, raising=False)
        patch.setenv("TZ", "UTC")
        patch.setattr(sagakit.cli.invocation, "getpass", SimpleNamespace(getuser=lambda: "ann"))
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def drawn() -> Callable[..., str]:
    """Render as a terminal of some width would, without colours."""

    def draw(renderable: RenderableType, *, width: int = 80, encoding: str = "utf-8") -> str:
        out = StringIO()
        # Rich asks the file for its encoding, and draws ASCII if it must.
        file = SimpleNamespace(write=out.write, flush=lambda: None, isatty=lambda: False, encoding=encoding)
        Console(file=file, width=width, markup=False, highlight=False).print(renderable)  # type: ignore[arg-type]
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    return draw


@dataclass
class FakeHandle:
    """One saga; a list of records is what it looks like each time it is asked."""

    id: str
    records: list[SagaRecord]
    calls: list[tuple[str, dict[str, Any]]]
    refusal: str | None = None
    plan: Plan | None = None

    def history(self) -> SagaRecord:
        return self.records.pop(0) if len(self.records) > 1 else self.records[0]

    def status(self) -> SagaState:
        return self.history().state

    def _act(self, name: str, arguments: dict[str, Any]) -> None:
        self.calls.append((name, arguments))
        if self.refusal:
            raise NotAllowed(self.refusal)

    def cancel(self, **arguments: Any) -> None:
        self._act("cancel", arguments)

    def resume(self, **arguments: Any) -> None:
        self._act("resume", arguments)

    def compensate(self, **arguments: Any) -> Plan:
        self._act("compensate", {"id": self.id, **arguments})
        return self.plan or Plan(
            self.id,
            SagaState.COMPENSATION_FAILED if arguments["dry_run"] else SagaState.COMPENSATING,
            undo=(Undoing(1, "charge_payment", "refund_payment", "its compensation failed"),),
            left=(Undoing(0, "reserve_inventory", "release_inventory", "already undone"),),
        )


@dataclass
class FakeDefinition:
    """A saga's definition."""

    calls: list[tuple[str, dict[str, Any]]]
    record: SagaRecord
    name: str = NAME
    takes_input: bool = True
    where: str = "shop/sagas.py:7"
    input_codec: Any = None

    def start(self, input: Any, **options: Any) -> FakeHandle:
        self.calls.append(("start", {"input": input, **options}))
        wanted = options.get("saga_id") or "new-id"
        return FakeHandle(wanted, [replace(self.record, id=wanted)], self.calls)


@dataclass
class FakeKit:
    """A kit with what a test puts into it, remembering what it was told to do."""

    handles: dict[str, FakeHandle] = field(default_factory=dict)
    summaries: list[SagaSummary] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    definitions: dict[str, FakeDefinition] = field(default_factory=dict)
    schema: Any = field(default_factory=lambda: SimpleNamespace(current=1, head=1, usable=True))
    applied: list[str] = field(default_factory=list)

    def add(self, *records: SagaRecord, **more: Any) -> FakeHandle:
        handle = FakeHandle(records[0].id, list(records), self.calls, **more)
        self.handles[handle.id] = handle
        return handle

    def schema_status(self) -> Any:
        return self.schema

    def migrate(self) -> list[str]:
        return self.applied

    def get(self, saga_id: str) -> FakeHandle:
        if saga_id not in self.handles:
            raise SagaNotFound(f"no saga has the id {saga_id!r}")
        return self.handles[saga_id]

    def saga_named(self, name: str) -> FakeDefinition:
        for full, definition in self.definitions.items():
            if name in (full, full.rpartition(".")[2]):
                return definition
        raise SagaNotFound(f"no saga is named {name!r}; {suggest(name, self.definitions)}")

    def find(
        self,
        *,
        states: list[SagaState] | None,
        name: str | None,
        older_than: timedelta | None,
        newer_than: timedelta | None,
        tags: dict[str, Any] | None,
        limit: int,
    ) -> list[SagaSummary]:
        asked = {
            "states": states,
            "name": name,
            "older_than": older_than,
            "newer_than": newer_than,
            "tags": tags,
        }
        self.calls.append(("find", {**asked, "limit": limit}))
        fitting = [
            summary
            for summary in self.summaries
            if (states is None or summary.state in states)
            and (name is None or summary.name == name)
            and all((summary.tags or {}).get(key) == value for key, value in (tags or {}).items())
        ]
        return fitting[:limit]

    def told(self, name: str) -> list[dict[str, Any]]:
        """The arguments of every call of this name."""
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def kit() -> FakeKit:
    return FakeKit()


Run = Callable[..., Result]


@pytest.fixture
def run(kit: FakeKit) -> Run:
    """``run("list", "--json")``: the commands over the made-up kit; what they raise unexpectedly fails the test."""

    def call(*words: str, input: str | None = None, env: dict[str, str] | None = None) -> Result:
        door = "sagakit --app shop.app"
        result = CliRunner().invoke(
            console,
            words,
            obj=Invocation(kit=kit, door=door),
            input=input,
            env=env,
            prog_name="sagakit",  # type: ignore[arg-type]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call
