"""The tables of scores, measurements and reviews.

A variant is a delta or a base, by content id, as for clips: no foreign key, because an export of scores may arrive
before its delta. An index named after a query holds every column that the query reads.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .models import Table

__all__ = ["Measured", "Review", "Score", "ScoreVideo", "Table"]

_Key = BigInteger().with_variant(Integer(), "sqlite")  # as in models.py
_Digest = String(64)
_KIND = "variant_kind IN ('delta', 'base')"


class Score(Table):
    """One metric of one import. `id` is the SHA-256 over everything that was imported, videos and settings included.

    `mean` and `videos` repeat what `score_video` says, so that a table of many variants reads an index alone.
    `settings` is canonical JSON: how the clips were generated.
    """

    __tablename__ = "score"
    __table_args__ = (
        CheckConstraint(_KIND, name="variant_kind"),
        CheckConstraint("direction IN ('higher', 'lower')", name="direction"),
        Index("ix_score_of_metric", "metric", "metric_suite", "prompt_set", "variant_kind", "variant_id", "mean",
              "videos"),
        Index("ix_score_of_variant", "variant_id", "metric_suite", "metric", "prompt_set"),
    )  # fmt: skip
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    variant_kind: Mapped[str] = mapped_column(String(10))
    variant_id: Mapped[str] = mapped_column(_Digest)
    prompt_set: Mapped[str | None] = mapped_column(String(200))
    metric_suite: Mapped[str] = mapped_column(String(200))
    metric: Mapped[str] = mapped_column(String(80))
    direction: Mapped[str] = mapped_column(String(10))
    scale: Mapped[str] = mapped_column(Text)
    stated: Mapped[float | None] = mapped_column(Double())
    mean: Mapped[float | None] = mapped_column(Double())
    videos: Mapped[int] = mapped_column(Integer)
    source_sha256: Mapped[str] = mapped_column(_Digest)
    settings: Mapped[str] = mapped_column(Text)
    imported_at: Mapped[str] = mapped_column(String(32))


class ScoreVideo(Table):
    """One video of a score, in the file's order; without `value`, one that the file names and does not score."""

    __tablename__ = "score_video"
    __table_args__ = ({"sqlite_with_rowid": False},)
    score_key: Mapped[int] = mapped_column(_Key, ForeignKey("score.key", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    stem: Mapped[str] = mapped_column(Text)
    sample: Mapped[int | None] = mapped_column(Integer)
    prompt_sha256: Mapped[str | None] = mapped_column(_Digest)
    category: Mapped[str | None] = mapped_column(String(200))
    value: Mapped[float | None] = mapped_column(Double())


class Measured(Table):
    """What running a variant took, once; `settings` is canonical JSON. The unit follows from the quantity."""

    __tablename__ = "measurement"
    __table_args__ = (
        CheckConstraint(_KIND, name="variant_kind"),
        CheckConstraint("kernels IN ('real', 'simulated')", name="kernels"),
        CheckConstraint("value > 0", name="value"),
    )
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    variant_kind: Mapped[str] = mapped_column(String(10))
    variant_id: Mapped[str] = mapped_column(_Digest, index=True)
    quantity: Mapped[str] = mapped_column(String(20))
    value: Mapped[float] = mapped_column(Double())
    device: Mapped[str] = mapped_column(String(200))
    kernels: Mapped[str] = mapped_column(String(10))
    settings: Mapped[str] = mapped_column(Text)
    recorded_at: Mapped[str] = mapped_column(String(32))


class Review(Table):
    """What one person decided about one clip of a variant: a line of a file of outcomes."""

    __tablename__ = "review"
    __table_args__ = (
        UniqueConstraint("variant_id", "source_sha256", "position"),
        CheckConstraint(_KIND, name="variant_kind"),
    )
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    variant_kind: Mapped[str] = mapped_column(String(10))
    variant_id: Mapped[str] = mapped_column(_Digest)
    source_sha256: Mapped[str] = mapped_column(_Digest)
    position: Mapped[int] = mapped_column(Integer)
    stem: Mapped[str] = mapped_column(Text)
    accepted: Mapped[bool]
    category: Mapped[str | None] = mapped_column(String(200))
    recorded_at: Mapped[str] = mapped_column(String(32))
