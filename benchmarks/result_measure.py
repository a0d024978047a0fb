"""Measuring one arm of the results table, in a process of its own.

- expert error: NMSE of the expert's output, teacher-forced (every arm gets the inputs that the BF16 run had),
- PSNR of each clip to the BF16 clip of the same prompt and seed,
- what a classifier trained on true clips sees in the clips.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from classifier import classify, load_classifier
from evaluate import summarise
from mxfp4_arm import apply_mxfp4
from result_arms import Arm
from result_materials import ROLES, Call, Materials
from torch import Tensor

import hfq
import hfq.convert
import hfq.formats
from hfq.convert.delta import Delta
from hfq.convert.delta_inspect import describe_delta
from hfq.convert.tiny.pipeline import WEIGHTS, load_tiny_pipeline
from hfq.schema.errors import CalibrationRangeError

__all__ = ["code_digest", "expert_errors", "measure_arm", "psnr"]

Floats = npt.NDArray[np.float64]

BLOCK_BITS = 16  # of a weight that stays in BF16


@torch.no_grad()
def expert_errors(pipeline: Any, calls: Mapping[str, Sequence[Call]]) -> dict[str, list[float]]:
    """role -> NMSE of each recorded call's output."""
    found: dict[str, list[float]] = {}
    for role, module in zip(ROLES, (pipeline.transformer, pipeline.transformer_2), strict=True):
        found[role] = []
        for inputs, expected in calls[role]:
            output = module(**inputs, return_dict=False)[0]
            error = (output.double() - expected.double()).square().sum() / expected.double().square().sum()
            found[role].append(float(error))
    return found


def psnr(clips: Tensor, reference: Tensor) -> list[float]:
    """PSNR in dB of each clip [N, 3, F, H, W] in [-1, 1]; peak to peak is 2."""
    error = (clips.double() - reference.double()).square().mean(dim=(1, 2, 3, 4))
    return [float(value) for value in 10 * torch.log10(4.0 / error.clamp(min=1e-12))]


def measure_arm(arm: Arm, materials: Materials) -> dict[str, Any]:
    """One row: raw figures per call and per clip, accuracy, sizes. `refused` holds the reason of a recipe that the
    calibration cannot answer."""
    row: dict[str, Any] = {"key": arm.key, "arm": arm.label, "family": arm.family}
    reference = materials.reference()
    clips = reference
    if arm.family != "base":
        pipeline = load_tiny_pipeline()
        started = time.monotonic()
        try:
            row |= _simulate(arm, pipeline, materials) if arm.recipe is None else _convert(arm, pipeline, materials)
        except CalibrationRangeError as error:
            return {**row, "refused": str(error)}
        row["ready_seconds"] = round(time.monotonic() - started, 2)
        row["expert_nmse"] = expert_errors(pipeline, materials.calls())
        clips = materials.clips(pipeline)
        row["psnr_db"] = psnr(clips, reference)
        # A clip that no step consults would be a line in the table about nothing.
        row["unused_clips"] = len(hfq.unused_clips(pipeline))
    seen = classify(load_classifier(), clips)
    row["accuracy"] = summarise(seen == materials.settings.labels()[0])
    return row


def _convert(arm: Arm, pipeline: Any, materials: Materials) -> dict[str, Any]:
    """Convert, apply, and what the delta is."""
    assert arm.recipe is not None
    folder = Path(tempfile.mkdtemp(prefix="delta-", dir=materials.folder))
    try:
        with hfq.open_checkpoint(WEIGHTS) as checkpoint:
            started = time.monotonic()
            delta = hfq.quantize(checkpoint, arm.recipe, materials.calibration, out=folder / "delta")
            seconds = round(time.monotonic() - started, 2)
        with delta:
            found = describe_delta(delta)
            row = {
                "convert_seconds": seconds,
                "delta": delta.id,
                "delta_bytes": found["delta_bytes"],
                "stored_bits_per_weight": found["stored_bits_per_weight"],
                "packed_bits_per_weight": found["restored_bits_per_weight"],
                "block_bits_per_weight": _block_bits(delta, found["restored_bits_per_weight"]),
                "weight_nmse": {role: error["weight_nmse"] for role, error in found["error"].items()},
                "linear_output_nmse": {role: error["output_nmse"] for role, error in found["error"].items()},
                "clip": found["clip"],
                "warnings": found["warnings"],
            }
            hfq.apply(pipeline, delta)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def _block_bits(delta: Delta, packed: float) -> float:
    """Bits per weight of the blocks' linears: `packed` for quantized ones, 16 for kept ones."""
    bits = weights = 0.0
    for role in delta.roles:
        for site, route in delta.routes[role].items():
            if site.startswith("blocks."):
                rows, columns = delta.base_tensors(role)[f"{site}.weight"]["shape"]
                bits += rows * columns * (packed if route.to == "quantize" else BLOCK_BITS)
                weights += rows * columns
    return bits / weights


def _simulate(arm: Arm, pipeline: Any, materials: Materials) -> dict[str, Any]:
    assert arm.simulated is not None
    with hfq.open_checkpoint(WEIGHTS) as checkpoint, hfq.load_calibration(materials.calibration) as calibration:
        started = time.monotonic()
        bits = apply_mxfp4(pipeline, checkpoint, calibration, arm.simulated)
        seconds = round(time.monotonic() - started, 2)
    return {"convert_seconds": seconds, "packed_bits_per_weight": bits, "block_bits_per_weight": bits}


def code_digest() -> str:
    """SHA-256 of the code that a row depends on: formats, convert and the modules here that measure."""
    here = Path(__file__).parent
    files = [here / "mxfp4_arm.py", here / "result_measure.py", *sorted((here / "tiny_wan").glob("*.py"))]
    for package in (hfq.formats, hfq.convert):
        files += sorted(Path(package.__path__[0]).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
