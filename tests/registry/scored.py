"""Deltas in a registry, with scores: what the tests of tables, checks and gates begin with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory import digest, make_delta, write_json

from hfq.registry import Registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.score_sources import ScoreFiles
from hfq.registry.scores.values import Direction, MetricScores, VideoScore
from hfq.schema.canonical import content_id

SETTINGS = {"steps": 40, "guidance": 5.0, "shift": 5.0, "frames": 81, "height": 480, "width": 832}


def register_delta(registry: Registry, folder: Path, **how: Any) -> Variant:
    make_delta(folder, seed=folder.name, **how)
    return Variant("delta", registry.register(folder))


def select_on(folder: Path, prompts: Sequence[str], *, analysis: str = "analysis") -> str:
    """Rewrite a delta's documents as if its kept blocks had been chosen by an analysis of these prompts (hashes)."""
    document = json.loads((folder / "ptq_state.json").read_text())
    document["selection"] = {"analysis": {
        "id": digest(analysis), "calibration": digest("calibration"), "prompts": list(prompts),
        "scores": {"high_noise": {"error": [0.1]}},
    }, "experts": {"high_noise": [{"rule": 0, "select": "blocks", "blocks": [0]}]}}  # fmt: skip
    document.pop("id")
    document["id"] = content_id(document)
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["delta"] = document["id"]
    write_json(folder / "ptq_state.json", document)
    write_json(folder / "provenance.json", provenance)
    return str(document["id"])


def score(
    registry: Registry,
    who: Variant,
    values: Sequence[float],
    *,
    prompts: Sequence[str | None] | None = None,
    name: str = "subject_consistency",
    suite: str = "vbench",
    prompt_set: str | None = None,
    direction: Direction = "higher",
    settings: dict[str, Any] | None = None,
) -> None:
    """Import one metric; video n is of the prompt hash `prompts[n]`, else of a prompt of its own."""
    hashes = [digest(f"own {n}") for n in range(len(values))] if prompts is None else prompts
    videos = tuple(
        VideoScore(f"video {n}", sha256, None, None, value)
        for n, (sha256, value) in enumerate(zip(hashes, values, strict=True))
    )
    part = MetricScores(prompt_set, suite, name, direction, "as in the file", None, videos)
    source = digest(f"{who} {name} {suite} {prompt_set} {list(values)}")
    registry.import_scores(who, ScoreFiles((part,), source), SETTINGS if settings is None else settings)
