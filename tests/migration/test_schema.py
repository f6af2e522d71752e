"""The schema's versions: upgrade, check, require, and living beside an application's own tables."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from sagakit.errors import SchemaMismatch
from sagakit.store import Store, schema
from sagakit.store.schema import Fit
from sagakit.store.tables import Tables


@contextmanager
def fresh(url: str, **options: str) -> Iterator[Store]:
    """A store that is disposed of at the end."""
    store = Store(url, **options)  # type: ignore[arg-type]
    yield store
    store.dispose()


def set_version(store: Store, version: str) -> None:
    """Pretend that another version of sagakit has migrated the database."""
    with store.begin() as tx:
        table = sa.table(store.tables.version_table, sa.column("version_num"), schema=store.tables.schema)
        tx.connection.execute(sa.update(table).values(version_num=version))


# --- upgrade ---


def test_upgrade_applies_what_is_missing(store: Store) -> None:
    """An empty database gets every revision, a second upgrade has nothing to do."""
    assert schema.check(store).fit is Fit.MISSING
    assert schema.upgrade(store) == ["0001"]
    assert schema.upgrade(store) == []
    assert schema.check(store) == schema.SchemaStatus(current=schema.HEAD, head=schema.HEAD)
    assert schema.check(store).fit is Fit.OK


def test_upgraded_database_is_the_metadata(store: Store) -> None:
    """Alembic finds no difference between the migrations' result and the tables that the code declares."""
    schema.upgrade(store)
    with store.begin() as tx:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda _o, name, type_, *_: (
                type_ != "table" or name != store.tables.version_table
            ),
        }
        context = MigrationContext.configure(tx.connection, opts=options)
        assert compare_metadata(context, store.tables.metadata) == []


def described(store: Store) -> dict[str, str]:
    """Every table, column, constraint and index of a database, in the database's own words."""
    if store.dialect.name == "sqlite":
        query = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%'"
    else:
        query = """
            SELECT 'column ' || table_name || '.' || column_name,
                   concat_ws(' ', data_type, is_nullable, column_default, ordinal_position)
              FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE '%alembic%'
            UNION ALL
            SELECT 'constraint ' || conname, pg_get_constraintdef(oid) FROM pg_constraint
             WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE '%alembic%'
            UNION ALL
            SELECT 'index ' || indexname, indexdef FROM pg_indexes
             WHERE schemaname = 'public' AND indexname NOT LIKE '%alembic%'
        """
    with store.read() as tx:
        rows = tx.connection.execute(sa.text(query)).all()
    return {name: _normalised(sql or "") for name, sql in rows}


def _normalised(sql: str) -> str:
    if not sql.startswith("CREATE TABLE"):
        return " ".join(sql.split())
    # The order of a table's constraints means nothing.
    return " ".join(sorted(re.split(r",\s*\n", sql.strip().rstrip(")").strip())))


def test_upgraded_database_is_the_metadata_to_the_letter(store: Store) -> None:
    """Checks and the predicates of indexes, which Alembic does not compare, are the same as well."""
    schema.upgrade(store)
    migrated = described(store)
    with store.begin() as tx:
        store.tables.metadata.drop_all(tx.connection)
    with store.begin() as tx:
        store.tables.metadata.create_all(tx.connection)
    assert migrated == described(store)
    assert len(migrated) > 15


@pytest.mark.postgres
def test_rows_have_room_for_updates(postgres_url: str) -> None:
    """The tables whose rows are updated again and again leave room for that on each page."""
    options = "SELECT relname FROM pg_class WHERE reloptions = '{fillfactor=85}' ORDER BY relname"
    with fresh(postgres_url, schema="sagas", prefix="x_") as store:
        schema.upgrade(store)
        with store.read() as tx:
            found = tx.connection.execute(sa.text(options)).scalars().all()
    assert found == ["x_saga", "x_saga_step"]


def test_failed_upgrade_leaves_nothing(store: Store) -> None:
    """An upgrade that fails half-way is undone as a whole and can be run again."""
    with store.begin() as tx:
        tx.connection.execute(sa.text("CREATE TABLE saga_audit (x INTEGER)"))
    with pytest.raises(sa.exc.DBAPIError):
        schema.upgrade(store)
    assert schema.check(store).fit is Fit.MISSING
    with store.begin() as tx:
        assert sa.inspect(tx.connection).get_table_names() == ["saga_audit"]
        tx.connection.execute(sa.text("DROP TABLE saga_audit"))
    assert schema.upgrade(store) == ["0001"]


def test_upgrades_at_once(url: str) -> None:
    """Of several upgrades that run at once, one does the work and the others find it done."""
    barrier = threading.Barrier(4)

    def run(_: int) -> list[str]:
        with fresh(url) as store:
            store.engine.connect().close()
            barrier.wait(10)
            return schema.upgrade(store)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(run, range(4))) == [[], [], [], ["0001"]]


@pytest.mark.postgres
def test_upgrade_does_not_wait_long_for_tables(postgres_url: str) -> None:
    """Other upgrades are waited for without a limit, then DDL gives up rather than hold up an application."""
    with fresh(postgres_url) as store:
        seen: list[str] = []
        sa.event.listen(store.engine, "before_cursor_execute", lambda _c, _cur, sql, *_: seen.append(sql))
        schema.upgrade(store)
    lock = next(n for n, sql in enumerate(seen) if "pg_advisory_xact_lock" in sql)
    limit = next(n for n, sql in enumerate(seen) if "SET LOCAL lock_timeout" in sql)
    create = next(n for n, sql in enumerate(seen) if "CREATE TABLE" in sql)
    assert lock < limit < create


