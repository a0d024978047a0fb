"""The tables of scores, measurements and reviews, and of the imports that they came with.

A variant is a delta or a base, by content id, as for clips: no foreign key, because an export of scores may arrive
before its delta. An index named after a query holds every column that the query reads.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .models import Table

__all__ = [
    "Measured",
    "Review",
    "Score",
    "ScoreClips",
    "ScoreImport",
    "ScoreImportItem",
    "ScoreSettings",
    "ScoreVideo",
    "Table",
]

_Key = BigInteger().with_variant(Integer(), "sqlite")  # as in models.py
_Digest = String(64)
_KIND = "variant_kind IN ('delta', 'base')"


class ScoreSettings(Table):
    """How clips were generated, as canonical JSON; a whole suite of many variants shares one."""

    __tablename__ = "score_settings"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    document: Mapped[str] = mapped_column(Text, unique=True)


class ScoreImport(Table):
    """One act of recording: scores, what running took, or outcomes of reviewers. What came last and is not withdrawn
    counts; see `score_imports`.

    `id`: see `score_imports.import_id`. The variant is the one that was scored; the items of measured clips hold the
    scores of its base as well.
    """

    __tablename__ = "score_import"
    __table_args__ = (
        CheckConstraint("kind IN ('scores', 'cost', 'review')", name="kind"),
        CheckConstraint(_KIND, name="variant_kind"),
        CheckConstraint("(withdrawn_at IS NULL) = (reason IS NULL)", name="withdrawn"),
    )
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)
    kind: Mapped[str] = mapped_column(String(10))
    variant_kind: Mapped[str] = mapped_column(String(10))
    variant_id: Mapped[str] = mapped_column(_Digest, index=True)
    imported_at: Mapped[str] = mapped_column(String(32))
    withdrawn_at: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)


class ScoreImportItem(Table):
    """A score of an import; the same scores imported again are the same rows under a new import."""

    __tablename__ = "score_import_item"
    __table_args__ = ({"sqlite_with_rowid": False},)
    import_key: Mapped[int] = mapped_column(_Key, ForeignKey("score_import.key", ondelete="CASCADE"), primary_key=True)
    score_key: Mapped[int] = mapped_column(
        _Key, ForeignKey("score.key", ondelete="CASCADE"), primary_key=True, index=True
    )


class Score(Table):
    """One metric of a variant. `id` is the SHA-256 over everything that was imported, videos and settings included.

    `mean`, `videos` and `prompts_sha256` repeat what `score_video` says, so that a leaderboard reads none of it.
    `prompts_sha256`: SHA-256 over the sorted prompt hashes of the scored videos, `-` where there is none, joined by LF;
    equal prompts are known by it. `base_key`: the base that the variant is or is bound to, NULL until it is registered.
    `counts`: whether it is of the last import, that is not withdrawn, of this metric of the variant on this prompt set.
    """

    __tablename__ = "score"
    __table_args__ = (
        CheckConstraint(_KIND, name="variant_kind"),
        CheckConstraint("direction IN ('higher', 'lower')", name="direction"),
        Index("ix_score_of_base", "metric", "base_key", "counts", "metric_suite", "prompt_set", "direction",
              "settings_key", "mean"),
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
    prompts_sha256: Mapped[str] = mapped_column(_Digest)
    settings_key: Mapped[int] = mapped_column(_Key, ForeignKey("score_settings.key"))
    base_key: Mapped[int | None] = mapped_column(_Key, ForeignKey("base.key"))
    counts: Mapped[bool]
    imported_at: Mapped[str] = mapped_column(String(32))
    settings: Mapped[ScoreSettings] = relationship()
    clips: Mapped[ScoreClips | None] = relationship()


class ScoreClips(Table):
    """Whose the clips of a measured score are; see `scores.origin.ClipOrigin`. Scores of other suites have no row."""

    __tablename__ = "score_clips"
    score_key: Mapped[int] = mapped_column(_Key, ForeignKey("score.key", ondelete="CASCADE"), primary_key=True)
    clips: Mapped[int] = mapped_column(Integer)
    claimed: Mapped[int] = mapped_column(Integer)
    registered: Mapped[int] = mapped_column(Integer)
    unknown: Mapped[int] = mapped_column(Integer)
    identical: Mapped[int] = mapped_column(Integer)


class ScoreVideo(Table):
    """One video of a score, in the file's order; without `value`, one that the file names and does not score.

    `seed`: of the clip's noise, where the clip or the registry says it.
    """

    __tablename__ = "score_video"
    __table_args__ = ({"sqlite_with_rowid": False},)
    score_key: Mapped[int] = mapped_column(_Key, ForeignKey("score.key", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    stem: Mapped[str] = mapped_column(Text)
    sample: Mapped[int | None] = mapped_column(Integer)
    prompt_sha256: Mapped[str | None] = mapped_column(_Digest)
    category: Mapped[str | None] = mapped_column(String(200))
    value: Mapped[float | None] = mapped_column(Double())
    seed: Mapped[int | None] = mapped_column(BigInteger)


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
    import_key: Mapped[int] = mapped_column(_Key, ForeignKey("score_import.key"), index=True)


class Review(Table):
    """What one person decided about one clip of a variant: a line of a file of outcomes."""

    __tablename__ = "review"
    __table_args__ = (
        UniqueConstraint("import_key", "position"),
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
    import_key: Mapped[int] = mapped_column(_Key, ForeignKey("score_import.key"))
