"""A registry of any size under the real schema, written by bulk inserts: random ids, realistic fan-out."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hfq.registry import Registry, models, score_models, selection_models
from hfq.registry.clips.clip_document import ClipDocument
from hfq.registry.folder import base_id
from hfq.registry.score_store import prompts_digest
from hfq.registry.upgrade import upgrade
from hfq.schema.canonical import canonical_json, sha256_hex

NOW = "2026-03-01T12:00:00.000000Z"
METRICS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "overall_consistency", "scene", "color",
)  # fmt: skip
SETTINGS = tuple(
    {"steps": steps, "guidance": 5.0, "shift": 5.0, "frames": 81, "height": 480, "width": 832}
    for steps in (40, 40, 40, 20)
)
BASES, RECIPES, CALIBRATIONS, PROMPTS, KEPT, VIDEOS = 20, 200, 50, 400, 12, 946


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows. Each delta has ten scores; the first `signatures` clips have a signature, and the best `detailed` scores of
    each base and metric have their videos: a leaderboard reads those of the best."""

    deltas: int
    clips: int
    signatures: int
    detailed: int


@dataclass(frozen=True, slots=True)
class Filled:
    """What was written, for the look-ups: (file, stream, variant) of clips; ids of deltas and of bases; aliases."""

    deltas: list[str]
    bases: list[str]
    recipes: list[str]
    aliases: list[str]
    clips: list[tuple[str, str, str]]


class _Writer:
    """Inserts in large batches over one connection that does not wait for the disk: a test's file may be lost."""

    def __init__(self, path: Path) -> None:
        engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(path))
        self.connection = engine.connect()
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000", "foreign_keys=OFF"):
            self.connection.exec_driver_sql(f"PRAGMA {pragma}")
        indexes = self.connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        )
        self._indexes = [(name, sql) for name, sql in indexes]
        for name, _ in self._indexes:
            self.connection.exec_driver_sql(f"DROP INDEX {name}")

    def insert(self, table: type[models.Table], rows: Iterable[dict[str, Any]]) -> None:
        pending = iter(rows)
        while batch := list(islice(pending, 20_000)):
            self.connection.execute(sa.insert(table), batch)

    def close(self) -> None:
        """Sorting once for an index is many times quicker than a million insertions."""
        for _, sql in self._indexes:
            self.connection.exec_driver_sql(sql)
        self.connection.commit()
        self.connection.close()


def fill(registry: Registry, sizes: Sizes, seed: int = 1) -> Filled:
    """Create a registry and fill it. The largest base has half of the deltas, the other nineteen share the rest."""
    upgrade(registry.database)
    draw = random.Random(seed)
    writer = _Writer(registry.path)
    bases, recipes = _sources(writer, draw)
    deltas = [draw.randbytes(32).hex() for _ in range(sizes.deltas)]
    on = [1 if draw.random() < 0.5 else draw.randint(2, BASES) for _ in deltas]
    aliases = _deltas(writer, draw, deltas, on, bases, recipes)
    _scores(writer, draw, deltas, on, bases, sizes.detailed)
    clips = _clips(writer, draw, deltas, sizes)
    writer.close()
    return Filled(deltas, [base for base, _ in bases], [name for name, _ in recipes], aliases, clips)


