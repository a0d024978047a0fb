"""`provenance.json`: how one copy of a delta was made. Nothing in it decides what the delta is."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hfq.schema.version import VERSION

from .checkpoint import Checkpoint
from .finite import NonFinite
from .identity import FileWitness, Identity
from .peak_memory import peak_rss_bytes

__all__ = ["machine", "provenance_document", "software"]


def software() -> dict[str, str]:
    """Versions of what computes: this package, Python, torch and the optional packages that are installed."""
    found = {"hfq": VERSION, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("diffusers", "transformers", "numpy", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """CPU model, cores and threads in use; no host name and no path."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"cpu": model, "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(), "system": platform.system()}


def provenance_document(
    delta_id: str,
    checkpoint: Checkpoint,
    identities: Mapping[str, Identity],
    witnesses: Mapping[str, Sequence[FileWitness]],
    non_finite: Mapping[str, Mapping[str, NonFinite]],
    *,
    seconds: float,
    resumed: bool,
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document under `hfq.provenance/1`. File names are relative to the model's folder; no path is recorded.
    `evaluation` is what `compare_prompts` found; `non_finite` (role -> tensor) what was taken all the same."""
    return {
        "schema": "hfq.provenance/1",
        "delta": delta_id,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "software": software(),
        "machine": machine(),
        "base": {
            "layout": checkpoint.layout,
            "experts": {
                role: {
                    "exact_root": identity.exact_root,
                    "bf16_root": identity.bf16_root,
                    "role_source": checkpoint.experts[role].role_source,
                    "files": [
                        {
                            "name": witness.name,
                            "size_bytes": witness.size_bytes,
                            "sha256": witness.sha256,
                            "trusted": witness.trusted,
                        }
                        for witness in witnesses[role]
                    ],
                    **(
                        {"non_finite": {name: found.to_json() for name, found in non_finite[role].items()}}
                        if non_finite[role]
                        else {}
                    ),
                }
                for role, identity in identities.items()
            },
        },
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "resumed": resumed,
        "evaluation": None if evaluation is None else dict(evaluation),
    }
