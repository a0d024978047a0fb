"""Small bases, calibrations and deltas for tests, and honest-looking changes to deltas."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from synthetic import tiny, write_checkpoint
from torch import Tensor

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.histogram import Histogram
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.safetensors_writer import write_safetensors
from hfq.schema.canonical import content_id

SMALL = tiny(num_layers=2)
"""Two blocks of width 64: 26 linears, a few hundred kilobytes."""

ROWS = 256
_BRANCHES = ("cond", "uncond")


def write_base(root: Path, layout: str = "original-2.2", **options: Any) -> str:
    """A checkpoint of `SMALL`; the same values in every layout. Returns what `open_checkpoint` takes."""
    return write_checkpoint(root, SMALL, layout, **options)


def inputs_of(role: str, group: str, channels: int) -> Tensor:
    """What the calibration saw: BF16 [2, ROWS, channels], with a few loud channels, as in a transformer."""
    digest = hashlib.sha256(f"{role} {group}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
    loud = torch.ones(channels).masked_fill_(torch.rand(channels, generator=generator) < 0.05, 12.0)
    return (torch.randn(2, ROWS, channels, generator=generator) * loud).bfloat16()


def write_calibration(
    folder: Path,
    checkpoint: Checkpoint,
    roles: tuple[str, ...] | None = None,
    *,
    kept: int = 32,
    change: Callable[[str, Tensor], Tensor] = lambda group, x: x,
) -> Path:
    """A calibration folder of `inputs_of`, one step with both branches, without running a model.

    Args:
        kept: rows of each input that are kept.
        change: edits the inputs of a group.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    experts = {role: expert for role, expert in checkpoint.experts.items() if roles is None or role in roles}
    for role, expert in experts.items():
        for site in expert.sites:
            prefix = f"{role}/{site.input_group}"
            if f"{prefix}/max" in tensors:
                continue
            x = change(site.input_group, inputs_of(role, site.input_group, site.in_features))
            histogram = Histogram.empty(site.in_features)
            histogram.add(x.reshape(-1, site.in_features))
            tensors |= {
                f"{prefix}/max": x.float().abs().amax(dim=1),
                f"{prefix}/sum_squares": x.double().square().sum(dim=1),
                f"{prefix}/count": torch.tensor([ROWS, ROWS]),
                f"{prefix}/histogram/all": histogram.counts,
                f"{prefix}/top/all": histogram.top,
            }
            if kept:
                tensors[f"{prefix}/inputs/bin0"] = x[0, :kept]
                tensors[f"{prefix}/digests/bin0"] = torch.arange(kept, dtype=torch.uint8)[:, None].repeat(1, 32)
    sha256 = write_safetensors(folder / "statistics.safetensors", tensors)
    calls = [{"step": 0, "t": 999.0, "branch": branch, "bin": 0} for branch in _BRANCHES]
    document: dict[str, Any] = {
        "schema": "hfq.calibration/1",
        "base": {
            "model_type": "t2v",
            "experts": {
                role: {
                    "bf16_root": expert.identity().bf16_root,
                    "tensors": {name: entry.bf16 for name, entry in expert.identity().tensors.items()},
                }
                for role, expert in experts.items()
            },
        },
        "settings": {
            "pipeline": "test", "scheduler": "test", "shift": None, "boundary": None, "steps": 1,
            "guidance": dict.fromkeys(experts, 3.0), "height": 8, "width": 8, "frames": 1, "seed": 0,
            "negative_prompt": "", "max_sequence_length": None, "dtype": "bfloat16", "image": None, "rows": "all",
            "by": [], "keep_inputs": kept, "components": {},
        },
        "histogram": {"bins_per_octave": 16, "octaves": 8},
        "schedule": {role: {"calls": calls, "edges": [600.0, 300.0]} for role in experts},
        "parts": [{"sha256": "0" * 64, "prompts": [{"sha256": "1" * 64, "image": None}]}],
        "statistics": {"sha256": sha256, "size_bytes": (folder / "statistics.safetensors").stat().st_size},
    }  # fmt: skip
    document["id"] = content_id(document)
    (folder / "calibration.json").write_text(json.dumps(document))
    return folder


def bytes_of(delta: Path) -> tuple[bytes, bytes]:
    """The two files that a delta is."""
    return (delta / "ptq_state.json").read_bytes(), (delta / "ptq_state.safetensors").read_bytes()


def forge(source: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a delta with an edited document whose id is right again: what a liar would send."""
    shutil.copytree(source, folder)
    document = json.loads((folder / "ptq_state.json").read_bytes())
    edit(document)
    document["id"] = content_id(document)
    (folder / "ptq_state.json").write_text(json.dumps(document))
    return folder


def forge_state(source: Path, folder: Path, edit: Callable[[dict[str, Tensor]], object], *, count: bool = True) -> Path:
    """A copy of a delta with edited state tensors, whose document and id fit the new file."""
    with SafetensorsFile(source / "ptq_state.safetensors") as file:
        tensors = {name: file.read(name) for name in file.tensors}
    edit(tensors)

    def adopt(document: dict[str, Any]) -> None:
        path = folder / "ptq_state.safetensors"
        document["state"]["sha256"] = write_safetensors(path, tensors)
        document["state"]["size_bytes"] = path.stat().st_size
        if count:
            document["state"]["tensors"] = len(tensors)

    return forge(source, folder, adopt)
