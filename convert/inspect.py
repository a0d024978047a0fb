"""What is in a checkpoint, as a document: layout, roles, sizes, dtypes, sites and its identity."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from .architecture import Architecture, Site
from .checkpoint import Checkpoint
from .expert import Expert
from .identity import FileWitness, same_weights
from .progress import Progress, Silent
from .scan import Scan

__all__ = ["inspect_checkpoint", "list_sites"]


def inspect_checkpoint(
    checkpoint: Checkpoint,
    *,
    identity: bool = True,
    hash_files: bool = True,
    trust_witness: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A JSON-able description. With `identity` every byte is read, once; without it only headers. Without `hash_files`
    the files' own hashes are left out; with `trust_witness` a file is not read whose hashes this machine has computed
    before and that has not changed since (`trusted` true).

    Members: `kind` "checkpoint", `path`, `layout`, `architecture` (the fields of `Architecture`), `experts` (role ->
    what `_describe` gives), `warnings` (sentences for people). Sizes are in bytes.

    Raises:
        NonFiniteWeightError: with `identity`, a tensor with NaN or infinity, unless the checkpoint was opened so as to
            allow them; then an expert has `non_finite` (tensor -> `position`, `value`, `count`).
        BlobDigestError: with `identity`, a file that the Hub's cache knows under another digest.
        TruncatedFileError, UnreadableFileError: a file cannot be read to its end, or changed meanwhile.
    """
    experts = {role: _describe(expert) for role, expert in checkpoint.experts.items()}
    for role, expert in checkpoint.experts.items():
        if identity:
            scan = expert.scan(progress or Silent(), hash_files=hash_files, trust_witness=trust_witness)
            experts[role] |= _identify(scan)
        if not identity or not hash_files:
            experts[role]["files"] = [{"name": name, "size_bytes": size} for name, size in expert.file_sizes()]
    return {
        "kind": "checkpoint",
        "path": checkpoint.path,
        "layout": checkpoint.layout,
        "architecture": _architecture(checkpoint.architecture),
        "experts": experts,
        "warnings": _warnings(checkpoint, experts),
    }


def list_sites(expert: Expert) -> list[dict[str, Any]]:
    """Every linear of an expert in the order of the forward pass: `name`, `shape` [out, in], `input_group`."""
    return [
        {"name": site.name, "shape": [site.out_features, site.in_features], "input_group": site.input_group}
        for site in expert.sites
    ]


def _describe(expert: Expert) -> dict[str, Any]:
    stored = [expert.info(name) for name in expert.names]
    dtypes = {
        dtype: {
            "tensors": sum(info.dtype == dtype for info in stored),
            "size_bytes": sum(info.size_bytes for info in stored if info.dtype == dtype),
        }
        for dtype in sorted({info.dtype for info in stored})
    }
    parameters = sum(math.prod(info.shape) for info in stored)
    return {
        "role_source": expert.role_source,
        "layout": expert.layout,
        "naming": expert.naming,
        "prefix": expert.prefix,
        "tensors": len(stored),
        "other_tensors": expert.other_tensors,
        "parameters": parameters,
        "dtypes": dtypes,
        "sites": _count_sites(expert.sites),
    }


def _identify(scan: Scan) -> dict[str, Any]:
    found = scan.run()
    files = [_witness(witness) for witness in scan.witnesses]
    document = {"bf16_root": found.bf16_root, "exact_root": found.exact_root, "files": files}
    non_finite = {name: entry.to_json() for name, entry in scan.non_finite.items()}
    return {**document, "non_finite": non_finite} if non_finite else document


def _witness(witness: FileWitness) -> dict[str, Any]:
    found = {"name": witness.name, "size_bytes": witness.size_bytes, "sha256": witness.sha256}
    return {**found, "trusted": True} if witness.trusted else found


def _count_sites(sites: tuple[Site, ...]) -> dict[str, int]:
    count = Counter(site.name.split(".")[0] if site.in_block else "outside" for site in sites)
    return {part: count[part] for part in ("blocks", "vace_blocks", "outside")}


def _architecture(architecture: Architecture) -> dict[str, Any]:
    document = dict(vars(architecture))
    document["patch_size"] = list(architecture.patch_size)
    document["vace_layers"] = None if architecture.vace_layers is None else list(architecture.vace_layers)
    document["head_dim"] = architecture.head_dim
    return document


def _warnings(checkpoint: Checkpoint, experts: dict[str, Any]) -> list[str]:
    warnings = []
    for role, document in experts.items():
        if "F16" in document["dtypes"]:
            warnings.append(
                f"{role} holds F16: rounding to F16 changed the weights, so this is another base than the F32 or BF16 "
                "release, and deltas made for that one are refused"
            )
    warnings += same_weights(document.get("bf16_root") for document in experts.values())
    if not checkpoint.architecture.heads_known:
        heads = checkpoint.architecture.num_heads
        warnings.append(
            "the number of attention heads is unknown: no config.json, and the width is no multiple of 128"
            if heads is None
            else f"{heads} attention heads are assumed (128 channels each, as in every release): no config.json says so"
        )
    return warnings
