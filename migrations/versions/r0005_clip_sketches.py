"""Sketches of clip signatures: what an audit reads of all clips before it reads a few whole.

Those of the clips that are there are computed from the stored signatures. The formula is that of
`hfq.registry.clips.sketch`, written out: a revision does for ever what it did when it was released.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 1024


def upgrade() -> None:
    """Create and fill the table of sketches."""
    op.create_table(
        "clip_sketch",
        sa.Column("clip_key", KEY, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["clip_key"], ["clip.key"], name="fk_clip_sketch_clip_key_clip", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("clip_key", name="pk_clip_sketch"),
    )
    connection = op.get_bind()
    read = sa.text("SELECT clip_key, data FROM clip_signature WHERE clip_key > :after ORDER BY clip_key LIMIT :count")
    insert = sa.text("INSERT INTO clip_sketch (clip_key, data) VALUES (:key, :data)")
    after = -(2**63)
    while rows := connection.execute(read, {"after": after, "count": BATCH}).all():
        sketches = _sketches(b"".join(row.data for row in rows))
        connection.execute(
            insert,
            [{"key": row.clip_key, "data": sketch.tobytes()} for row, sketch in zip(rows, sketches, strict=True)],
        )
        after = rows[-1].clip_key


def _sketches(signatures: bytes) -> np.ndarray:
    """int16 little-endian [n, 65] of signatures int16 [n, 8, 16, 16]: sums over 2x4x4 at unit length, and the rest."""
    values = np.frombuffer(signatures, "<i2").astype(np.float64).reshape(-1, 4, 2, 4, 4, 4, 4)
    sums = values.sum(axis=(2, 4, 6)).reshape(len(values), 64)
    squares = 32 * (values**2).sum(axis=(1, 2, 3, 4, 5, 6))
    rests = squares - (sums**2).sum(axis=1)
    lengths = np.maximum(squares, 1)  # of a blank signature everything is zero
    blocks = np.rint(sums / np.sqrt(lengths)[:, None] * 32767)
    return np.column_stack([blocks, np.ceil(np.sqrt(rests / lengths) * 32767)]).astype("<i2")
