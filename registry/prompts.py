"""Prompts that deltas were made with: those of the calibration and those of the selection."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import DigestMismatchError, UnknownIdError

from .clips.clip_document import Variant
from .folder import DeltaFacts
from .models import Delta
from .records import calibration_prompts
from .scores.overlap import find_overlap
from .selection_models import Analysis, AnalysisPrompt, DeltaSelection

__all__ = ["Seen", "describe_overlap", "seen_by_deltas", "seen_prompts", "store_selection"]

_NOT_KNOWN: Final = "selection prompts not known until its folder is registered again"


@dataclass(frozen=True, slots=True)
class Seen:
    """Hashes of the prompts that a delta was made with. `selection` is None where the registry does not know them."""

    calibration: tuple[str, ...] = ()
    selection: tuple[str, ...] | None = ()

    @property
    def all(self) -> frozenset[str]:
        return frozenset(self.calibration).union(self.selection or ())


def store_selection(session: Session, delta: Delta, facts: DeltaFacts) -> None:
    """Remember what a delta was selected on, also of one that an older release registered.

    Raises:
        DigestMismatchError: an analysis of that id is known with other prompts.
    """
    if session.get(DeltaSelection, delta.key) is not None:
        return
    analysis = None if facts.analysis_id is None else _analysis(session, facts.analysis_id, facts)
    session.add(DeltaSelection(delta_key=delta.key, analysis_key=None if analysis is None else analysis.key))


def _analysis(session: Session, analysis_id: str, facts: DeltaFacts) -> Analysis:
    row = session.scalar(sa.select(Analysis).where(Analysis.id == analysis_id))
    if row is None:
        row = Analysis(id=analysis_id)
        session.add(row)
        session.flush()
        session.execute(
            sa.insert(AnalysisPrompt),
            [
                {"analysis_key": row.key, "position": position, "sha256": digest}
                for position, digest in enumerate(facts.selection_prompts)
            ],
        )
        return row
    known = _analysis_prompts(session, row.key)
    if known != facts.selection_prompts:
        raise DigestMismatchError(
            "another delta names the same analysis with other prompts",
            where=facts.folder,
            expected=f"the {len(known)} prompts of analysis:{analysis_id[:12]}",
            found=f"{len(facts.selection_prompts)} prompts",
            todo="one of the two documents is wrong; make this delta again from the analysis",
        )
    return row


def seen_prompts(session: Session, variant: Variant) -> Seen | None:
    """Prompts of a delta's calibration and selection; None for a base, which is made with none.

    Raises:
        UnknownIdError: the delta is not registered.
    """
    if variant.kind == "base":
        return None
    found = seen_by_deltas(session, [variant.id])
    if variant.id not in found:
        raise UnknownIdError("not registered", where=str(variant), todo="`hfq register` its folder")
    return found[variant.id]


def seen_by_deltas(session: Session, delta_ids: Collection[str]) -> dict[str, Seen]:
    """The same for several deltas; a calibration or an analysis that they share is read once."""
    rows = session.execute(
        sa.select(Delta.id, Delta.calibration_key, DeltaSelection.delta_key, DeltaSelection.analysis_key)
        .outerjoin(DeltaSelection, DeltaSelection.delta_key == Delta.key)
        .where(Delta.id.in_(delta_ids))
    ).all()
    calibrations = {key: calibration_prompts(session, key) for key in {row[1] for row in rows} if key}
    analyses = {key: _analysis_prompts(session, key) for key in {row[3] for row in rows} if key}
    return {
        delta_id: Seen(
            () if calibration is None else calibrations[calibration],
            None if known is None else () if analysis is None else analyses[analysis],
        )
        for delta_id, calibration, known, analysis in rows
    }


def _analysis_prompts(session: Session, analysis_key: int) -> tuple[str, ...]:
    query = sa.select(AnalysisPrompt.sha256).where(AnalysisPrompt.analysis_key == analysis_key)
    return tuple(session.scalars(query.order_by(AnalysisPrompt.position)))


def describe_overlap(evaluated: Collection[str | None], seen: Seen) -> str:
    """Which of the prompts of scored videos (one hash or None per video) a delta was made with, as one line."""
    found = find_overlap(evaluated, seen.calibration, seen.selection or ())
    return str(found) if seen.selection is not None else f"{found}; {_NOT_KNOWN}"