def _sources(writer: _Writer, draw: random.Random) -> tuple[list[tuple[str, dict[str, str]]], list[tuple[str, str]]]:
    """Bases with two experts and a file each, recipes with one stage, calibrations and an analysis with prompts."""
    roots = [{role: draw.randbytes(32).hex() for role in ("high_noise", "low_noise")} for _ in range(BASES)]
    bases = [(base_id(one), one) for one in roots]
    writer.insert(models.Base, ({"key": n, "id": id_, "model_type": "t2v"} for n, (id_, _) in enumerate(bases, 1)))
    experts = [(n, role, root) for n, (_, one) in enumerate(bases, 1) for role, root in one.items()]
    writer.insert(models.BaseExpert, (
        {"key": key, "base_key": n, "role": role, "bf16_root": root, "tensors": 1095}
        for key, (n, role, root) in enumerate(experts, 1)
    ))  # fmt: skip
    writer.insert(models.Witness, (
        {"expert_key": key, "layout": "wan22", "exact_root": draw.randbytes(32).hex(), "name": f"{role}/m.safetensors",
         "size_bytes": 57_000_000_000, "sha256": draw.randbytes(32).hex(), "trusted": False}
        for key, (_, role, _) in enumerate(experts, 1)
    ))  # fmt: skip
    recipes = []
    for number in range(RECIPES):
        document = canonical_json({"schema": "hfq.recipe/1", "name": f"recipe-{number % 20}", "number": number})
        recipes.append((f"recipe-{number % 20}", document.decode()))
    writer.insert(models.Recipe, (
        {"key": key, "id": sha256_hex(text.encode()), "name": name, "weight_format": "hif4",
         "activation_format": "hif4", "document": text}
        for key, (name, text) in enumerate(recipes, 1)
    ))  # fmt: skip
    writer.insert(models.RecipeStage, (
        {"recipe_key": key, "position": 0, "kind": "smooth", "expert": None, "statistic": "percentile",
         "percentile": (99.0, 99.9, 99.99, 100.0)[key % 4], "alpha": 0.5}
        for key in range(1, RECIPES + 1)
    ))  # fmt: skip
    calibrations = range(1, CALIBRATIONS + 1)
    writer.insert(models.Calibration, ({"key": key, "id": draw.randbytes(32).hex()} for key in calibrations))
    writer.insert(models.CalibrationPrompt, (
        {"calibration_key": key, "position": position, "sha256": _prompt(key * 7 + position)}
        for key in calibrations for position in range(PROMPTS)
    ))  # fmt: skip
    writer.insert(selection_models.Analysis, [{"key": 1, "id": draw.randbytes(32).hex()}])
    writer.insert(selection_models.AnalysisPrompt, (
        {"analysis_key": 1, "position": position, "sha256": _prompt(position)} for position in range(32)
    ))  # fmt: skip
    return bases, recipes


def _prompt(number: int) -> str:
    return sha256_hex(f"prompt {number}".encode())


