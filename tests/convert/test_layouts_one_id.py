"""One set of weights, any layout, any sharding, F32 or BF16: one delta id, and each verifies it."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import bytes_of, write_base

import hfq

LAYOUTS = {
    "original F32": {"layout": "original-2.2"},
    "original BF16": {"layout": "original-2.2", "dtype": "BF16"},
    "original in shards": {"layout": "original-2.2", "dtype": "BF16", "shards": 3},
    "diffusers in shards": {"layout": "diffusers-pair", "shards": 4},
    "diffusers BF16 and F32 mixed": {"layout": "diffusers-pair", "dtype": "mixed"},
    "ComfyUI pair": {"layout": "comfyui-pair", "dtype": "BF16"},
    "ComfyUI pair, model.diffusion_model.": {"layout": "comfyui-pair", "prefix": "model.diffusion_model."},
    "ComfyUI pair, diffusion_model.": {"layout": "comfyui-pair", "dtype": "mixed", "prefix": "diffusion_model."},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_does_not_matter(
    name: str, small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path
) -> None:
    path = write_base(tmp_path / "base", **LAYOUTS[name])
    with hfq.open_checkpoint(path) as checkpoint:
        with hfq.quantize(checkpoint, "tail-aware-hif4", small_calibration, out=tmp_path / "delta") as delta:
            assert hfq.verify(small_delta, checkpoint).ok
        assert bytes_of(tmp_path / "delta") == bytes_of(small_delta)
    with hfq.open_checkpoint(small_base) as original, hfq.load_delta(tmp_path / "delta") as delta:
        assert hfq.verify(delta, original).ok


def test_two_experts_in_two_layouts(small_delta: Path, tmp_path: Path) -> None:
    write_base(tmp_path / "original", roles=("high_noise",))
    comfy = write_base(tmp_path / "comfy", layout="comfyui-pair", dtype="BF16", roles=("low_noise",))
    parts = {"high_noise": tmp_path / "original/high_noise_model", "low_noise": comfy.removeprefix("low_noise=")}
    with hfq.open_checkpoint(parts) as checkpoint:
        assert hfq.verify(small_delta, checkpoint).ok
