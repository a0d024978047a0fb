"""Clips: which file shows what, made by which variant, and how it can be recognised.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables of clips."""
    op.create_table(
        "clip",
        sa.Column("key", KEY, nullable=False),
        sa.Column("file_sha256", sa.String(64), nullable=False),
        sa.Column("stream_sha256", sa.String(64), nullable=False),
        sa.Column("variant_kind", sa.String(10), nullable=False),
        sa.Column("variant_id", sa.String(64), nullable=False),
        sa.Column("scene", sa.String(100), nullable=True),
        sa.Column("name", sa.String(1000), nullable=False),
        sa.Column("container", sa.String(20), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.CheckConstraint("variant_kind IN ('delta', 'base')", name=op.f("ck_clip_variant_kind")),
        sa.PrimaryKeyConstraint("key", name="pk_clip"),
        sa.UniqueConstraint("file_sha256", "variant_id", name="uq_clip_file_sha256_variant_id"),
    )
    op.create_index("ix_clip_stream_sha256", "clip", ["stream_sha256"])
    op.create_index("ix_clip_variant_id", "clip", ["variant_id"])
    op.create_index("ix_clip_scene", "clip", ["scene"])
    op.create_table(
        "clip_signature",
        sa.Column("clip_key", KEY, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["clip_key"], ["clip.key"], name="fk_clip_signature_clip_key_clip", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("clip_key", name="pk_clip_signature"),
    )