def _deltas(
    writer: _Writer,
    draw: random.Random,
    deltas: list[str],
    on: list[int],
    bases: list[tuple[str, dict[str, str]]],
    recipes: list[tuple[str, str]],
) -> list[str]:
    made_by = [draw.randint(1, RECIPES) for _ in deltas]
    writer.insert(models.Delta, (
        {"key": key, "id": id_, "base_key": base, "recipe_key": recipe, "calibration_key": key % CALIBRATIONS + 1,
         "state_sha256": draw.randbytes(32).hex(), "state_size_bytes": 15_000_000, "state_tensors": 800,
         "quantized": 800, "kept": KEPT, "created": NOW, "registered_at": NOW}
        for key, (id_, base, recipe) in enumerate(zip(deltas, on, made_by, strict=True), 1)
    ))  # fmt: skip
    writer.insert(models.KeptSite, (
        {"delta_key": key, "expert": role, "site": f"blocks.{(key * 5 + site) % 40}.self_attn.{'qkvo'[site % 4]}",
         "reason": "rule 0: boundary"}
        for key in range(1, len(deltas) + 1) for role in ("high_noise", "low_noise") for site in range(KEPT // 2)
    ))  # fmt: skip
    recipe_ids = [sha256_hex(text.encode()) for _, text in recipes]
    writer.insert(models.Edge, (
        {"child_id": id_, "relation": relation, "parent_id": parent, "child_kind": "delta", "parent_kind": kind}
        for id_, base, recipe in zip(deltas, on, made_by, strict=True)
        for relation, kind, parent in (
            ("bound-to", "base", bases[base - 1][0]), ("made-by", "recipe", recipe_ids[recipe - 1]),
        )
    ))  # fmt: skip
    writer.insert(models.Location, (
        {"delta_key": key, "folder": f"/deltas/{id_}", "created": NOW, "registered_at": NOW}
        for key, id_ in enumerate(deltas, 1)
    ))  # fmt: skip
    writer.insert(models.Event, (
        {"at": NOW, "kind": "registered", "delta_id": id_, "detail": json.dumps({"folder": f"/deltas/{id_}"})}
        for id_ in deltas
    ))  # fmt: skip
    writer.insert(selection_models.DeltaSelection, (
        {"delta_key": key, "analysis_key": 1 if key % 2 else None} for key in range(1, len(deltas) + 1)
    ))  # fmt: skip
    aliases = [f"wan22-{number}@prod" for number in range(len(deltas) // 50)]
    writer.insert(models.Alias, (
        {"name": name, "delta_key": number * 50 + 1, "set_at": NOW} for number, name in enumerate(aliases)
    ))  # fmt: skip
    return aliases


def _scores(
    writer: _Writer,
    draw: random.Random,
    deltas: list[str],
    on: list[int],
    bases: list[tuple[str, dict[str, str]]],
    detailed: int,
) -> None:
    """Ten metrics of every delta and every base, a quarter generated with other steps; videos for the best of each."""
    documents = list(dict.fromkeys(canonical_json(one).decode() for one in SETTINGS))
    writer.insert(score_models.ScoreSettings, ({"key": n, "document": text} for n, text in enumerate(documents, 1)))
    keys = [documents.index(canonical_json(one).decode()) + 1 for one in SETTINGS]
    prompts = prompts_digest(_prompt(number) for number in range(VIDEOS))
    owners = [("base", base, n) for n, (base, _) in enumerate(bases, 1)]
    owners += [("delta", id_, base) for id_, base in zip(deltas, on, strict=True)]
    best: dict[tuple[int, str], list[tuple[float, int]]] = {}

    def rows() -> Iterator[dict[str, Any]]:
        key = 0
        for number, (kind, variant, base) in enumerate(owners):
            for metric in METRICS:
                key += 1
                mean = draw.gauss(0.9, 0.02)
                settings = keys[0] if kind == "base" else keys[number % len(keys)]
                if settings == keys[0]:
                    best.setdefault((base, metric), []).append((mean, key))
                yield {
                    "key": key, "id": draw.randbytes(32).hex(), "variant_kind": kind, "variant_id": variant,
                    "prompt_set": "vbench", "metric_suite": "vbench", "metric": metric, "direction": "higher",
                    "scale": "as in the file", "stated": None, "mean": mean, "videos": VIDEOS,
                    "source_sha256": draw.randbytes(32).hex(), "prompts_sha256": prompts, "settings_key": settings,
                    "base_key": base, "counts": True, "imported_at": NOW,
                }  # fmt: skip

    writer.insert(score_models.Score, rows())
    writer.insert(score_models.ScoreImport, (
        {"key": number, "id": draw.randbytes(32).hex(), "kind": "scores", "variant_kind": kind, "variant_id": variant,
         "imported_at": NOW}
        for number, (kind, variant, _) in enumerate(owners, 1)
    ))  # fmt: skip
    writer.insert(score_models.ScoreImportItem, (
        {"import_key": number, "score_key": (number - 1) * len(METRICS) + place}
        for number in range(1, len(owners) + 1) for place in range(1, len(METRICS) + 1)
    ))  # fmt: skip
    sample = [key for found in best.values() for _, key in sorted(found, reverse=True)[:detailed]]
    writer.insert(score_models.ScoreVideo, (
        {"score_key": key, "position": position, "stem": f"a person walks over a bridge in the rain {position}-0",
         "sample": 0, "prompt_sha256": _prompt(position), "category": "human", "value": 0.9}
        for key in sample for position in range(VIDEOS)
    ))  # fmt: skip


def _clips(writer: _Writer, draw: random.Random, deltas: list[str], sizes: Sizes) -> list[tuple[str, str, str]]:
    """Clips with their documents; the first `sizes.signatures` of them with a perceptual signature."""
    kept: list[tuple[str, str, str]] = []
    every = max(1, sizes.clips // 2000)
    base = {"high_noise": "0" * 64, "low_noise": "1" * 64}
    settings = {"steps": 40, "guidance": 5.0, "frames": 81, "height": 480, "width": 832}

    def rows() -> Iterator[dict[str, Any]]:
        for key in range(1, sizes.clips + 1):
            variant, file, stream = draw.choice(deltas), draw.randbytes(32).hex(), draw.randbytes(32).hex()
            document = ClipDocument(variant, base, _prompt(key % VIDEOS), None, key, settings)
            if key % every == 0:
                kept.append((file, stream, variant))
            yield {
                "key": key, "file_sha256": file, "stream_sha256": stream, "variant_kind": "delta",
                "variant_id": variant, "scene": document.scene, "name": f"{key}.mp4", "container": "mp4",
                "size_bytes": 2_000_000, "frames": 81, "width": 832, "height": 480,
                "document": json.dumps(document.to_json(), sort_keys=True, separators=(",", ":")), "manifest": None,
                "signed": False, "recorded_at": NOW,
            }  # fmt: skip

    writer.insert(models.Clip, rows())
    writer.insert(models.ClipSignature, (
        {"clip_key": key, "data": draw.randbytes(4096)} for key in range(1, sizes.signatures + 1)
    ))  # fmt: skip
    return kept
