"""Scores: what was measured of a variant, video by video; what running it took; what reviewers decided.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KIND = "variant_kind IN ('delta', 'base')"


def upgrade() -> None:
    """Create the tables of scores, measurements and reviews."""
    op.create_table(
        "score",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("variant_kind", sa.String(10), nullable=False),
        sa.Column("variant_id", sa.String(64), nullable=False),
        sa.Column("prompt_set", sa.String(200), nullable=True),
        sa.Column("metric_suite", sa.String(200), nullable=False),
        sa.Column("metric", sa.String(80), nullable=False),
        sa.Column("direction", sa.String(10), nullable=False),
        sa.Column("scale", sa.Text(), nullable=False),
        sa.Column("stated", sa.Double(), nullable=True),
        sa.Column("mean", sa.Double(), nullable=True),
        sa.Column("videos", sa.Integer(), nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("imported_at", sa.String(32), nullable=False),
        sa.CheckConstraint(KIND, name=op.f("ck_score_variant_kind")),
        sa.CheckConstraint("direction IN ('higher', 'lower')", name=op.f("ck_score_direction")),
        sa.PrimaryKeyConstraint("key", name="pk_score"),
        sa.UniqueConstraint("id", name="uq_score_id"),
    )
    op.create_index(
        "ix_score_of_metric",
        "score",
        ["metric", "metric_suite", "prompt_set", "variant_kind", "variant_id", "mean", "videos"],
    )
    op.create_index("ix_score_of_variant", "score", ["variant_id", "metric_suite", "metric", "prompt_set"])
    op.create_table(
        "score_video",
        sa.Column("score_key", KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("stem", sa.Text(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=True),
        sa.Column("prompt_sha256", sa.String(64), nullable=True),
        sa.Column("category", sa.String(200), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["score_key"], ["score.key"], name="fk_score_video_score_key_score", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("score_key", "position", name="pk_score_video"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "measurement",
        sa.Column("key", KEY, nullable=False),
        sa.Column("variant_kind", sa.String(10), nullable=False),
        sa.Column("variant_id", sa.String(64), nullable=False),
        sa.Column("quantity", sa.String(20), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("kernels", sa.String(10), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.CheckConstraint(KIND, name=op.f("ck_measurement_variant_kind")),
        sa.CheckConstraint("kernels IN ('real', 'simulated')", name=op.f("ck_measurement_kernels")),
        sa.CheckConstraint("value > 0", name=op.f("ck_measurement_value")),
        sa.PrimaryKeyConstraint("key", name="pk_measurement"),
    )
    op.create_index("ix_measurement_variant_id", "measurement", ["variant_id"])
    op.create_table(
        "review",
        sa.Column("key", KEY, nullable=False),
        sa.Column("variant_kind", sa.String(10), nullable=False),
        sa.Column("variant_id", sa.String(64), nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("stem", sa.Text(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("category", sa.String(200), nullable=True),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.CheckConstraint(KIND, name=op.f("ck_review_variant_kind")),
        sa.PrimaryKeyConstraint("key", name="pk_review"),
        sa.UniqueConstraint(
            "variant_id", "source_sha256", "position", name="uq_review_variant_id_source_sha256_position"
        ),
    )
