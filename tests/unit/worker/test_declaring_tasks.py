"""Steps and sagas beside the app's own tasks, and what is said to those who use them as Celery's."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from pydantic import BaseModel
from sqlalchemy.orm import Session

from sagakit import Saga, SagaKit
from sagakit.errors import DefinitionError, InvalidInput, SchemaMismatch, UnknownOption, UseAStep

SECRET = "swordfish"


class Loan(BaseModel):
    """What is lent."""

    book: str


class Library(SagaKit):
    """A kit on an SQLite file without tables, with one saga, beside a task of the app's own."""

    def __init__(self, url: str) -> None:
        super().__init__(Celery("library", broker="memory://", set_as_current=False), database_url=url)

        @self.app.task(name="library.remind", shared=False)
        def remind() -> None: ...

        @self.saga
        async def lend(saga: Saga, loan: Loan) -> None:
            """A saga."""

        self.lend = lend


@pytest.fixture
def url(tmp_path: Path) -> str:
    """URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'bare.db'}"


@pytest.fixture
def kit(url: str) -> Iterator[Library]:
    """The kit; nothing of it reaches a broker or finds a ledger."""
    found = Library(url)
    yield found
    found.store.dispose()


def declare_step(kit: SagaKit) -> None:
    @kit.step(name="library.remind")
    def call_up() -> None: ...


def declare_saga(kit: SagaKit) -> None:
    @kit.saga(name="library.remind")
    async def call_up(saga: Saga) -> None: ...


def boot(kit: SagaKit, declare: Callable[[SagaKit], None]) -> None:
    """Import the module and start, as a worker does."""
    declare(kit)
    kit.app.finalize()
    kit.require_schema()


@pytest.mark.parametrize("declare", [declare_step, declare_saga])
@pytest.mark.parametrize("finalized", [False, True], ids=["before", "after"])
def test_a_name_that_a_task_has(kit: Library, declare: Callable[[SagaKit], None], finalized: bool) -> None:
    """The error names the place of the definition, and the task with its module."""
    if finalized:
        kit.app.finalize()
    with pytest.raises(DefinitionError) as caught:
        boot(kit, declare)
    message = str(caught.value)
    assert message.startswith(f"{__file__}:")
    assert f"the app has a Celery task named 'library.remind' already ({__name__})" in message
    assert message.endswith("remove it, or give one of them another name=...")


def test_one_that_is_refused_leaves_the_others_alone(kit: Library) -> None:
    """What is declared after it has its task, and whoever asks for any task hears of it."""
    declare_step(kit)

    @kit.step(name="library.later")
    def later() -> None: ...

    kit.app.finalize()
    assert "library.later" in kit.app.tasks
    with pytest.raises(DefinitionError, match=r"library\.remind"):
        kit.lend.delay(Loan(book="x"))


def test_a_saga_is_not_called(kit: Library) -> None:
    """What is called like a function is told how it is started."""
    with pytest.raises(UseAStep, match=r"^lend is a saga: start it with \.start\(input\)"):
        kit.lend(Loan(book="x"))


@pytest.mark.parametrize("option", ["countdown", "eta"])
@pytest.mark.parametrize(
    "start",
    [
        lambda kit, given: kit.start(kit.lend, Loan(book="x"), **given),
        lambda kit, given: kit.lend.start_many([Loan(book="x")], **given),
        lambda kit, given: kit.lend.apply_async((Loan(book="x"),), **given),
        lambda kit, given: kit.lend.s(Loan(book="x")).apply_async(**given),
        lambda kit, given: kit.lend.s(Loan(book="x")).set(**given).delay(),
    ],
    ids=["kit.start", "start_many", "apply_async", "signature", "signature.set"],
)
def test_a_start_that_is_put_off(kit: Library, start: Callable[..., Any], option: str) -> None:
    """A saga that is to wait sleeps, durably."""
    with pytest.raises(InvalidInput, match=rf"no option '{option}'; .*`await asyncio\.sleep\(\.\.\.\)`"):
        start(kit, {option: 5})


def test_start_itself_says_it_too(kit: Library) -> None:
    """``start`` names its options one by one, and still tells the way out of one it lacks."""
    with pytest.raises((InvalidInput, TypeError), match=r"asyncio\.sleep"):
        kit.lend.start(Loan(book="x"), countdown=5)  # type: ignore[call-arg]


def test_an_option_of_celery_s_tasks(kit: Library) -> None:
    """What Celery can set is set through Celery."""
    with pytest.raises(UnknownOption, match=r"'rate_limit'; .*base=\.\.\., or through task_annotations$"):
        kit.step(rate_limit="1/s")(print)


def test_no_tables(kit: Library) -> None:
    """A start names the command that makes them, and shows no input."""
    with pytest.raises(SchemaMismatch, match=r"run `sagakit --app APP migrate`") as caught:
        kit.lend.start(Loan(book=SECRET))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_no_tables_in_a_session(kit: Library, url: str) -> None:
    """Nor does one in the caller's transaction, whose engine shows parameters."""
    engine = sa.create_engine(url)
    with Session(engine) as session, pytest.raises(SchemaMismatch, match="migrate") as caught:
        kit.lend.start(Loan(book=SECRET), session=session)
    engine.dispose()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
