"""Alembic's environment: runs on the connection and for the tables that ``sagakit.store.schema`` passes."""

from alembic import context

tables = context.config.attributes["tables"]
applied: list[str] = context.config.attributes["applied"]

# The transaction is the caller's: the upgrade's lock, its DDL and its version row end together.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.version_table,
    version_table_schema=tables.schema,
    transactional_ddl=True,
    on_version_apply=lambda step, **_: applied.append(step.up_revision_id),
    sagakit_schema=tables.schema,
    sagakit_prefix=tables.prefix,
)
with context.begin_transaction():
    context.run_migrations()
