"""Every preset on blocks of real 14B width: convert within its memory limit, verify, generate."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from large_runs import make_calibration, make_model, run_measured

from hfq.convert.recipe import load_recipe, preset_names

pytestmark = pytest.mark.large

GB = 1e9
PLAIN_LIMIT, FACTOR_LIMIT = 2.5e9, 6e9
"""Peak resident memory; the second with `gptq` or `lowrank`."""

BLOCKS = {"boundary-hif8": 6}
"""Blocks of the synthetic model; one is enough but where the first two and the last three are kept."""

KEPT_ROWS = 1366
"""Per timestep bin: 4,098 in all, more than an eighth of 13,824."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models, calibrations and the rest of a pipeline, made when asked for."""
    found = tmp_path_factory.mktemp("large-presets")
    yield found
    shutil.rmtree(found)


def prepared(folder: Path, blocks: int) -> tuple[Path, Path]:
    model, calibration = folder / f"model-{blocks}", folder / f"cal-{blocks}"
    if not model.exists():
        make_model(model, blocks, "BF16")
        make_calibration(calibration, model, KEPT_ROWS if blocks == 1 else 0)
    return model, calibration


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Path:
    """A text encoder of the real width, a small VAE, a scheduler."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_pipelines, "_TEXT_DIM", 4096)
        made = tiny_pipelines.build_pipeline("t2v-2.2")
    # One expert, as in Wan 2.1.
    made.register_modules(transformer_2=None)
    made.register_to_config(boundary_ratio=None)
    made.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_at_14b_widths(preset: str, folder: Path, pipeline: Path, figures: dict[str, Any]) -> None:
    model, calibration = prepared(folder, BLOCKS.get(preset, 1))
    delta, clip = folder / f"{preset}.delta", folder / f"{preset}.mp4"
    kinds = {stage["kind"] for stage in load_recipe(preset).stages}
    limit = FACTOR_LIMIT if kinds & {"gptq", "lowrank"} else PLAIN_LIMIT
    work = {
        "convert": ("convert", str(model), "--recipe", preset, "--calibration", str(calibration), "-o", str(delta)),
        "verify": ("verify", str(delta), "--base", str(model)),
        "generate": (
            "generate", "--base", str(model), "--pipeline", str(pipeline), "--delta", str(delta), "--prompt", "a",
            "--height", "32", "--width", "32", "--frames", "5", "--steps", "3", "-o", str(clip),
        ),
    }  # fmt: skip
    planned, _ = run_measured(*work["convert"], "--dry-run")
    for name, arguments in work.items():
        started = time.perf_counter()
        document, peak = run_measured(*arguments)
        seconds = time.perf_counter() - started
        print(f"{preset}: {name}: {peak / GB:.2f} GB, {seconds:.0f} s", flush=True)
        found = {"peak_rss_bytes": peak, "seconds": round(seconds, 1), "blocks": BLOCKS.get(preset, 1)}
        if name == "convert":
            found["stored_bits_per_weight"] = document["stored_bits_per_weight"]
            found["restored_bits_per_weight"] = document["restored_bits_per_weight"]
            found["predicted_bytes"], found["predicted_seconds"] = planned["peak_bytes"], planned["seconds"]
            print(f"{preset}: predicted {planned['peak_bytes'] / GB:.2f} GB, {planned['seconds']:.0f} s", flush=True)
            assert peak < planned["peak_bytes"]
        figures[f"preset {preset}: {name}"] = found
        assert name == "generate" or peak < limit
    assert clip.stat().st_size > 0
    assert json.loads((delta / "ptq_state.json").read_text())["recipe"]["name"] == preset
    shutil.rmtree(delta)
