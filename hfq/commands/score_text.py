"""Recorded scores as documents for --json and as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hfq.registry.text import printable

if TYPE_CHECKING:
    from hfq.registry.prompts import Seen
    from hfq.registry.score_imports import ImportRecord
    from hfq.registry.score_store import StoredScore

__all__ = ["import_document", "score_documents", "score_lines"]


def score_documents(stored: Sequence[StoredScore], seen: Seen | None) -> list[dict[str, Any]]:
    """Scores for --json, each with its overlap; null for a base, which is made with no prompts."""
    from hfq.registry.judging import overlap_of

    return [
        {
            "metric_suite": one.scores.metric_suite,
            "metric": one.scores.metric,
            "prompt_set": one.scores.prompt_set,
            "mean": one.scores.recomputed,
            "stated": one.scores.stated,
            "stated_agrees": one.scores.stated_agrees,
            "videos": len(one.scores.videos),
            "known_prompts": one.scores.known_prompts,
            "of_unknown_prompt": one.scores.of_unknown_prompt,
            "unscored": list(one.scores.unscored),
            "direction": one.scores.direction,
            "scale": one.scores.scale,
            "settings": dict(one.settings),
            "overlap": overlap_of(one, seen),
            "clips": None if one.origin is None else asdict(one.origin),
            "source_sha256": one.source_sha256,
            "imported_at": one.imported_at,
        }
        for one in stored
    ]


def score_lines(stored: Sequence[StoredScore], seen: Seen | None) -> list[str]:
    """Scores for people, one per line, with how many prompts are known, whose clips were measured and a delta's overlap
    whenever these change.
    """
    from hfq.registry.judging import overlap_of
    from hfq.registry.scores.values import set_labels

    lines: list[str] = []
    before: list[str] = []
    labels = set_labels(one.scores.prompt_set for one in stored)
    for one in stored:
        overlap = overlap_of(one, seen)
        unknown = one.scores.of_unknown_prompt
        own = f"; {unknown} videos of no known prompt, each counts as one of its own" if unknown else ""
        after = [f"  prompts      {one.scores.known_prompts} known{own}"]
        after += [] if one.origin is None else [f"  clips        {one.origin}"]
        after += [] if overlap is None else [f"  overlap      {overlap}"]
        if after != before:
            lines += before
        before = after
        scores = one.scores
        mean = "no value" if scores.recomputed is None else f"{scores.recomputed:.4f}"
        stated = "" if scores.stated is None else f", the file says {scores.stated:.4f}"
        stated += "; ITS VIDEOS CONTRADICT THAT" if scores.stated_agrees is False else ""
        unscored = f", {len(scores.unscored)} without a value" if scores.unscored else ""
        lines.append(
            f"  {printable(scores.metric_suite)} {scores.metric}{printable(labels[scores.prompt_set])}  {mean}  "
            f"({len(scores.videos)} videos{stated}{unscored})"
        )
    return lines + before


def import_document(record: ImportRecord) -> dict[str, Any]:
    """An import for --json."""
    return asdict(record)
