"""Whose the measured clips of a score are.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the table; of scores that are older nobody counted the clips."""
    op.create_table(
        "score_clips",
        sa.Column("score_key", KEY, nullable=False),
        sa.Column("clips", sa.Integer(), nullable=False),
        sa.Column("claimed", sa.Integer(), nullable=False),
        sa.Column("registered", sa.Integer(), nullable=False),
        sa.Column("unknown", sa.Integer(), nullable=False),
        sa.Column("identical", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["score_key"], ["score.key"], name="fk_score_clips_score_key_score", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("score_key", name="pk_score_clips"),
    )
