"""Bases with their file witnesses, calibrations, recipes, deltas, kept sites, edges, locations.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "base",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model_type", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_base"),
        sa.UniqueConstraint("id", name="uq_base_id"),
    )
    op.create_table(
        "base_expert",
        sa.Column("key", KEY, nullable=False),
        sa.Column("base_key", KEY, nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("bf16_root", sa.String(64), nullable=False),
        sa.Column("tensors", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["base_key"], ["base.key"], name="fk_base_expert_base_key_base", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name="pk_base_expert"),
        sa.UniqueConstraint("base_key", "role", name="uq_base_expert_base_key_role"),
    )
    op.create_index("ix_base_expert_bf16_root", "base_expert", ["bf16_root"])
    op.create_table(
        "witness",
        sa.Column("key", KEY, nullable=False),
        sa.Column("expert_key", KEY, nullable=False),
        sa.Column("layout", sa.String(1000), nullable=False),
        sa.Column("exact_root", sa.String(64), nullable=False),
        sa.Column("name", sa.String(1000), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("trusted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["expert_key"], ["base_expert.key"], name="fk_witness_expert_key_base_expert", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_witness"),
        sa.UniqueConstraint(
            "expert_key", "sha256", "name", "layout", "exact_root",
            name="uq_witness_expert_key_sha256_name_layout_exact_root",
        ),
    )  # fmt: skip
    op.create_index("ix_witness_sha256", "witness", ["sha256"])
    op.create_table(
        "calibration",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_calibration"),
        sa.UniqueConstraint("id", name="uq_calibration_id"),
    )
    op.create_table(
        "calibration_prompt",
        sa.Column("calibration_key", KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["calibration_key"],
            ["calibration.key"],
            name="fk_calibration_prompt_calibration_key_calibration",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("calibration_key", "position", name="pk_calibration_prompt"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_calibration_prompt_sha256", "calibration_prompt", ["sha256"])
    op.create_table(
        "recipe",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("weight_format", sa.String(20), nullable=False),
        sa.Column("activation_format", sa.String(20), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_recipe"),
        sa.UniqueConstraint("id", name="uq_recipe_id"),
    )
    op.create_index("ix_recipe_name", "recipe", ["name"])
    op.create_table(
        "delta",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("base_key", KEY, nullable=False),
        sa.Column("recipe_key", KEY, nullable=False),
        sa.Column("calibration_key", KEY, nullable=True),
        sa.Column("state_sha256", sa.String(64), nullable=False),
        sa.Column("state_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state_tensors", sa.Integer(), nullable=False),
        sa.Column("quantized", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("registered_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["base_key"], ["base.key"], name="fk_delta_base_key_base"),
        sa.ForeignKeyConstraint(["recipe_key"], ["recipe.key"], name="fk_delta_recipe_key_recipe"),
        sa.ForeignKeyConstraint(["calibration_key"], ["calibration.key"], name="fk_delta_calibration_key_calibration"),
        sa.PrimaryKeyConstraint("key", name="pk_delta"),
        sa.UniqueConstraint("id", name="uq_delta_id"),
    )
    op.create_index("ix_delta_base_key", "delta", ["base_key"])
    op.create_index("ix_delta_recipe_key", "delta", ["recipe_key"])
    op.create_index("ix_delta_calibration_key", "delta", ["calibration_key"])
    op.create_table(
        "kept_site",
        sa.Column("delta_key", KEY, nullable=False),
        sa.Column("expert", sa.String(20), nullable=False),
        sa.Column("site", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(800), nullable=False),
        sa.ForeignKeyConstraint(["delta_key"], ["delta.key"], name="fk_kept_site_delta_key_delta", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("delta_key", "expert", "site", name="pk_kept_site"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_kept_site_site", "kept_site", ["site"])
    op.create_table(
        "edge",
        sa.Column("child_id", sa.String(64), nullable=False),
        sa.Column("relation", sa.String(30), nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=False),
        sa.Column("child_kind", sa.String(20), nullable=False),
        sa.Column("parent_kind", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("child_id", "relation", "parent_id", name="pk_edge"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_edge_parent_id", "edge", ["parent_id"])
    op.create_table(
        "location",
        sa.Column("key", KEY, nullable=False),
        sa.Column("delta_key", KEY, nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("registered_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["delta_key"], ["delta.key"], name="fk_location_delta_key_delta", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name="pk_location"),
        sa.UniqueConstraint("folder", name="uq_location_folder"),
    )
    op.create_index("ix_location_delta_key", "location", ["delta_key"])