# --- prefix and schema ---


def test_prefixed_ledgers_side_by_side(url: str) -> None:
    """Ledgers with different prefixes live in one database, each with its own version and id."""
    ids = set()
    for prefix in ("", "shop_", "a_prefix_of_20_chars"):
        with fresh(url, prefix=prefix) as store:
            assert schema.upgrade(store) == ["0001"]
            with store.begin() as tx:
                ids.add(tx.queries.ledger_id())
                assert store.tables.names <= set(sa.inspect(tx.connection).get_table_names())
    assert len(ids) == 3


@pytest.mark.postgres
def test_ledger_in_a_schema_of_its_own(postgres_url: str) -> None:
    """A configured schema is made if it is missing; the search path is left alone."""
    with fresh(postgres_url, schema="my-sagas") as store:
        assert schema.upgrade(store) == ["0001"]
        assert schema.require(store).usable
        with store.begin() as tx:
            tx.workers.remove("w")
            inspector = sa.inspect(tx.connection)
            assert inspector.get_table_names(schema="public") == []
            assert set(inspector.get_table_names(schema="my-sagas")) == store.tables.names
    with fresh(postgres_url) as store:
        assert schema.check(store).fit is Fit.MISSING


def test_names_fit_into_postgres() -> None:
    """With the longest prefix, no name is longer than Postgres keeps."""
    tables = Tables(prefix="x" * 20)
    names = set(tables.names)
    for table in tables.metadata.tables.values():
        names |= {str(index.name) for index in table.indexes}
        names |= {str(constraint.name) for constraint in table.constraints}
    assert max(map(len, names)) <= 63


# --- check and require ---


def test_require(store: Store) -> None:
    """A missing ledger is refused with the command to run; a fitting one is accepted."""
    with pytest.raises(SchemaMismatch, match=r"sagakit --app APP migrate.*celery -A APP saga migrate"):
        schema.require(store)
    schema.upgrade(store)
    assert schema.require(store).fit is Fit.OK


@pytest.mark.parametrize(
    ("ahead", "fit"), [(-1, Fit.BEHIND), (0, Fit.OK), (1, Fit.AHEAD_BY_ONE), (2, Fit.AHEAD)]
)
def test_versions_that_differ(store: Store, ahead: int, fit: Fit) -> None:
    """Code accepts a schema one version ahead of it, as during a deploy, and no other difference."""
    schema.upgrade(store)
    set_version(store, f"{schema.HEAD + ahead:04}")
    status = schema.check(store)
    assert (status.fit, status.current, status.head) == (fit, schema.HEAD + ahead, schema.HEAD)
    if fit in (Fit.OK, Fit.AHEAD_BY_ONE):
        assert schema.require(store) == status
        return
    with pytest.raises(SchemaMismatch, match="migrate" if fit is Fit.BEHIND else "newer sagakit"):
        schema.require(store)


def test_old_code_does_not_migrate_a_newer_database(store: Store) -> None:
    """One version ahead there is nothing to do; further ahead the old code says so instead of failing obscurely."""
    schema.upgrade(store)
    set_version(store, f"{schema.HEAD + 1:04}")
    assert schema.upgrade(store) == []
    set_version(store, f"{schema.HEAD + 2:04}")
    with pytest.raises(SchemaMismatch, match="newer sagakit"):
        schema.upgrade(store)


def test_head_is_the_newest_revision() -> None:
    """Revisions are numbered without gaps, each on the one before, and the code knows the newest."""
    config = Config()
    config.set_main_option("script_location", "sagakit.store:migrations")
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    revisions = [revision.revision for revision in reversed(list(script.walk_revisions()))]
    assert revisions == [f"{n:04}" for n in range(1, schema.HEAD + 1)]


# --- an application's own migrations ---


def application() -> sa.MetaData:
    """An application's tables, one of them in the database already."""
    metadata = sa.MetaData()
    sa.Table("customer", metadata, sa.Column("id", sa.Integer, primary_key=True))
    return metadata


def changes(store: Store, include: object) -> list[str]:
    """What autogenerate would do to the database for the application."""
    with store.begin() as tx:
        context = MigrationContext.configure(tx.connection, opts={"include_object": include})
        found = compare_metadata(context, application())
    return [f"{change[0]} {change[1].name}" for change in found]


@pytest.mark.parametrize("prefix", ["", "shop_"])
def test_autogenerate_leaves_the_ledger_alone(url: str, prefix: str) -> None:
    """With our filter an application's autogenerate sees its own tables only; without it, it would drop ours."""
    with fresh(url, prefix=prefix) as store:
        schema.upgrade(store)
        assert f"remove_table {prefix}saga_step" in changes(store, lambda *_: True)
        assert changes(store, schema.include_object_for(prefix=prefix)) == ["add_table customer"]
        if not prefix:
            assert changes(store, schema.include_object) == ["add_table customer"]


def test_filter_can_be_held_to_a_schema() -> None:
    """An application may have a table called `saga` itself, in another schema."""
    include = schema.include_object_for(schema="sagas")
    for name, expected in (("sagas", False), ("public", True)):
        table = sa.Table("saga", sa.MetaData(), sa.Column("id", sa.Integer), sa.Index("i", "id"), schema=name)
        assert include(table, "saga", "table", True, None) is expected
        assert include(next(iter(table.indexes)), "i", "index", True, None) is expected
    other = sa.Table("customer", sa.MetaData(), schema="sagas")
    assert include(other, "customer", "table", True, None)
