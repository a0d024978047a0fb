"""The tables of what deltas were selected on: analyses, their prompts, and which delta used which.

A delta that was registered before these tables existed has no `delta_selection` row, and nobody knows its selection
prompts until its folder is registered again.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from .score_models import Table

__all__ = ["Analysis", "AnalysisPrompt", "DeltaSelection", "Table"]

_Key = BigInteger().with_variant(Integer(), "sqlite")  # as in models.py
_Digest = String(64)


class Analysis(Table):
    """An analysis whose scores decided what a delta keeps, by identity; many deltas share one."""

    __tablename__ = "analysis"
    key: Mapped[int] = mapped_column(_Key, primary_key=True)
    id: Mapped[str] = mapped_column(_Digest, unique=True)


class AnalysisPrompt(Table):
    """The SHA-256 of one prompt of an analysis."""

    __tablename__ = "analysis_prompt"
    __table_args__ = ({"sqlite_with_rowid": False},)
    analysis_key: Mapped[int] = mapped_column(_Key, ForeignKey("analysis.key", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    sha256: Mapped[str] = mapped_column(_Digest)


class DeltaSelection(Table):
    """What a delta was selected on; without `analysis_key`, on no prompt. No row: not known."""

    __tablename__ = "delta_selection"
    delta_key: Mapped[int] = mapped_column(_Key, ForeignKey("delta.key", ondelete="CASCADE"), primary_key=True)
    analysis_key: Mapped[int | None] = mapped_column(_Key, ForeignKey("analysis.key"))
