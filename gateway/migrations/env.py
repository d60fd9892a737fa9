"""Run by Alembic. The connection comes from gateway.store, which migrates at every start; there is no
alembic.ini.
"""

from __future__ import annotations

from alembic import context

from gateway.store import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
