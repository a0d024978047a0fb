"""What a calibration cannot give is found before any weight is read; what it can give is used and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import ROWS, forge, write_base, write_calibration
from test_recipe import recipe
from torch import Tensor

import hfq
from hfq.cli import run
from hfq.convert.calibration import file_sha256
from hfq.convert.delta_inspect import describe_delta
from hfq.convert.dry_run import dry_run
from hfq.convert.report_html import render_report
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.safetensors_writer import write_safetensors
from hfq.convert.site_error import OUTPUT_ROWS
from hfq.convert.site_output import SiteOutput, evenly
from hfq.convert.weights import quantize_weight
from hfq.schema.canonical import content_id
from hfq.schema.errors import CalibrationBaseError, HfqError, MalformedFileError, TooFewRowsError, WrongRoleError

SPARSE = "blocks.1.ffn.2"
GPTQ = {"kind": "gptq", "inputs": "exact"}


def calibrate(base: Path, folder: Path, change: Callable[[str, Tensor], Tensor], kept: int = 32) -> Path:
    with hfq.open_checkpoint(base) as checkpoint:
        return write_calibration(folder, checkpoint, kept=kept, change=change)


def sparse(loud: float) -> Callable[[str, Tensor], Tensor]:
    """Channel 5 of one input is loud in one row of 512, and nearly silent otherwise; channel 6 is silent."""

    def change(group: str, x: Tensor) -> Tensor:
        if group == SPARSE:
            x = x.clone()
            x[..., 5:7] = 0
            x[0, :, 5] = 1e-6
            x[1, 17, 5] = loud
        return x

    return change


def report_of(delta: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((delta / "report.json").read_bytes())
    return found


@pytest.mark.parametrize("preset", ["tail-aware-hif4", "tail-aware-rot-hif4"])
@pytest.mark.parametrize(("loud", "floor", "maximum"), [(40.0, 0, 1), (0.1, 1, 0)])
def test_one_sparse_channel_does_not_refuse_a_model(
    preset: str, loud: float, floor: int, maximum: int, small_base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    calibration = calibrate(small_base, tmp_path / "cal", sparse(loud))
    arguments = ["convert", str(small_base), "--recipe", preset, "--calibration", str(calibration)]
    line = (
        f"percentile  low_noise: not told by the samples for 1 channel in 1 linear; {floor} take the recipe's floor, "
        f"{maximum} their exact maximum"
    )
    assert run([*arguments, "--dry-run"]) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert run([*arguments, "-o", str(tmp_path / "delta")]) == 0
    assert line in capsys.readouterr().out.splitlines()
    report = report_of(tmp_path / "delta")
    for role in ("high_noise", "low_noise"):
        expert = report["experts"][role]
        assert expert["sparse_channels"] == {"linears": 1, "floor": floor, "maximum": maximum}
        counted = {
            site: entry["sparse_channels"] for site, entry in expert["sites"].items() if "sparse_channels" in entry
        }
        assert counted == {SPARSE: {"floor": floor, "maximum": maximum}}
    with hfq.load_delta(tmp_path / "delta") as delta, hfq.open_checkpoint(small_base) as checkpoint:
        assert hfq.verify(delta, checkpoint).ok
        weight = checkpoint.experts["low_noise"].read_bf16(f"{SPARSE}.weight").double().abs().amax(dim=0)
        mask = delta.state("low_noise", SPARSE)["mask"].double()
        loudness = max(float(torch.tensor(loud).bfloat16()) if maximum else 0.0, 1e-3)
        assert float(mask[5]) == pytest.approx(float((weight[5] / loudness).sqrt()), rel=1e-6)
        assert float(mask[6]) == pytest.approx(float((weight[6] / 1e-3).sqrt()), rel=1e-6)
        assert "Sparse channels" in render_report(delta)


def test_no_sparse_channel_is_not_mentioned(small_delta: Path) -> None:
    assert all("sparse_channels" not in expert for expert in report_of(small_delta)["experts"].values())
    with hfq.load_delta(small_delta) as delta:
        assert "Sparse channels" not in render_report(delta)


def other_weights(tmp_path: Path) -> tuple[str, Path]:
    other = write_base(tmp_path / "other", seed=1)
    return other, calibrate(Path(write_base(tmp_path / "base")), tmp_path / "cal", lambda group, x: x)


def other_linear(tmp_path: Path) -> tuple[str, Path]:
    """As a merged LoRA leaves a model: every small tensor is the same."""

    def change(name: str, values: Tensor) -> Tensor:
        return values + 0.01 if "self_attn" in name and values.dim() == 2 else values

    other = write_base(tmp_path / "other", change=change)
    return other, calibrate(Path(write_base(tmp_path / "base")), tmp_path / "cal", lambda group, x: x)


def exchanged(tmp_path: Path) -> tuple[str, Path]:
    base = write_base(tmp_path / "base")
    first, second = (
        Path(base) / name / "diffusion_pytorch_model.safetensors" for name in ("low_noise_model", "high_noise_model")
    )
    calibration = calibrate(Path(base), tmp_path / "cal", lambda group, x: x)
    return f"high_noise={first},low_noise={second}", calibration


def too_few(tmp_path: Path) -> tuple[str, Path]:
    base = write_base(tmp_path / "base")
    return base, calibrate(Path(base), tmp_path / "cal", lambda group, x: x, kept=4)


def impossible(tmp_path: Path) -> tuple[str, Path]:
    """A sum of squares above what the maximum allows, in the last input of the second expert, with every hash right."""
    base = write_base(tmp_path / "base")
    folder = calibrate(Path(base), tmp_path / "cal", lambda group, x: x)
    path = folder / "statistics.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    tensors["low_noise/blocks.1.self_attn.qkv/sum_squares"] *= 1e6
    document = json.loads((folder / "calibration.json").read_text())
    sha256 = write_safetensors(path, tensors)
    document["statistics"] = {"sha256": sha256, "size_bytes": path.stat().st_size}
    document["id"] = content_id({key: value for key, value in document.items() if key != "id"})
    (folder / "calibration.json").write_text(json.dumps(document))
    assert file_sha256(path) == sha256
    return base, folder


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (other_weights, CalibrationBaseError),
        (other_linear, CalibrationBaseError),
        (exchanged, WrongRoleError),
        (too_few, TooFewRowsError),
        (impossible, MalformedFileError),
    ],
)
def test_the_dry_run_refuses_what_a_conversion_refuses(
    make: Callable[[Path], tuple[str, Path]], error: type[HfqError], tmp_path: Path
) -> None:
    model, calibration = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with hfq.open_checkpoint(model) as checkpoint:
        chosen = recipe(stage=[{"kind": "smooth", "statistic": "percentile", "percentile": 99.0}, GPTQ])
        with pytest.raises(error) as dry:
            dry_run(checkpoint, chosen, calibration)
    with hfq.open_checkpoint(model) as checkpoint, pytest.raises(error) as real:
        hfq.quantize(checkpoint, chosen, calibration, out=tmp_path / "delta")
    assert str(dry.value) == str(real.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_calibration_of_one_expert_is_called_that(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hfq.open_checkpoint(small_base) as checkpoint:
        calibration = write_calibration(tmp_path / "cal", checkpoint, ("low_noise",))
    arguments = ["convert", str(small_base), "--recipe", "tail-aware-hif4", "--calibration", str(calibration)]
    for more in (["--dry-run"], ["-o", str(tmp_path / "delta")]):
        assert run([*arguments, *more]) == 3
        said = capsys.readouterr().err
        assert "the calibration does not have the expert high_noise; expected high_noise, found low_noise" in said
        assert "another model" not in said
    assert run([*arguments, "--role", "low_noise", "-o", str(tmp_path / "delta")]) == 0


def test_the_dry_run_refuses_an_output_that_is_in_the_way(
    small_base: Path, small_delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(small_base), "--recipe", "rtn-hif4", "-o", str(small_delta)]
    assert run([*arguments, "--dry-run"]) == run(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second


def repeated(different: int) -> Callable[[str, Tensor], Tensor]:
    """Text that repeats at every step: a few rows, over and over, in one input."""

    def change(group: str, x: Tensor) -> Tensor:
        if group == "blocks.0.cross_attn.kv":
            return x[:, torch.arange(ROWS) % different] if different else x * 0
        return x

    return change


ONE = [{"match": ["blocks.0.cross_attn.k"], "to": "quantize"}, {"match": ["*"], "to": "keep"}]


def few_rows(chosen: str | None) -> Any:
    stage = GPTQ if chosen is None else {**GPTQ, "few_rows": chosen}
    return recipe(route=ONE, stage=[{"kind": "smooth", "statistic": "max"}, stage])


@pytest.mark.parametrize("chosen", [None, "round"])
def test_equal_rows_are_one_row(chosen: str | None, small_base: Path, tmp_path: Path) -> None:
    """128 kept rows of which six differ, for 64 channels: rounded, said, stored with the linear, and verified."""
    calibration = calibrate(small_base, tmp_path / "cal", repeated(6), kept=128)
    with hfq.open_checkpoint(small_base) as checkpoint:
        planned = dry_run(checkpoint, few_rows(chosen), calibration)
        assert planned["rounded"] == {"high_noise": 1, "low_noise": 1}
        assert "blocks.0.cross_attn.k: 6 different rows, 64 channels" in planned["warnings"][2]
        with hfq.quantize(checkpoint, few_rows(chosen), calibration, out=tmp_path / "delta") as delta:
            entry = delta.site("low_noise", "blocks.0.cross_attn.k")
            assert entry["rounded"] == "gptq: 6 different input rows for 64 channels"
            assert [op["op"] for op in entry["ops"]] == ["mask", "qdq"]
            assert hfq.verify(delta, checkpoint).ok
            described = describe_delta(delta)
            assert described["rounded"]["high_noise"] == {"blocks.0.cross_attn.k": entry["rounded"]}
            assert described["warnings"] == planned["warnings"] == report_of(tmp_path / "delta")["warnings"]
            assert entry["rounded"] in render_report(delta)
        plain = recipe(route=ONE, stage=[{"kind": "smooth", "statistic": "max"}])
        with hfq.quantize(checkpoint, plain, calibration, out=tmp_path / "plain") as delta:
            assert delta.site("low_noise", "blocks.0.cross_attn.k")["digest"] == entry["digest"]


def test_a_recipe_may_refuse_few_rows_or_use_them(small_base: Path, tmp_path: Path) -> None:
    calibration = calibrate(small_base, tmp_path / "cal", repeated(6), kept=128)
    with hfq.open_checkpoint(small_base) as checkpoint:
        with pytest.raises(TooFewRowsError, match=r"at least 32 different rows, found 6 of 128") as caught:
            dry_run(checkpoint, few_rows("refuse"), calibration)
        assert caught.value.exit_code == 2
        with hfq.quantize(checkpoint, few_rows("warn"), calibration, out=tmp_path / "delta") as delta:
            entry = delta.site("low_noise", "blocks.0.cross_attn.k")
            assert "rounded" not in entry
            assert [op["op"] for op in entry["ops"]] == ["mask", "codes", "qdq"]
            assert "6 different rows, 64 channels" in " ".join(describe_delta(delta)["warnings"])


def test_an_input_that_carries_nothing_is_rounded(small_base: Path, tmp_path: Path) -> None:
    """Nothing can be fitted to rows of zeros, whatever the recipe wants; zeros are not a weight's codes."""
    calibration = calibrate(small_base, tmp_path / "cal", repeated(0), kept=128)
    with (
        hfq.open_checkpoint(small_base) as checkpoint,
        hfq.quantize(checkpoint, few_rows("warn"), calibration, out=tmp_path / "delta") as delta,
    ):
        assert "0 different" in delta.site("low_noise", "blocks.0.cross_attn.k")["rounded"]


