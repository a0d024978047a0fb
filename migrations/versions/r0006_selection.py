"""Selection prompts of deltas; settings once, the base and the score that counts, for leaderboards.

Selection prompts of deltas that are registered already stay unknown: their folders are not read by a migration.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import hashlib
from itertools import groupby

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

BASES = (
    "UPDATE score SET base_key = (SELECT base.key FROM base WHERE base.id = score.variant_id) "
    "WHERE variant_kind = 'base'",
    "UPDATE score SET base_key = (SELECT delta.base_key FROM delta WHERE delta.id = score.variant_id) "
    "WHERE variant_kind = 'delta'",
)
SUPERSEDED = """UPDATE score SET superseded_by = (
    SELECT min(later.key) FROM score AS later WHERE later.variant_id = score.variant_id
    AND later.metric_suite = score.metric_suite AND later.metric = score.metric AND later.key > score.key
    AND (later.prompt_set = score.prompt_set OR (later.prompt_set IS NULL AND score.prompt_set IS NULL)))"""


def upgrade() -> None:
    """Create the tables of selections; move settings out of the scores and say which scores count."""
    op.create_table(
        "analysis",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_analysis"),
        sa.UniqueConstraint("id", name="uq_analysis_id"),
    )
    op.create_table(
        "analysis_prompt",
        sa.Column("analysis_key", KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["analysis_key"], ["analysis.key"], name="fk_analysis_prompt_analysis_key_analysis", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("analysis_key", "position", name="pk_analysis_prompt"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "delta_selection",
        sa.Column("delta_key", KEY, nullable=False),
        sa.Column("analysis_key", KEY, nullable=True),
        sa.ForeignKeyConstraint(
            ["delta_key"], ["delta.key"], name="fk_delta_selection_delta_key_delta", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["analysis_key"], ["analysis.key"], name="fk_delta_selection_analysis_key_analysis"),
        sa.PrimaryKeyConstraint("delta_key", name="pk_delta_selection"),
    )
    op.create_table(
        "score_settings",
        sa.Column("key", KEY, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_score_settings"),
        sa.UniqueConstraint("document", name="uq_score_settings_document"),
    )
    _extend_scores()


def _extend_scores() -> None:
    for name in ("settings_key", "base_key", "superseded_by"):
        op.add_column("score", sa.Column(name, KEY, nullable=True))
    op.add_column("score", sa.Column("prompts_sha256", sa.String(64), nullable=True))
    op.execute("INSERT INTO score_settings (document) SELECT settings FROM score GROUP BY settings ORDER BY min(key)")
    op.execute(
        "UPDATE score SET settings_key = "
        "(SELECT score_settings.key FROM score_settings WHERE score_settings.document = score.settings)"
    )
    for statement in (*BASES, SUPERSEDED):
        op.execute(statement)
    _digest_prompts()
    op.drop_index("ix_score_of_metric", "score")
    with op.batch_alter_table("score") as batch:
        batch.drop_column("settings")
        batch.alter_column("settings_key", existing_type=KEY, nullable=False)
        batch.alter_column("prompts_sha256", existing_type=sa.String(64), nullable=False)
        for name, table in (("settings_key", "score_settings"), ("base_key", "base"), ("superseded_by", "score")):
            batch.create_foreign_key(f"fk_score_{name}_{table}", table, [name], ["key"])
    op.create_index(
        "ix_score_of_base",
        "score",
        [
            "metric", "base_key", "superseded_by", "metric_suite", "prompt_set", "direction", "settings_key", "mean",
        ],
    )  # fmt: skip


def _digest_prompts() -> None:
    """A score without a scored video has the digest of no line."""
    connection = op.get_bind()
    update = sa.text("UPDATE score SET prompts_sha256 = :digest WHERE key = :key")
    connection.execute(sa.text("UPDATE score SET prompts_sha256 = :digest"), {"digest": _sha256(())})
    videos = connection.execute(
        sa.text(
            "SELECT score_key, coalesce(prompt_sha256, '-') FROM score_video WHERE value IS NOT NULL "
            "ORDER BY score_key, position"
        )
    )
    for key, group in groupby(videos, key=lambda row: row[0]):
        connection.execute(update, {"key": key, "digest": _sha256(tuple(row[1] for row in group))})


def _sha256(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(sorted(prompts)).encode()).hexdigest()
