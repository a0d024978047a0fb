"""Aliases, the event log, recipe stages as rows, and the number of kept sites on each delta.

What an older database already knows is carried over: the stages from each recipe's document, the counts from the kept
sites, and one `registered` event per delta and folder.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make deltas nameable, their history readable and their parameters searchable."""
    op.create_table(
        "alias",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("delta_key", KEY, nullable=False),
        sa.Column("set_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["delta_key"], ["delta.key"], name="fk_alias_delta_key_delta"),
        sa.PrimaryKeyConstraint("name", name="pk_alias"),
    )
    op.create_index("ix_alias_delta_key", "alias", ["delta_key"])
    op.create_table(
        "event",
        sa.Column("seq", KEY, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("delta_id", sa.String(64), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_delta_id", "event", ["delta_id"])
    op.create_table(
        "recipe_stage",
        sa.Column("recipe_key", KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("expert", sa.String(20), nullable=True),
        sa.Column("statistic", sa.String(20), nullable=True),
        sa.Column("percentile", sa.Double(), nullable=True),
        sa.Column("alpha", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["recipe_key"], ["recipe.key"], name="fk_recipe_stage_recipe_key_recipe", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recipe_key", "position", name="pk_recipe_stage"),
    )
    op.create_index("ix_recipe_stage_percentile", "recipe_stage", ["percentile"])
    _count_kept_sites()
    _fill_stages()
    _fill_events()
    _guard_events()


def _count_kept_sites() -> None:
    op.add_column("delta", sa.Column("kept", sa.Integer(), nullable=True))
    op.execute("UPDATE delta SET kept = (SELECT count(*) FROM kept_site WHERE kept_site.delta_key = delta.key)")
    with op.batch_alter_table("delta") as batch:
        batch.alter_column("kept", existing_type=sa.Integer(), nullable=False)
        batch.create_check_constraint(op.f("ck_delta_counts"), "kept >= 0 AND quantized >= 0")
        batch.create_index("ix_delta_kept", ["kept"])


def _fill_stages() -> None:
    connection = op.get_bind()
    insert = sa.text(
        "INSERT INTO recipe_stage (recipe_key, position, kind, expert, statistic, percentile, alpha) "
        "VALUES (:recipe_key, :position, :kind, :expert, :statistic, :percentile, :alpha)"
    )
    for key, document in connection.execute(sa.text("SELECT key, document FROM recipe")).all():
        for position, stage in enumerate(json.loads(document).get("stage", [])):
            row = {name: stage.get(name) for name in ("kind", "expert", "statistic", "percentile", "alpha")}
            connection.execute(insert, {"recipe_key": key, "position": position, **row})


def _fill_events() -> None:
    connection = op.get_bind()
    insert = sa.text("INSERT INTO event (at, kind, delta_id, detail) VALUES (:at, 'registered', :delta_id, :detail)")
    rows = connection.execute(
        sa.text(
            "SELECT location.registered_at, delta.id, location.folder FROM location "
            "JOIN delta ON delta.key = location.delta_key ORDER BY location.key"
        )
    ).all()
    for at, delta_id, folder in rows:
        connection.execute(insert, {"at": at, "delta_id": delta_id, "detail": json.dumps({"folder": folder})})


def _guard_events() -> None:
    """Against accidents, not against an attacker: who can write the file can drop the trigger."""
    if op.get_bind().dialect.name != "sqlite":
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER event_refuses_{verb.lower()} BEFORE {verb} ON event "
            "BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END"
        )
