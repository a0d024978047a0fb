"""An analysis of a made-up base: every number recomputed, strangers refused, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import inputs_of, write_base, write_calibration
from torch import Tensor

import hfq
from hfq.convert.analysis_html import render_analysis
from hfq.convert.analyze import Analysis, analyze, load_analysis, scores_of
from hfq.convert.prompts import Prompt
from hfq.convert.safetensors_file import SafetensorsFile
from hfq.convert.safetensors_writer import write_safetensors
from hfq.formats import hif4, hif8
from hfq.schema.canonical import content_id
from hfq.schema.documents import validate
from hfq.schema.errors import (
    CalibrationBaseError,
    DigestMismatchError,
    HfqError,
    NonFiniteWeightError,
    OutputExistsError,
    UsageError,
    WrongIdError,
    WrongRoleError,
)

ROLES = ("high_noise", "low_noise")


def analysed(base: Path | str, calibration: Path, out: Path, **options: Any) -> Analysis:
    with hfq.open_checkpoint(base) as checkpoint:
        return analyze(checkpoint, calibration, out=out, **{"model_errors": False, **options})


@pytest.fixture(scope="module")
def plain(small_base: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The default format, HiFloat8."""
    return analysed(small_base, small_calibration, tmp_path_factory.mktemp("analysis") / "hif8")


@pytest.fixture(scope="module")
def four_bit(small_base: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analysed(small_base, small_calibration, tmp_path_factory.mktemp("analysis") / "hif4", format="hif4")


@pytest.fixture(params=["plain", "four_bit"])
def found(request: pytest.FixtureRequest) -> Analysis:
    """Each format in turn."""
    analysis: Analysis = request.getfixturevalue(request.param)
    return analysis


def qdq_weight(weight: Tensor, form: str) -> Tensor:
    return hif8.qdq(weight, scale="row") if form == "hif8" else hif4.qdq(weight)


def qdq_input(x: Tensor, form: str) -> Tensor:
    return hif8.qdq(x) if form == "hif8" else hif4.qdq(x)


def ratio(changed: Tensor, exact: Tensor) -> float:
    return float((changed.double() - exact.double()).square().sum() / exact.double().square().sum())


def test_it_is_a_document_that_reads_back(found: Analysis, small_base: Path, small_calibration: Path) -> None:
    document = validate(dict(found.document), "analysis", "x")
    assert document["id"] == content_id(document)
    assert load_analysis(found.path).document == load_analysis(found.path / "analysis.json").document == document
    calibration = json.loads((small_calibration / "calibration.json").read_text())
    assert document["calibration"] == {"id": calibration["id"], "prompts": ["1" * 64]}
    with hfq.open_checkpoint(small_base) as checkpoint:
        for role in ROLES:
            expert, part = checkpoint.experts[role], document["experts"][role]
            assert document["base"]["experts"][role]["bf16_root"] == expert.identity().bf16_root
            assert set(part["sites"]) == {site.name for site in expert.sites}
            assert set(part["inputs"]) == {site.input_group for site in expert.sites}
            assert set(part["blocks"]) == {"blocks.0", "blocks.1", "outside"}
    edited = json.loads((found.path / "analysis.json").read_text())
    edited["experts"]["low_noise"]["scores"]["act_max"]["blocks.1"] += 1
    copy = found.path.with_name(f"{found.path.name}-edited.json")
    copy.write_text(json.dumps(edited))
    with pytest.raises(WrongIdError):
        load_analysis(copy)


@pytest.mark.parametrize("name", ["blocks.1.self_attn.k", "blocks.0.ffn.2", "time_embedding.0"])
def test_the_numbers_of_a_linear(found: Analysis, small_base: Path, name: str) -> None:
    form = found.document["format"]
    with hfq.open_checkpoint(small_base) as checkpoint:
        weight = checkpoint.experts["low_noise"].read_bf16(f"{name}.weight")
    site = found.document["experts"]["low_noise"]["sites"][name]
    seen = inputs_of("low_noise", site["input"], weight.shape[1])
    x = seen[0, :32]
    operand = qdq_weight(weight, form)
    assert site["shape"] == list(weight.shape)
    assert site["weight"]["nmse"] == pytest.approx(ratio(operand, weight), rel=1e-9)
    values = weight.double().numpy()
    assert site["weight"]["rms"] == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-12)
    assert site["weight"]["p99"] == pytest.approx(np.percentile(np.abs(values), 99), rel=1e-12)
    exact, quantized = x.double() @ weight.double().T, qdq_input(x, form).double() @ operand.double().T
    assert site["output_nmse"] == pytest.approx(ratio(quantized, exact), rel=1e-4)
    entry = found.document["experts"]["low_noise"]["inputs"][site["input"]]
    every = seen.double().numpy().reshape(-1, weight.shape[1])
    assert (entry["kept_rows"], entry["channels"]) == (32, weight.shape[1])
    assert entry["elements"] == entry["sampled"] == every.size
    assert entry["nmse"] == pytest.approx(ratio(qdq_input(x, form), x), rel=1e-9)
    assert entry["mean"] == pytest.approx(float(x.double().mean()), rel=1e-9)
    assert entry["max"] == np.abs(every).max()
    assert entry["rms"] == pytest.approx(np.sqrt(np.mean(every**2)), rel=1e-9)
    assert entry["p99_9"] == pytest.approx(np.percentile(np.abs(every), 99.9), rel=0.03)
    channel_max = np.abs(every).max(axis=0)
    assert entry["channel_ratio"] == pytest.approx(channel_max.max() / np.median(channel_max))


