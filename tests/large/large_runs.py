"""Models and calibrations of 14B widths, and running a command in a process of its own and measuring it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from synthetic import released_shapes, write_checkpoint

from hfq.convert.calibration import GroupStatistics
from hfq.convert.calibration_merge import GroupPlan, write_calibration
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.derive import derive_architecture
from hfq.convert.histogram import Histogram

# Runs the command in a process of its own and prints its peak resident size as the last line of stderr.
_CHILD = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from hfq.cli import run
code = run(sys.argv[2:])
from hfq.convert.peak_memory import peak_rss_bytes
print(peak_rss_bytes(), file=sys.stderr)
sys.exit(code)
"""


def run_measured(*arguments: str, data_limit: int = 0, threads: int = 2) -> tuple[dict[str, Any], int]:
    """Run `hfq ARGUMENTS --json` in a fresh process; returns its document and its peak resident size in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(data_limit), *arguments, "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), int(done.stderr.strip().splitlines()[-1])


def make_model(folder: Path, blocks: int, dtype: str) -> Path:
    """A flat Wan folder with `blocks` blocks of the 14B text-to-video model and random weights."""
    full = derive_architecture(released_shapes("wan2.1-t2v-14B"), None, "key list")
    architecture = replace(full, num_layers=blocks, num_heads=40, heads_known=True)
    write_checkpoint(folder, architecture, "original-2.1", dtype=dtype, shards=2, seed=1)
    return folder


def make_calibration(folder: Path, model: Path, keep: int = 0) -> Path:
    """Statistics of the right shapes for a model, from random inputs, with `keep` of them kept per timestep bin."""
    folder.mkdir()
    with open_checkpoint(model) as checkpoint:
        expert = checkpoint.experts["single"]
        identity = expert.identity()
        groups = {site.input_group: site.in_features for site in expert.sites}
        header: dict[str, Any] = {
            "base": {"model_type": "t2v", "experts": {"single": {
                "bf16_root": identity.bf16_root,
                "tensors": {name: entry.bf16 for name, entry in identity.tensors.items()},
            }}},
            "settings": {
                "pipeline": "WanPipeline", "scheduler": "none", "components": {}, "shift": 5.0, "boundary": None,
                "steps": 1, "guidance": {"single": 5.0}, "height": 480, "width": 832, "frames": 81, "seed": 0,
                "negative_prompt": "", "max_sequence_length": 512, "dtype": "bfloat16", "image": None, "rows": 64,
                "by": [], "keep_inputs": keep,
            },
            "histogram": {"bins_per_octave": 16, "octaves": 8},
            "schedule": {"single": {
                "calls": [
                    {"step": index, "t": t, "branch": "cond", "bin": index}
                    for index, t in enumerate((999.0, 600.0, 200.0))
                ],
                "edges": [800.0, 400.0],
            }},
        }  # fmt: skip
    rows = dict.fromkeys(range(3), keep) if keep else {}
    plans = [GroupPlan("single", group, width, 3, ["all"], rows) for group, width in groups.items()]

    def read(plan: GroupPlan) -> GroupStatistics:
        generator = torch.Generator().manual_seed(plan.channels)
        count = max(64, keep)
        # Loud channels and a common direction: inputs that have a covariance.
        loud = torch.rand(plan.channels, generator=generator).mul_(2).exp_()
        shared = torch.randn(count, 1, generator=generator) * torch.randn(1, plan.channels, generator=generator)
        x = ((torch.randn(count, plan.channels, generator=generator) + 0.5 * shared) * loud).bfloat16()
        histogram = Histogram.empty(plan.channels)
        for _ in range(3):
            histogram.add(x)
        digests = torch.arange(count)[:, None].to(torch.int32).view(torch.uint8).flip(1)
        digests = torch.nn.functional.pad(digests, (0, 28))
        return GroupStatistics(
            x.float().abs().amax(dim=0, keepdim=True).expand(3, -1).contiguous(),
            x.double().square().sum(dim=0, keepdim=True).expand(3, -1).contiguous(),
            torch.full((3,), count), {"all": histogram},
            dict.fromkeys(rows, x), dict.fromkeys(rows, digests),
        )  # fmt: skip

    write_calibration(folder, header, plans, read, [{"prompts": [{"sha256": "0" * 64, "image": None}]}])
    return folder