def test_enough_different_rows_are_used(small_base: Path, tmp_path: Path) -> None:
    calibration = calibrate(small_base, tmp_path / "cal", lambda group, x: x, kept=192)
    with (
        hfq.open_checkpoint(small_base) as checkpoint,
        hfq.quantize(checkpoint, few_rows(None), calibration, out=tmp_path / "delta") as delta,
    ):
        assert "rounded" not in delta.site("low_noise", "blocks.0.cross_attn.k")
        assert not [text for text in describe_delta(delta)["warnings"] if "gptq" in text]


@pytest.mark.parametrize("edit", ["lie", "drop"])
def test_a_forged_reason_is_refused(edit: str, small_base: Path, tmp_path: Path) -> None:
    calibration = calibrate(small_base, tmp_path / "cal", repeated(6), kept=128)
    with hfq.open_checkpoint(small_base) as checkpoint:
        hfq.quantize(checkpoint, few_rows(None), calibration, out=tmp_path / "rounded").close()
        plain = recipe(route=ONE, stage=[{"kind": "smooth", "statistic": "max"}])
        hfq.quantize(checkpoint, plain, calibration, out=tmp_path / "plain").close()

    def change(document: dict[str, Any]) -> None:
        entry = document["sites"]["low_noise"]["blocks.0.cross_attn.k"]
        if edit == "drop":
            del entry["rounded"]
        else:
            entry["rounded"] = "gptq: 6 different input rows for 64 channels"

    source = tmp_path / ("rounded" if edit == "drop" else "plain")
    with pytest.raises(HfqError) as caught:
        hfq.load_delta(forge(source, tmp_path / "forged", change))
    assert caught.value.exit_code == 1