def test_a_block_is_its_linears_weighted_by_energy(found: Analysis, small_base: Path) -> None:
    form, part = found.document["format"], found.document["experts"]["high_noise"]
    names = [name for name in part["sites"] if name.startswith("blocks.1.")]
    with hfq.open_checkpoint(small_base) as checkpoint:
        weights = {name: checkpoint.experts["high_noise"].read_bf16(f"{name}.weight") for name in names}
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    changed = torch.cat([qdq_weight(weight, form).flatten() for weight in weights.values()])
    block = part["blocks"]["blocks.1"]
    assert block["sites"] == len(names) == 10
    assert block["weight"]["nmse"] == pytest.approx(ratio(changed, flat), rel=1e-9)
    assert block["weight"]["max"] == float(flat.abs().max())
    outputs: list[tuple[Tensor, Tensor]] = []
    inputs: dict[str, Tensor] = {}
    for name, weight in weights.items():
        x = inputs_of("high_noise", part["sites"][name]["input"], weight.shape[1])
        inputs[part["sites"][name]["input"]] = x
        quantized = qdq_input(x[0, :32], form).double() @ qdq_weight(weight, form).double().T
        outputs.append((quantized, x[0, :32].double() @ weight.double().T))
    error = sum(float((quantized - exact).square().sum()) for quantized, exact in outputs)
    power = sum(float(exact.square().sum()) for _, exact in outputs)
    assert block["output_nmse"] == pytest.approx(error / power, rel=1e-4)
    assert len(inputs) == 7
    kept = torch.cat([x[0, :32].flatten() for x in inputs.values()])
    rounded = torch.cat([qdq_input(x[0, :32], form).flatten() for x in inputs.values()])
    every = np.concatenate([x.double().numpy().ravel() for x in inputs.values()])
    assert block["activation"]["nmse"] == pytest.approx(ratio(rounded, kept), rel=1e-9)
    assert block["activation"]["max"] == np.abs(every).max()
    assert block["activation"]["rms"] == pytest.approx(np.sqrt(np.mean(every**2)), rel=1e-9)
    assert block["activation"]["p99_9"] == pytest.approx(np.percentile(np.abs(every), 99.9), rel=0.03)
    crests = [part["inputs"][name]["crest"] for name in inputs]
    assert block["activation"]["crest"] == max(crests)


