"""Errors of whole blocks in an analysis: the tiny Wan on its kept calls, recomputed by hand, and left out."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_pipelines import TINY_PROMPTS
from torch import Tensor, nn

import hfq
from hfq.cli import run
from hfq.convert import model_analysis
from hfq.convert.analyze import Analysis, analyze
from hfq.convert.calibration import Calibration
from hfq.convert.call_sample import CallSample
from hfq.convert.progress import Silent
from hfq.convert.transformer import build_transformer
from hfq.formats import hif8
from hfq.schema.documents import read_document

BLOCKS = [f"blocks.{index}" for index in range(8)]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def calibration(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prompt, four steps, both branches of each."""
    out = tmp_path_factory.mktemp("calls") / "cal"
    hfq.calibrate(tiny_weights, [TINY_PROMPTS[0]], out, steps=4, keep_inputs=16, keep_calls=1).close()
    return out


def analysed(weights: Path, calibration: Path, out: Path, **options: Any) -> Analysis:
    with hfq.open_checkpoint(weights, role="high_noise") as checkpoint:
        return analyze(checkpoint, calibration, out=out, **options)


@pytest.fixture(scope="module")
def found(tiny_weights: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analysed(tiny_weights, calibration, tmp_path_factory.mktemp("analysis") / "out")


def calls_of(path: Path) -> list[Any]:
    with hfq.load_calibration(path) as opened:
        assert isinstance(opened, Calibration)
        return list(opened.calls("high_noise"))


class Rounded(nn.Module):
    """A linear that rounds weight and input, written out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = hif8.qdq(linear.weight.data, scale="row"), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(hif8.qdq(x), self.weight, self.bias)


def round_blocks(model: nn.Module, blocks: set[int]) -> None:
    for index in blocks:
        block = model.get_submodule(f"blocks.{index}")
        for name, linear in [named for named in block.named_modules() if isinstance(named[1], nn.Linear)]:
            place, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(place), leaf, Rounded(linear))


@torch.no_grad()
def errors_by_hand(weights: Path, calls: list[Any], blocks: set[int]) -> list[tuple[float, float]]:
    """Per call: sums of squares of the difference that rounding `blocks` makes to the output, and of the output."""
    with hfq.open_checkpoint(weights) as checkpoint:
        model, _ = build_transformer(checkpoint.experts["high_noise"])
    exact = [model(**call.inputs, return_dict=False)[0].double() for call in calls]
    round_blocks(model, blocks)
    sums = []
    for call, output in zip(calls, exact, strict=True):
        changed = model(**call.inputs, return_dict=False)[0].double()
        sums.append((float((changed - output).square().sum()), float(output.square().sum())))
    return sums


def test_the_arms_and_the_propagated_error_are_those_of_rounded_models(
    found: Analysis, tiny_weights: Path, calibration: Path
) -> None:
    model = found.document["experts"]["high_noise"]["model"]
    calls = calls_of(calibration)
    assert len(model["calls"]) == len(calls) > 1
    for kept in (set[int](), {0, 1}):
        arm = model["arms"]["first 2" if kept else "none"]
        sums = errors_by_hand(tiny_weights, calls, set(range(8)) - kept)
        assert arm["kept"] == [f"blocks.{block}" for block in sorted(kept)]
        assert arm["calls"] == pytest.approx([error / power for error, power in sums], rel=1e-6)
    values = [error / power for error, power in errors_by_hand(tiny_weights, calls, {3})]
    block = model["blocks"]["blocks.3"]
    assert block["propagated"] == pytest.approx(CallSample(calls).mean(values), rel=1e-6)
    assert block["intervals"]["propagated"] == pytest.approx(CallSample(calls).interval(values), rel=1e-6)
    assert [call["movement"] for call in model["calls"]] == [call.movement for call in calls]


def test_branches_are_measured_at_the_same_steps(found: Analysis) -> None:
    calls = found.document["experts"]["high_noise"]["model"]["calls"]
    steps = {branch: [call["step"] for call in calls if call["branch"] == branch] for branch in ("cond", "uncond")}
    assert steps["cond"] == steps["uncond"]
    assert len(set(steps["cond"])) == len(steps["cond"]) > 1


def test_the_analysis_names_the_calls_that_it_was_measured_on(found: Analysis, calibration: Path) -> None:
    with hfq.load_calibration(calibration) as opened:
        assert opened.spread is not None
        assert found.document["calibration"]["calls"] == opened.spread.id


def test_two_steps_do_not_rank_blocks_and_it_is_said_everywhere(
    tiny_weights: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", str(tiny_weights), "--calibration", str(calibration), "--role", "high_noise"]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    document = read_document(tmp_path / "out" / "analysis.json", "analysis")
    model = document["experts"]["high_noise"]["model"]
    assert {tuple(block["ranks"]["propagated"]) for block in model["blocks"].values()} == {(1, 8)}
    (reason,) = model["sample"]["weak"]
    assert "pairs of prompt and step, fewer than 6" in reason
    assert f"warning: high_noise: the ranking of blocks is weak: {reason}" in printed.err
    assert "not told apart: blocks 0, 1, 2, 3, 4, 5, 6, 7" in printed.out
    assert f"weak: {reason}" in printed.out
    assert f"the ranking of blocks is weak: {reason}" in (tmp_path / "out/analysis.html").read_text(encoding="utf-8")


def test_sampled_calls_of_an_older_calibration_rank_weakly(
    tiny_weights: Path, calibration: Path, tmp_path: Path
) -> None:
    """Without spread calls the calls in the statistics serve, and the answer is what it is worth."""
    shutil.copytree(calibration, tmp_path / "old")
    for name in ("calls.json", "calls.safetensors"):
        (tmp_path / "old" / name).unlink()
    progress = Notes()
    older = analysed(tiny_weights, tmp_path / "old", tmp_path / "out", progress=progress)
    assert "calls" not in older.document["calibration"]
    assert older.document["experts"]["high_noise"]["model"]["sample"]["weak"]
    assert any("the ranking of blocks is weak" in note for note in progress.notes)


def test_scores_and_page_have_them(found: Analysis) -> None:
    part = found.document["experts"]["high_noise"]
    for name in ("isolated", "isolated_contribution", "propagated"):
        assert part["scores"][name] == {block: part["model"]["blocks"][block][name] for block in BLOCKS}
    assert part["model_skipped"] is None
    assert all(0 < block["isolated"] < block["isolated_contribution"] for block in part["model"]["blocks"].values())
    assert set(part["model"]["blocks"]) == set(BLOCKS)
    bins = {str(call["bin"]) for call in part["model"]["calls"]}
    assert all(set(block["bins"]) == bins for block in part["model"]["blocks"].values())
    page = (found.path / "analysis.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    for words in ("Error of one quantized block", "What keeping blocks buys", "random 5, seed 2"):
        assert words in page


def test_without_memory_the_rest_is_there(
    found: Analysis, tiny_weights: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_analysis, "available_bytes", lambda: 5_000_000)
    progress = Notes()
    small = analysed(tiny_weights, calibration, tmp_path / "small", progress=progress)
    part = small.document["experts"]["high_noise"]
    assert part["model"] is None
    assert "0.0 GB are free" in part["model_skipped"]
    assert progress.notes == [f"high_noise: no errors of whole blocks: {part['model_skipped']}"]
    assert part["sites"] == found.document["experts"]["high_noise"]["sites"]
    assert "propagated" not in part["scores"]
    assert part["model_skipped"] in (tmp_path / "small/analysis.html").read_text(encoding="utf-8")


def test_a_14b_expert_is_estimated_at_more_than_its_weights() -> None:
    from synthetic import released_shapes

    from hfq.convert.derive import derive_architecture

    architecture = derive_architecture(released_shapes("wan2.1-t2v-14B"), None, "x")
    latents = torch.empty(1, 16, 16, 90, 160, device="meta")

    call: Any = SimpleNamespace(inputs={"hidden_states": latents})
    needed = model_analysis.needed_bytes(architecture, [call])
    assert 28.6e9 < needed < 150e9


def test_what_is_free_is_what_the_system_says() -> None:
    free = model_analysis.available_bytes()
    assert free is None or 10_000_000 < free < 10**14