def test_outputs_are_measured_whenever_a_calibration_is_there(
    small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    """Of a recipe without stages: the error of the outputs on kept rows, as anybody can compute it; the same delta."""
    site = "blocks.1.ffn.2"
    with hfq.open_checkpoint(small_base) as checkpoint:
        for name, chosen in (("hif4", "rtn-hif4"), ("hif8", "rtn-hif8")):
            with hfq.quantize(checkpoint, chosen, small_calibration, out=tmp_path / name) as delta:
                loaded, described = delta.recipe, describe_delta(delta)
            with hfq.quantize(checkpoint, chosen, out=tmp_path / f"{name}-without") as without:
                assert without.id == described["id"]
            assert described["calibration"] is None
            with hfq.load_calibration(small_calibration) as calibration:
                assert described["measured_with"] == {"calibration": calibration.id, "prompts": 1}
                rows = evenly(calibration.read("low_noise", site).pooled_inputs(), OUTPUT_ROWS)
            weight = checkpoint.experts["low_noise"].read_bf16(f"{site}.weight")
            operand = quantize_weight(weight, loaded.weight, site).dequantize(torch.float32)
            exact = (rows.float() @ weight.float().T).double()
            error = SiteOutput([], operand, loaded.activation, rows).at().double() - exact
            found = report_of(tmp_path / name)["experts"]["low_noise"]
            expected = float(error.square().sum() / exact.square().sum())
            assert found["sites"][site]["output_nmse"] == pytest.approx(expected, rel=1e-5)
            assert all(entry["output_nmse"] is not None for entry in found["sites"].values())
            assert "measured_with" not in report_of(tmp_path / f"{name}-without")


def test_a_calibration_without_rows_measures_nothing(small_base: Path, tmp_path: Path) -> None:
    calibration = calibrate(small_base, tmp_path / "cal", lambda group, x: x, kept=0)
    with hfq.open_checkpoint(small_base) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", calibration, out=tmp_path / "delta").close()
    report = report_of(tmp_path / "delta")
    assert "measured_with" not in report
    assert report["experts"]["low_noise"]["output_nmse"] is None


def test_a_calibration_of_another_model_measures_nothing_either(tmp_path: Path) -> None:
    model, calibration = other_weights(tmp_path)
    with hfq.open_checkpoint(model) as checkpoint, pytest.raises(CalibrationBaseError):
        hfq.quantize(checkpoint, "rtn-hif4", calibration, out=tmp_path / "delta")


def test_resuming_with_another_calibration_is_refused(
    small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    """One report has one calibration's figures."""
    from hfq.convert.conversion_plan import journal_inputs, plan_conversion
    from hfq.convert.progress import Silent

    with hfq.open_checkpoint(small_base) as checkpoint:
        found = [
            journal_inputs(checkpoint, plan_conversion(checkpoint, "rtn-hif4", calibration, Silent()))
            for calibration in (small_calibration, None)
        ]
    assert found[0] != found[1]
    assert found[0]["calibration"] is found[1]["calibration"] is None
