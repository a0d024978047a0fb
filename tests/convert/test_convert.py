"""Conversion: the same inputs give the same bytes, and what cannot be converted leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made import SMALL, bytes_of, write_base, write_calibration
from synthetic import tiny, write_checkpoint
from test_recipe import recipe

import hfq
from hfq.convert.architecture import Site
from hfq.convert.dry_run import dry_run
from hfq.convert.site_costs import Speed, site_seconds
from hfq.schema.errors import (
    CalibrationBaseError,
    HfqError,
    MissingCalibrationError,
    NonFiniteWeightError,
    OutputExistsError,
    UnmatchedRuleError,
    UsageError,
)

KEEP_ALL = recipe(route=[{"match": "*", "to": "keep"}])


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, label: str, total: int, unit: str) -> None: ...
    def advance(self, amount: int = 1) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def convert(base: str | Path, made: Any, out: Path, calibration: Path | None = None, **options: Any) -> str:
    role = options.pop("role", None)
    with (
        hfq.open_checkpoint(base, role=role) as checkpoint,
        hfq.quantize(checkpoint, made, calibration, out=out, **options) as delta,
    ):
        return delta.id


def test_two_runs_and_two_threads_give_the_same_bytes(
    small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        convert(small_base, "tail-aware-hif4", tmp_path / "again", small_calibration)
    finally:
        torch.set_num_threads(before)
    assert bytes_of(tmp_path / "again") == bytes_of(small_delta)


def test_a_delta_is_four_files_and_small(small_delta: Path, small_base: Path) -> None:
    assert sorted(path.name for path in small_delta.iterdir()) == [
        "provenance.json", "ptq_state.json", "ptq_state.safetensors", "report.json",
    ]  # fmt: skip
    document = json.loads((small_delta / "ptq_state.json").read_bytes())
    assert document["state"]["tensors"] == 2 * 2 * 10
    assert {role: len(sites) for role, sites in document["sites"].items()} == {"high_noise": 26, "low_noise": 26}
    report = json.loads((small_delta / "report.json").read_bytes())
    assert report["delta"] == document["id"]
    assert 0 < report["experts"]["high_noise"]["output_nmse"] < 0.1
    provenance = json.loads((small_delta / "provenance.json").read_bytes())
    files = provenance["base"]["experts"]["low_noise"]["files"]
    assert [file["name"] for file in files] == ["low_noise_model/diffusion_pytorch_model.safetensors"]
    assert str(small_base) not in json.dumps([document, report, provenance])


def test_no_time_no_path_no_order_enters_the_id(small_base: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(small_base, elsewhere)
    assert convert(small_base, "rtn-hif4", tmp_path / "a") == convert(elsewhere, "rtn-hif4", tmp_path / "b")
    assert (
        convert(small_base, "rtn-hif4", tmp_path / "c", hash_files=False)
        == json.loads(bytes_of(tmp_path / "a")[0])["id"]
    )
    assert json.loads((tmp_path / "c/provenance.json").read_bytes())["base"]["experts"]["low_noise"]["files"] == []


def test_everything_that_decides_the_delta_changes_its_id(small_base: Path, small_delta: Path, tmp_path: Path) -> None:
    ids = {json.loads(bytes_of(small_delta)[0])["id"]}
    ids.add(convert(small_base, "rtn-hif4", tmp_path / "rtn"))
    ids.add(convert(small_base, "rtn-hif8", tmp_path / "hif8"))
    ids.add(convert(small_base, "rtn-hif4", tmp_path / "one", role="low_noise"))
    ids.add(convert(small_base, KEEP_ALL, tmp_path / "none"))
    ids.add(convert(write_base(tmp_path / "other", seed=1), "rtn-hif4", tmp_path / "seed"))
    assert len(ids) == 6


def test_an_f16_copy_is_another_base(tmp_path: Path) -> None:
    f32, f16 = write_base(tmp_path / "f32"), write_base(tmp_path / "f16", dtype="F16")
    assert convert(f32, "rtn-hif4", tmp_path / "a") != convert(f16, "rtn-hif4", tmp_path / "b")


@pytest.mark.parametrize("kind", ["i2v", "i2v-image", "ti2v", "vace"])
def test_every_kind_of_model_converts_and_verifies(kind: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "base", tiny(kind), "original-2.1")
    role = "single"
    convert(path, recipe(route=[{"match": "*", "to": "quantize"}]), tmp_path / "delta", role=role)
    with hfq.load_delta(tmp_path / "delta") as delta, hfq.open_checkpoint(path, role=role) as checkpoint:
        result = hfq.verify(delta, checkpoint)
    assert result.ok
    assert result.sites["single"] == len(tiny(kind).sites())


def test_one_expert_may_be_quantized_alone(small_base: Path, tmp_path: Path) -> None:
    rules = [{"match": "blocks.*", "to": "quantize", "expert": "low_noise"}, {"match": "*", "to": "keep"}]
    convert(small_base, recipe(route=rules), tmp_path / "delta")
    with hfq.load_delta(tmp_path / "delta") as delta:
        assert (len(delta.quantized("high_noise")), len(delta.quantized("low_noise"))) == (0, 20)


def test_a_needed_calibration_that_is_absent_stops_before_any_work(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingCalibrationError, match="hfq calibrate"):
        convert(small_base, "tail-aware-hif4", tmp_path / "delta")
    assert list(tmp_path.iterdir()) == []


def test_an_unneeded_calibration_measures_and_decides_nothing(
    small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    notes = Notes()
    with_one = convert(small_base, "rtn-hif4", tmp_path / "a", small_calibration, progress=notes)
    assert notes.notes == [
        "the recipe rtn-hif4 needs no calibration; the given one is ignored for the delta and used for measuring alone"
    ]
    assert with_one == convert(small_base, "rtn-hif4", tmp_path / "b")


def test_a_calibration_of_other_weights_is_refused_and_nothing_is_left(tmp_path: Path, small_calibration: Path) -> None:
    other = write_base(tmp_path / "base", seed=1)
    with pytest.raises(CalibrationBaseError, match="another model"):
        convert(other, "tail-aware-hif4", tmp_path / "delta", small_calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_calibration_of_another_shape_is_refused_before_any_weight_is_read(
    tmp_path: Path, small_calibration: Path
) -> None:
    deeper = write_checkpoint(tmp_path / "base", tiny(num_layers=3), "original-2.2", seed=None)
    with pytest.raises(CalibrationBaseError), hfq.open_checkpoint(deeper) as checkpoint:
        dry_run(checkpoint, "tail-aware-hif4", small_calibration)


def test_a_calibration_of_one_expert_serves_that_expert_alone(small_base: Path, tmp_path: Path) -> None:
    with hfq.open_checkpoint(small_base) as checkpoint:
        calibration = write_calibration(tmp_path / "cal", checkpoint, ("high_noise",))
    with pytest.raises(CalibrationBaseError, match="low_noise"):
        convert(small_base, "tail-aware-hif4", tmp_path / "both", calibration)
    assert convert(small_base, "tail-aware-hif4", tmp_path / "one", calibration, role="high_noise")
    stage = {"kind": "smooth", "statistic": "max", "expert": "high_noise"}
    assert convert(small_base, recipe(stage=[stage]), tmp_path / "stage", calibration)


def damage(name: str, value: float) -> Any:
    def change(canonical: str, values: torch.Tensor) -> torch.Tensor:
        if canonical == name:
            values.view(-1)[3] = value
        return values

    return change


def test_nan_in_a_weight_to_be_quantized_is_refused_and_nothing_is_left(
    tmp_path: Path, small_calibration: Path
) -> None:
    path = write_base(tmp_path / "base", change=damage("blocks.1.ffn.0.weight", float("nan")))
    with pytest.raises(NonFiniteWeightError, match=r"blocks.1.ffn.0.*\[0, 3\]"):
        convert(path, "rtn-hif4", tmp_path / "delta")
    with hfq.open_checkpoint(path) as checkpoint:
        calibration = write_calibration(tmp_path / "cal", checkpoint)
    with pytest.raises(NonFiniteWeightError):  # and not an error about the mask that came from it
        convert(path, "tail-aware-hif4", tmp_path / "delta", calibration)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cal"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link", "unfinished", "no parent"])
def test_an_output_that_is_in_the_way(kind: str, small_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "delta"
    error: type[HfqError] = OutputExistsError
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "unfinished":
        (tmp_path / "delta.partial").mkdir()
    else:
        out, error = tmp_path / "no" / "delta", UsageError
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error):
        convert(small_base, "rtn-hif4", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_dry_run_predicts_and_writes_nothing(
    small_base: Path, small_calibration: Path, small_delta: Path, tmp_path: Path
) -> None:
    with hfq.open_checkpoint(small_base) as checkpoint:
        planned = dry_run(checkpoint, "tail-aware-hif4", small_calibration)
    real = sum(path.stat().st_size for path in small_delta.iterdir())
    assert 0.5 * real < planned["delta_bytes"] < 2 * real
    assert [(row["to"], row["sites"]) for row in planned["routing"]] == [("quantize", 20), ("keep", 6)] * 2
    assert planned["threads"] == torch.get_num_threads()
    # A few hundred kilobytes: the time is that of starting.
    assert 1 < planned["seconds"] < 10


def test_predicted_time_grows_with_width_and_stages() -> None:
    speed = Speed(hash_bytes=1e9, products=1e11)
    wide = Site("blocks.0.ffn.0", 5120, 13824, True, 0, "blocks.0.ffn.0")
    narrow = Site("blocks.0.self_attn.q", 5120, 5120, True, 0, "blocks.0.self_attn.qkv")
    # Rounding 71 million weights takes less than a second, GPTQ of as many takes many.
    assert 0.1 < site_seconds([], wide, speed) < 1
    assert site_seconds([], wide, speed) == pytest.approx(13824 / 5120 * site_seconds([], narrow, speed))
    gptq = [{"kind": "gptq", "tokens": 4096}]
    assert site_seconds(gptq, wide, speed) > 5 * site_seconds([], wide, speed)


def test_a_recipe_that_does_not_fit_stops_before_any_work(small_base: Path, tmp_path: Path) -> None:
    rules = [{"match": "blocks.7.*", "to": "keep"}, {"match": "*", "to": "quantize"}]
    with pytest.raises(UnmatchedRuleError):
        convert(small_base, recipe(route=rules), tmp_path / "delta")
    assert list(tmp_path.iterdir()) == []


_MEASURE = """
import resource, sys
import hfq
for base, out in zip(sys.argv[1::2], sys.argv[2::2]):
    with hfq.open_checkpoint(base, role="single") as checkpoint:
        with hfq.quantize(checkpoint, "rtn-hif4", out=out) as delta:
            assert hfq.verify(delta, checkpoint).ok
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_peak_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MEASURE]
    for blocks in (1, 12):
        wide = tiny(dim=512, ffn_dim=2048, num_heads=4, num_layers=blocks)
        # 9.4 MB of BF16 a block: eleven more would be 100 MB.
        command.append(write_checkpoint(tmp_path / f"base{blocks}", wide, "original-2.1", seed=None, dtype="BF16"))
        command.append(str(tmp_path / f"delta{blocks}"))
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    one, twelve = map(int, done.stdout.split())
    assert twelve - one < 30, (one, twelve)


def test_small_is_what_the_tests_say_it_is() -> None:
    assert len(SMALL.sites()) == 26