def test_scores_are_the_blocks_figures(found: Analysis) -> None:
    for role in ROLES:
        part = found.document["experts"][role]
        scores = part["scores"]
        assert set(scores) == {"act_max", "act_rms", "act_crest", "act_kurtosis", "act_channel_ratio", "act_nmse",
                               "weight_nmse", "output_nmse"}  # fmt: skip
        for block in ("blocks.0", "blocks.1"):
            entry = part["blocks"][block]
            assert scores["act_rms"][block] == entry["activation"]["rms"]
            assert scores["act_nmse"][block] == entry["activation"]["nmse"]
            assert scores["weight_nmse"][block] == entry["weight"]["nmse"]
            assert scores["output_nmse"][block] == entry["output_nmse"]
        assert all(set(values) == {"blocks.0", "blocks.1"} for values in scores.values())


def test_a_score_that_one_block_lacks_is_no_score(plain: Analysis) -> None:
    part = json.loads(json.dumps(plain.document["experts"]["low_noise"]))
    part["blocks"]["blocks.1"]["activation"]["kurtosis"] = None
    assert set(plain.document["experts"]["low_noise"]["scores"]) - set(scores_of(part)) == {"act_kurtosis"}


def test_without_kept_inputs_their_errors_are_unknown(
    small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small_calibration, bare)
    with SafetensorsFile(small_calibration / "statistics.safetensors") as file:
        tensors = {name: file.read(name) for name in file.tensors if "/inputs/" not in name and "/digests/" not in name}
    document = json.loads((bare / "calibration.json").read_text())
    document["settings"]["keep_inputs"] = 0
    sha256 = write_safetensors(bare / "statistics.safetensors", tensors)
    size = (bare / "statistics.safetensors").stat().st_size
    document["statistics"] = {"sha256": sha256, "size_bytes": size}
    document["id"] = content_id(document)
    (bare / "calibration.json").write_text(json.dumps(document))
    part = analysed(small_base / "high_noise_model", bare, tmp_path / "out").document["experts"]["high_noise"]
    assert "weight_nmse" in part["scores"]
    assert not {"act_nmse", "output_nmse"} & set(part["scores"])
    for entry in part["inputs"].values():
        assert entry["nmse"] is entry["mean"] is None
        assert "--keep-inputs" in entry["reasons"]["nmse"]
        assert "--keep-inputs" in entry["reasons"]["mean"]
    page = (tmp_path / "out/analysis.html").read_text(encoding="utf-8")
    assert "nmse of inputs" in page
    assert "NMSE of the weights of each linear" in page


