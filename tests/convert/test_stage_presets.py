"""Every preset and every stage on the tiny Wan: convert, verify, restore, run; the same bytes on 1 and 2 threads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import bytes_of, forge

import hfq
from hfq.convert.clip import BINS, unused_clips
from hfq.convert.delta import Delta
from hfq.convert.delta_inspect import describe_delta
from hfq.convert.dry_run import dry_run
from hfq.convert.linear import QuantizedLinear
from hfq.convert.pipelines import LoadedModel
from hfq.convert.recipe import Recipe, preset_names
from hfq.convert.site_conversion import convert_site
from hfq.schema.errors import (
    CalibrationBaseError,
    HfqError,
    InconsistentDeltaError,
    MissingCalibrationError,
    OutputExistsError,
    RecipeError,
    TooFewRowsError,
    UsageError,
)

ROUTES = [{"match": ["blocks.4.*"], "to": "quantize"}, {"match": ["*"], "to": "keep"}]
"""One of eight blocks, for what takes longer."""


def made(*stages: dict[str, Any], name: str = "mine", **changes: Any) -> Recipe:
    document = {
        "schema": "hfq.recipe/1", "name": name, "weight": {"format": "hif4"}, "activation": {"format": "hif4"},
        "route": ROUTES, "stage": list(stages), **changes,
    }  # fmt: skip
    return Recipe.from_document(document)


SMOOTH = {"kind": "smooth", "statistic": "max"}
FULL = made(
    SMOOTH, {"kind": "outlier_columns", "k": 64, "match": ["*.ffn.2"]}, {"kind": "rotate", "block": 64},
    {"kind": "lowrank", "rank": 4}, {"kind": "gptq"}, {"kind": "clip", "rows": 32},
)  # fmt: skip


def converted(base: Path, recipe: Any, calibration: Path | None, out: Path, **options: Any) -> Delta:
    with hfq.open_checkpoint(base) as checkpoint:
        return hfq.quantize(checkpoint, recipe, calibration, out=out, **options)


def document_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ptq_state.json").read_text())
    return found


@pytest.fixture(scope="module")
def full_delta(tiny_weights: Path, tiny_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage in one delta."""
    out = tmp_path_factory.mktemp("delta") / "full"
    converted(tiny_weights, FULL, tiny_calibration, out).close()
    return out


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_converts_verifies_and_runs(
    preset: str, tiny_weights: Path, tiny_calibration: Path, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    out = tmp_path / "delta"
    delta = converted(tiny_weights, preset, tiny_calibration, out)
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        assert hfq.verify(delta, checkpoint).ok
        transformers = {role: copy.deepcopy(module) for role, module in tiny_model.transformers.items()}
        base = checkpoint.experts["low_noise"]
        for role, module in transformers.items():
            before = forward(module, 950.0 if role == "high_noise" else 200.0)
            hfq.apply(module, delta, role=role)
            after = forward(module, 950.0 if role == "high_noise" else 200.0)
            error = float((after - before).square().sum() / before.square().sum())
            assert 0 < error < 0.1
        # What runs is what the report measured: the effective weight is close to the base's.
        site = next(module for module in transformers["low_noise"].modules() if isinstance(module, QuantizedLinear))
        original = base.read_bf16(f"{site.site}.weight").float()
        effective = site.weight.float()
        assert float((effective - original).square().sum() / original.square().sum()) < 0.05
    described = describe_delta(delta)
    delta.close()
    assert described["restored_bits_per_weight"] > 4.4
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        planned = dry_run(checkpoint, preset, tiny_calibration)
    assert 0.5 < planned["delta_bytes"] / described["delta_bytes"] < 2


def forward(module: torch.nn.Module, t: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    config: Any = module.config
    latent = torch.randn(1, config.in_channels, 4, 16, 16, generator=generator)
    text = torch.randn(1, 4, config.text_dim, generator=generator)
    dtype = module.patch_embedding.weight.dtype
    with torch.no_grad():
        return module(
            hidden_states=latent.to(dtype), timestep=torch.tensor([t]), encoder_hidden_states=text.to(dtype)
        ).sample.float()


def test_one_and_two_threads_give_the_same_bytes(
    tiny_weights: Path, tiny_calibration: Path, full_delta: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        converted(tiny_weights, FULL, tiny_calibration, tmp_path / "two").close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert bytes_of(tmp_path / "two") == bytes_of(full_delta)
    # Restoring is the same whatever the threads.
    try:
        torch.set_num_threads(2)
        with hfq.open_checkpoint(tiny_weights) as checkpoint:
            assert hfq.verify(full_delta, checkpoint).ok
    finally:
        torch.set_num_threads(before)


def test_a_killed_conversion_goes_on_to_the_same_bytes(
    tiny_weights: Path, tiny_calibration: Path, full_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done = tmp_path / "delta", []

    def interrupted(site: Any, *arguments: Any) -> Any:
        done.append(site.name)
        if len(done) == 13:  # in the second expert
            raise KeyboardInterrupt
        return convert_site(site, *arguments)

    monkeypatch.setattr("hfq.convert.convert.convert_site", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(tiny_weights, FULL, tiny_calibration, out)
    monkeypatch.undo()
    assert (tmp_path / "delta.partial").is_dir()
    with pytest.raises(OutputExistsError):
        converted(tiny_weights, FULL, tiny_calibration, out)
    converted(tiny_weights, FULL, tiny_calibration, out, resume=True).close()
    assert bytes_of(out) == bytes_of(full_delta)


def test_the_runtime_takes_the_bin_of_the_timestep(full_delta: Path, tiny_model: LoadedModel) -> None:
    module = copy.deepcopy(tiny_model.transformers["low_noise"])
    hfq.apply(module, full_delta, role="low_noise")
    linears = [child for child in module.modules() if isinstance(child, QuantizedLinear)]
    entry = document_of(full_delta)["sites"]["low_noise"][linears[0].site]
    (clip,) = [op for op in entry["ops"] if op["op"] == "clip"]
    early, late = clip["edges"]
    outputs = {}
    for index, t in enumerate((early + 1, (early + late) / 2, late - 1)):
        outputs[index] = forward(module, t)
        assert {(linear.site, index) for linear in linears} <= linears[0].clock.consulted
        assert len(unused_clips(module)) == (BINS - 1 - index) * len(linears)
    # The table is what makes the difference: with the first bin's headroom everywhere the last bin's output changes
    # exactly when the table has another value there.
    changed = any(linear.clip.headroom[0] != linear.clip.headroom[2] for linear in linears)
    for linear in linears:
        linear.clip = type(linear.clip)(linear.clip.edges, (linear.clip.headroom[0],) * 3)
    assert torch.equal(forward(module, late - 1), outputs[2]) != changed
    with pytest.raises(UsageError, match="call the transformer"):
        linears[0](torch.zeros(1, linears[0].in_features, dtype=torch.bfloat16))


def test_the_reported_error_is_that_of_the_clips_chosen(full_delta: Path) -> None:
    report = json.loads((full_delta / "report.json").read_text())
    assert report["warnings"]  # 96 kept rows for widths of 128 and 512
    for role, expert in report["experts"].items():
        assert 0 < expert["output_nmse"] < 0.1, role
        assert all(entry["output_nmse"] is not None for entry in expert["sites"].values())


@pytest.mark.parametrize("scope", ["bin", "expert", "global"])
def test_clip_scopes(scope: str, tiny_weights: Path, tiny_calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / scope
    converted(tiny_weights, made(SMOOTH, {"kind": "clip", "scope": scope, "rows": 32}), tiny_calibration, out).close()
    sites = document_of(out)["sites"]
    for site, entry in sites["high_noise"].items():
        if entry["route"] == "keep":
            continue
        found = {role: sites[role][site]["ops"][1]["headroom"] for role in sites}
        if scope != "bin":
            assert all(len(set(headroom)) == 1 for headroom in found.values())
        if scope == "global":
            assert found["high_noise"] == found["low_noise"]


def lacks_clip(document: dict[str, Any]) -> None:
    ops = first_site(document)["ops"]
    ops.remove(next(op for op in ops if op["op"] == "clip"))


def first_site(document: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in document["sites"]["low_noise"].values() if entry["route"] == "quantize")


def op(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(found for found in first_site(document)["ops"] if found["op"] == kind)


@pytest.mark.parametrize(
    "edit",
    [
        lacks_clip,
        lambda document: op(document, "clip").update(headroom=[1.0, 1.0, 1.01]),
        lambda document: op(document, "clip").update(edges=[700, 650]),
        lambda document: op(document, "rotate").update(seed=1),
        lambda document: op(document, "rotate").update(block=128),
        lambda document: op(document, "codes").update(scale=None if op(document, "codes")["scale"] else "scale"),
        lambda document: op(document, "lowrank").update(up="lowrank_down"),
        lambda document: first_site(document)["ops"].reverse(),
        lambda document: document["recipe"]["stage"][3].update(rank=5),
        lambda document: document["recipe"]["stage"][1].update(k=128),
        lambda document: document["recipe"]["stage"].pop(4),
    ],
)
def test_a_forged_document_is_refused_on_opening(edit: Any, full_delta: Path, tmp_path: Path) -> None:
    with pytest.raises((InconsistentDeltaError, HfqError)) as caught:
        hfq.load_delta(forge(full_delta, tmp_path / "forged", edit))
    assert caught.value.exit_code == 1


def test_stages_without_what_they_need(tiny_weights: Path, tiny_calibration: Path, small_calibration: Path,
                                       small_base: Path, tmp_path: Path) -> None:  # fmt: skip
    out = tmp_path / "delta"
    with pytest.raises(MissingCalibrationError, match="--keep-inputs"):
        converted(tiny_weights, made({"kind": "gptq"}), None, out)
    with pytest.raises(CalibrationBaseError, match="another model"):
        converted(tiny_weights, made({"kind": "gptq"}), small_calibration, out)
    # 32 rows are half of the width 64 and a quarter of 128; an eighth is the least.
    wide = [{"match": ["blocks.0.ffn.2"], "to": "quantize"}, {"match": ["*"], "to": "keep"}]
    with pytest.raises(TooFewRowsError, match=r"at least 16, found 15") as caught:
        converted(small_base, made({"kind": "gptq", "tokens": 15}, route=wide), small_calibration, out)
    assert caught.value.exit_code == 2
    assert "raise `tokens`" in str(caught.value)
    with pytest.raises(RecipeError, match="does not divide"):
        converted(tiny_weights, made({"kind": "rotate", "block": 256}), None, out)
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_kept_too_few_rows(tiny_weights: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    hfq.calibrate(tiny_weights, ["a red circle moving left"], few, steps=4, keep_inputs=8).close()
    with pytest.raises(TooFewRowsError, match=r"kept too few input rows for gptq; expected at least 64.*--keep-inputs"):
        converted(tiny_weights, made({"kind": "gptq"}), few, tmp_path / "delta")
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_generate_names_the_clips_that_no_step_consulted(
    full_delta: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfq.cli import run

    clip = tmp_path / "clip.gif"
    arguments = ["--base", str(tiny_weights), "--delta", str(full_delta), "--prompt", "a red circle moving left"]
    # Two steps: one of each expert, so that two bins of each are left over.
    assert run(["generate", *arguments, "--steps", "2", "-o", str(clip), "--json"]) == 0
    out, err = capsys.readouterr()
    unused = {(entry["expert"], entry["bin"]) for entry in json.loads(out)["unused_clips"]}
    assert len(unused) == 4
    assert {role for role, _ in unused} == {"high_noise", "low_noise"}
    assert err.count("were never consulted") == 4
