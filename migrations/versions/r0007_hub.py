"""Where deltas and bases lie on the Hub.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables; pushes and pulls before this revision stay in the history, which does not say which Hub."""
    op.create_table(
        "hub_copy",
        sa.Column("key", KEY, nullable=False),
        sa.Column("delta_key", KEY, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("repo", sa.String(200), nullable=False),
        sa.Column("commit", sa.String(40), nullable=False),
        sa.Column("tag", sa.String(200), nullable=True),
        sa.Column("how", sa.String(20), nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.CheckConstraint("how IN ('pushed', 'pulled', 'registered')", name=op.f("ck_hub_copy_how")),
        sa.ForeignKeyConstraint(["delta_key"], ["delta.key"], name="fk_hub_copy_delta_key_delta", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name="pk_hub_copy"),
        sa.UniqueConstraint(
            "delta_key", "endpoint", "repo", "commit", name="uq_hub_copy_delta_key_endpoint_repo_commit"
        ),
    )
    op.create_table(
        "hub_file",
        sa.Column("key", KEY, nullable=False),
        sa.Column("expert_key", KEY, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("repo", sa.String(200), nullable=False),
        sa.Column("commit", sa.String(40), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("tied_at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(
            ["expert_key"], ["base_expert.key"], name="fk_hub_file_expert_key_base_expert", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_hub_file"),
        sa.UniqueConstraint(
            "expert_key", "sha256", "endpoint", "repo", "commit",
            name="uq_hub_file_expert_key_sha256_endpoint_repo_commit",
        ),
    )  # fmt: skip
    op.create_index("ix_hub_file_sha256", "hub_file", ["sha256"])