def test_evaluation_prompts_that_were_calibrated_on_are_flagged(
    small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    shared = Prompt("a red cat")
    copy = tmp_path / "calibration"
    shutil.copytree(small_calibration, copy)
    document = json.loads((copy / "calibration.json").read_text())
    document["parts"][0]["prompts"][0]["sha256"] = shared.sha256
    document["id"] = content_id(document)
    (copy / "calibration.json").write_text(json.dumps(document))
    for name, prompts, overlap in (
        ("shared", [Prompt("a blue dog"), shared], [shared.sha256]),
        ("apart", [Prompt("a blue dog")], []),
    ):
        found = analysed(small_base / "low_noise_model", copy, tmp_path / name, evaluation_prompts=prompts)
        assert found.document["evaluation"] == {"prompts": len(prompts), "overlap": overlap}
        page = (tmp_path / name / "analysis.html").read_text(encoding="utf-8")
        assert (shared.sha256 in page) is bool(overlap)
        assert ('class="flag"' in page) is bool(overlap)


def test_the_same_inputs_give_the_same_bytes(small_base: Path, small_calibration: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        analysed(small_base / "low_noise_model", small_calibration, tmp_path / name)
    for file in ("analysis.json", "analysis.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def refused(error: type[HfqError], base: Path | str, calibration: Path, out: Path, **options: Any) -> str:
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(error) as caught:
        analysed(base, calibration, out, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == before
    return str(caught.value)


def test_what_does_not_belong_together_is_refused(small_base: Path, small_calibration: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=1)
    assert "another model" in refused(CalibrationBaseError, other, small_calibration, tmp_path / "out")
    exchanged = f"high_noise={small_base}/low_noise_model,low_noise={small_base}/high_noise_model"
    assert "calibrated as low_noise" in refused(WrongRoleError, exchanged, small_calibration, tmp_path / "out")
    with hfq.open_checkpoint(small_base) as checkpoint:
        one = write_calibration(tmp_path / "one", checkpoint, roles=("high_noise",))
    assert "low_noise" in refused(CalibrationBaseError, small_base, one, tmp_path / "out")
    assert "hif4" in refused(UsageError, small_base, small_calibration, tmp_path / "out", format="mxfp4")


def test_damaged_statistics_and_weights_are_refused(small_base: Path, small_calibration: Path, tmp_path: Path) -> None:
    copy = tmp_path / "calibration"
    shutil.copytree(small_calibration, copy)
    data = bytearray((copy / "statistics.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "statistics.safetensors").write_bytes(data)
    refused(DigestMismatchError, small_base, copy, tmp_path / "out")
    broken = Path(write_base(tmp_path / "broken"))
    file = broken / "low_noise_model/diffusion_pytorch_model.safetensors"
    with SafetensorsFile(file) as opened:
        tensors = {name: opened.read(name) for name in opened.tensors}
    tensors["blocks.1.ffn.0.weight"][3, 5] = torch.inf
    write_safetensors(file, tensors)
    with hfq.open_checkpoint(broken) as checkpoint:
        calibration = write_calibration(tmp_path / "of-broken", checkpoint)
    message = refused(NonFiniteWeightError, broken, calibration, tmp_path / "out")
    assert "low_noise_model/diffusion_pytorch_model.safetensors: blocks.1.ffn.0.weight" in message
    assert "[3, 5]" in message


def test_an_existing_output_is_left_alone(small_base: Path, small_calibration: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    refused(OutputExistsError, small_base, small_calibration, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_page_loads_nothing_and_escapes_everything(plain: Analysis) -> None:
    page = (plain.path / "analysis.html").read_text(encoding="utf-8")
    assert plain.id in page
    for role in ROLES:
        assert plain.document["base"]["experts"][role]["bf16_root"] in page
    assert page.count("<svg") == 4
    for mark in ("<script", "@import", 'http-equiv="refresh'):
        assert mark not in page
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', page) == []
    forged = json.loads(json.dumps(plain.document))
    forged["experts"]["low_noise"]["model_skipped"] = "<script>alert(1)</script>"
    forged["experts"]["low_noise"]["inputs"]["head.head"]["reasons"] = {"<b>": "<img src=x>"}
    forged["weight"]["<i>"] = "<i>"
    page = render_analysis(forged)
    assert "&lt;script&gt;" in page
    for mark in ("<script", "<b>", "<img", "<i>"):
        assert mark not in page


def test_deep_models_still_have_readable_axes(plain: Analysis) -> None:
    deep = json.loads(json.dumps(plain.document))
    for part in deep["experts"].values():
        for kind in ("blocks", "sites", "inputs"):
            for name, entry in list(part[kind].items()):
                if name == "blocks.0" or name.startswith("blocks.0."):
                    for block in range(2, 40):
                        copy = dict(entry)
                        if "block" in copy:
                            copy |= {
                                "block": f"blocks.{block}",
                                "input": copy["input"].replace("blocks.0.", f"blocks.{block}."),
                            }
                        part[kind][name.replace("blocks.0", f"blocks.{block}", 1)] = copy
    page = render_analysis(deep)
    labels = re.findall(r">(\d+)</text>", page[page.index("<svg") : page.index("</svg>")])
    assert [label for label in labels if label in ("0", "36")] == ["0", "36"] * 2
    assert labels.count("1") + labels.count("39") < 3
