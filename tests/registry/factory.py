"""Small, valid delta folders, without a converter: documents under the schema, a state file, and their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hfq.schema.canonical import content_id
from hfq.schema.documents import validate

ROLES = ("high_noise", "low_noise")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_recipe(
    *, name: str = "tail-aware-hif4", percentile: float | None = 99.9, description: str = "made for a test"
) -> dict[str, Any]:
    smooth: dict[str, Any] = {
        "kind": "smooth",
        "statistic": "max" if percentile is None else "percentile",
        "alpha": 0.5,
        "activation_floor": 1e-5,
        "weight_floor": 1e-5,
        "mask_min": 1e-3,
        "mask_max": 1e3,
    }
    if percentile is not None:
        smooth["percentile"] = percentile
    return {
        "schema": "hfq.recipe/1",
        "name": name,
        "description": description,
        "weight": {"format": "hif4", "profile": "ref", "scale_search": False},
        "activation": {"format": "hif4", "profile": "ref"},
        "route": [{"match": ["head.*"], "to": "keep", "reason": "boundary"}, {"match": ["*"], "to": "quantize"}],
        "stage": [smooth],
    }


def make_document(
    *,
    seed: str = "a",
    base: str = "wan22",
    kept: int = 2,
    quantized: int = 2,
    prompts: int | None = 3,
    model_type: str = "t2v",
    reason: str = "rule 0: boundary",
    state: dict[str, Any] | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """A ptq-state document. `seed` alone makes another delta; `base` another model."""
    sites: dict[str, Any] = {}
    for role in ROLES:
        names = [f"blocks.{index}.self_attn.q" for index in range(kept + quantized)]
        sites[role] = {name: {"route": "keep", "rule": 0, "reason": reason} for name in names[:kept]}
        for name in names[kept:]:
            sites[role][name] = {
                "route": "quantize",
                "rule": 1,
                "reason": "rule 1",
                "weight": {"format": "hif4", "profile": "ref", "scale_search": False},
                "ops": [
                    {"op": "mask", "tensor": f"{role}.{name}.mask"},
                    {"op": "qdq", "format": "hif4", "profile": "ref"},
                ],
                "digest": digest(f"{seed} {role} {name}"),
            }
    experts = {
        role: {
            "bf16_root": digest(f"{base} {role} bf16"),
            "tensors": {f"{name}.weight": {"shape": [64, 64], "bf16": digest(name)} for name in sites[role]},
        }
        for role in ROLES
    }
    calibration = None
    if prompts is not None:
        calibration = {
            "id": digest(f"calibration {base} {prompts}"),
            "prompts": [digest(f"prompt {number}") for number in range(prompts)],
        }
    document = {
        "schema": "hfq.ptq-state/1",
        "numerics": 1,
        "base": {"model_type": model_type, "experts": experts},
        "recipe": make_recipe(**recipe),
        "calibration": calibration,
        "selection": None,
        "state": state or {"sha256": digest(seed), "size_bytes": 8, "tensors": 0},
        "sites": sites,
    }
    document["id"] = content_id(document)
    validate(document, "ptq-state", "factory")
    return document


def make_provenance(
    document: dict[str, Any], *, layout: str = "wan22", file_name: str = "high_noise_model/model.safetensors"
) -> dict[str, Any]:
    provenance = {
        "schema": "hfq.provenance/1",
        "delta": document["id"],
        "created": "2026-03-01T12:00:00Z",
        "software": {"hfq": "0.1.0"},
        "machine": {"cpu": "x86_64"},
        "base": {
            "layout": layout,
            "experts": {
                role: {
                    "exact_root": digest(f"{role} exact {layout}"),
                    "bf16_root": expert["bf16_root"],
                    "role_source": "folder",
                    "files": [
                        {
                            "name": file_name.replace("high_noise", role),
                            "size_bytes": 57_000_000_000,
                            "sha256": digest(f"{role} file {layout}"),
                            "trusted": False,
                        }
                    ],
                }
                for role, expert in document["base"]["experts"].items()
            },
        },
        "seconds": 1.5,
        "peak_rss_bytes": 1_000_000,
        "resumed": False,
        "evaluation": None,
    }
    validate(provenance, "provenance", "factory")
    return provenance


def make_delta(
    folder: Path,
    *,
    seed: str = "a",
    layout: str = "wan22",
    file_name: str = "high_noise_model/m.safetensors",
    **how: Any,
) -> str:
    """Write a delta folder and return its id; the same arguments in another folder make the same delta."""
    folder.mkdir(parents=True)
    mask = np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype=np.uint8).astype(np.float32)
    save_file({"high_noise.blocks.2.self_attn.q.mask": mask}, folder / "ptq_state.safetensors")
    data = (folder / "ptq_state.safetensors").read_bytes()
    state = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), "tensors": 1}
    document = make_document(seed=seed, state=state, **how)
    write_json(folder / "ptq_state.json", document)
    write_json(folder / "provenance.json", make_provenance(document, layout=layout, file_name=file_name))
    return str(document["id"])


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
