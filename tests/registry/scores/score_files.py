"""Score files in the shapes that the benchmarks write, and scores without a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfq.registry.scores.full_info import make_video
from hfq.registry.scores.paired import Pairs, pair_scores
from hfq.registry.scores.values import Direction, MetricScores, VideoScore


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def entry(name: str, value: Any, **extra: Any) -> dict[str, Any]:
    """A video's result as VBench writes it."""
    return {"video_path": f"/data/videos/{name}.mp4", "video_results": value, **extra}


def metric(
    values: Mapping[str, float] | Sequence[VideoScore],
    *,
    name: str = "subject_consistency",
    suite: str = "vbench",
    direction: Direction = "higher",
    prompt_set: str | None = None,
) -> MetricScores:
    videos = (
        tuple(make_video(stem, value, None) for stem, value in values.items())
        if isinstance(values, Mapping)
        else tuple(values)
    )
    return MetricScores(prompt_set, suite, name, direction, "as in the file", None, videos)


def videos(
    values: Sequence[float], *, category: str | None = None, prefix: str = "p", hashed: bool = True
) -> list[VideoScore]:
    """One video per prompt."""
    return [
        VideoScore(f"{prefix}{i}", f"{prefix}{i:063d}" if hashed else None, category, None, value)
        for i, value in enumerate(values)
    ]


def pairs(first: Sequence[float], second: Sequence[float], *, category: str | None = None, **kind: Any) -> Pairs:
    return pair_scores(
        metric(videos(first, category=category), **kind), metric(videos(second, category=category), **kind)
    )
