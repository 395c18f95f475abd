"""Runs the revisions on the connection that `registry.ledger.database` hands over, in its transaction."""

from alembic import context

from registry.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
