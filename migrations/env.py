"""Alembic's entry: run on the connection, and inside the transaction, that the caller has opened.

The caller passes `connection` (and, to compare models with the database, `target_metadata`) in `Config.attributes`. The
connection must have foreign_keys OFF: a batch operation rebuilds a table by dropping it, and with the pragma ON SQLite
then deletes the rows of every ON DELETE CASCADE child.
"""

from __future__ import annotations

from alembic import context

from hfq.migrations import VERSION_TABLE


def run() -> None:
    """Run the requested revisions."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        target_metadata=attributes.get("target_metadata"),
        version_table=VERSION_TABLE,
        render_as_batch=True,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
