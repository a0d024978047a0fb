"""Calibrating the tiny Wan: true numbers, refusals, no trace left in the tiny_model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import TINY_PROMPTS
from tiny_runs import STEPS, Raises, bytes_of, calibrated, hooks_of
from torch import Tensor, nn

import hfq
from hfq.convert.calibrate import CalibrationOptions, calibrate_model, estimate, plan_run
from hfq.convert.calibration import Calibration
from hfq.convert.generation import plan_schedule, scheduler_for
from hfq.convert.pipelines import LoadedModel
from hfq.convert.progress import Silent
from hfq.convert.prompts import Prompt
from hfq.schema.errors import (
    HfqError,
    MissingPathError,
    NonFiniteActivationError,
    UnknownWordError,
    UsageError,
)

# --- the numbers -----------------------------------------------------------------------------------------------------

WATCHED = {
    "blocks.0.self_attn.qkv": "blocks.0.attn1.to_q",
    "blocks.2.cross_attn.kv": "blocks.2.attn2.to_v",
    "blocks.5.cross_attn.o": "blocks.5.attn2.to_out.0",
    "blocks.7.ffn.2": "blocks.7.ffn.net.2",
    "head.head": "proj_out",
}


@pytest.fixture(scope="module")
def observed(
    tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Calibration, dict[tuple[str, str], list[Tensor]]]]:
    """A calibration of two prompts with every row, and the inputs that hooks of the test's own saw meanwhile."""
    seen: dict[tuple[str, str], list[Tensor]] = {}
    handles = []
    for role, transformer in tiny_model.transformers.items():
        for group, name in WATCHED.items():
            inputs = seen.setdefault((role, group), [])
            handles.append(
                transformer.get_submodule(name).register_forward_pre_hook(
                    lambda module, args, inputs=inputs: inputs.append(args[0].reshape(-1, args[0].shape[-1]).bfloat16())
                )
            )
    out = tmp_path_factory.mktemp("observed") / "cal"
    calibration = calibrated(tiny_model, out, TINY_PROMPTS, rows=None, keep_inputs=20)
    for handle in handles:
        handle.remove()
    yield calibration, seen
    calibration.close()


@pytest.mark.parametrize("role", ["high_noise", "low_noise"])
@pytest.mark.parametrize("group", WATCHED)
def test_statistics_are_those_of_the_inputs(observed: Any, role: str, group: str) -> None:
    """Against numpy on the same rows: exact maximum and count, percentiles within 3 %."""
    calibration, seen = observed
    found, inputs = calibration.read(role, group), seen[role, group]
    every = torch.cat(inputs).double().abs()
    assert torch.equal(found.channel_max(), every.amax(dim=0))
    assert int(found.count.sum()) == len(every)
    assert found.histograms["all"].samples.tolist() == [len(every)] * found.channels
    assert torch.allclose(found.channel_rms(), every.square().mean(dim=0).sqrt(), rtol=1e-9)
    # Two prompts ran one after the other: call i of the schedule is input i of each.
    calls = len(inputs) // 2
    for call in range(calls):
        both = torch.cat([inputs[call], inputs[calls + call]]).float().abs()
        assert torch.equal(found.max[call], both.amax(dim=0))
        assert int(found.count[call]) == len(both)
    for p in (90.0, 95.0, 99.0, 99.9, 99.99):
        if len(every) * (1 - p / 100) < 100:
            continue
        exact = torch.from_numpy(np.percentile(every.numpy(), p, axis=0))
        values, below = found.pooled().percentile(p)
        assert bool(((torch.minimum(values, found.channel_max()) / exact - 1).abs() <= 0.03)[~below].all())
        # What is not answered does lie more than seven octaves below the largest.
        assert bool((exact < found.channel_max() / 2**7)[below].all())


def test_kept_rows_are_the_smallest_digests(observed: Any) -> None:
    """Chosen again here from the definition: SHA-256 of seed, prompt, step, branch and row."""
    calibration, seen = observed
    schedule = calibration.document["schedule"]["low_noise"]
    inputs, group = seen["low_noise", "blocks.7.ffn.2"], "blocks.7.ffn.2"
    found = calibration.read("low_noise", group)
    candidates: dict[int, list[tuple[bytes, Tensor]]] = {}
    for number, text in enumerate(TINY_PROMPTS):
        key = hashlib.sha256(json.dumps({"sha256": Prompt(text).sha256}, separators=(",", ":")).encode()).hexdigest()
        for index, call in enumerate(schedule["calls"]):
            for row, x in enumerate(inputs[number * len(schedule["calls"]) + index]):
                digest = hashlib.sha256(f"42|{key}|{call['step']}|{call['branch']}|{row}".encode()).digest()
                candidates.setdefault(call["bin"], []).append((digest, x))
    assert sorted(found.inputs) == sorted(candidates)
    for index, rows in candidates.items():
        chosen = sorted(rows, key=lambda entry: entry[0])[:20]
        assert [bytes(digest.tolist()) for digest in found.digests[index]] == [digest for digest, _ in chosen]
        assert torch.equal(found.inputs[index], torch.stack([x for _, x in chosen]))


def test_extra_keys_divide_the_same_samples(tiny_model: LoadedModel, observed: Any, tmp_path: Path) -> None:
    with calibrated(
        tiny_model, tmp_path / "cal", TINY_PROMPTS, rows=None, keep_inputs=20, by=("bins", "branch")
    ) as divided:
        for role in divided.roles:
            left, right = divided.read(role, "blocks.7.ffn.2"), observed[0].read(role, "blocks.7.ffn.2")
            assert set(left.histograms) == {f"bin{b}-{branch}" for b in left.inputs for branch in ("cond", "uncond")}
            assert torch.equal(left.pooled().counts, right.pooled().counts)
            assert torch.equal(left.max, right.max)


def test_rows_limit_the_histogram_alone(tiny_model: LoadedModel, observed: Any, tmp_path: Path) -> None:
    with calibrated(tiny_model, tmp_path / "cal", TINY_PROMPTS, rows=16, keep_inputs=20) as sampled:
        left, right = sampled.read("high_noise", "head.head"), observed[0].read("high_noise", "head.head")
        assert torch.equal(left.max, right.max)
        assert torch.equal(left.inputs[0], right.inputs[0])
        assert int(left.histograms["all"].samples[0]) == 16 * left.max.shape[0] * 2


def test_the_estimate_is_what_is_stored(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """Statistics in memory, to the byte but for row counts and digests; forwards and tokens of the run."""
    prompts, options = [Prompt(TINY_PROMPTS[0])], CalibrationOptions(keep_inputs=8, by=("branch",))
    settings = tiny_model.defaults.changed(steps=STEPS)
    _, schedules = plan_run(tiny_model.plan, prompts, settings, options)
    expected = estimate(tiny_model.plan, settings, schedules, options, 1)
    with calibrate_model(tiny_model, prompts, tmp_path / "cal", settings, options)[0] as found:
        sizes = 0
        for role in found.roles:
            for group in found.groups(role):
                for entry in found.plan(role, group).tensors():
                    if not entry.name.rpartition("/")[0].endswith("digests") and not entry.name.endswith("count"):
                        sizes += entry.size_bytes
            sizes += sum(entry.size_bytes for call in found.call_plans(role) for entry in call.tensors())
        # Groups of one row per call, such as the time embedding's, have fewer rows to keep.
        assert 0.95 * expected.statistics_bytes < sizes <= expected.statistics_bytes
        assert int(found.read("high_noise", "head.head").count[0]) == expected.tokens
    assert expected.forwards == STEPS * 2
    assert expected.model_bytes == pytest.approx(
        sum(p.numel() * 2 for t in tiny_model.transformers.values() for p in t.parameters())
    )


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_names_expert_input_and_step(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """The first input that sees it: what follows in the run is its consequence."""
    linear = tiny_model.transformers["low_noise"].get_submodule("blocks.4.ffn.net.0.proj")
    assert isinstance(linear, nn.Linear)
    kept = linear.weight.detach().clone()
    linear.weight.data[0, 0] = float("nan")
    settings = tiny_model.defaults.changed(steps=STEPS)
    _, schedules = plan_schedule(scheduler_for(tiny_model.plan.scheduler, settings), settings, tiny_model.plan.roles)
    first = schedules["low_noise"].calls[0].step
    try:
        with pytest.raises(NonFiniteActivationError, match=rf"low_noise blocks\.4\.ffn\.2, step {first} \(cond\)"):
            calibrated(tiny_model, tmp_path / "out")
    finally:
        linear.weight.data.copy_(kept)
    assert hooks_of(tiny_model) == 0


def test_infinity_that_vanishes_again_is_found(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """What the model's output does not show is seen at the input itself."""
    transformer = tiny_model.transformers["high_noise"]
    linear = transformer.get_submodule("blocks.1.ffn.net.2")
    handle = linear.register_forward_pre_hook(lambda module, args: (args[0].masked_fill(args[0] > 0, float("inf")),))
    other = linear.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    try:
        with pytest.raises(NonFiniteActivationError, match=r"high_noise blocks\.1\.ffn\.2, step 0 \(cond\)"):
            calibrated(tiny_model, tmp_path / "out")
    finally:
        handle.remove()
        other.remove()


def test_nothing_is_left_in_the_pipeline(tiny_model: LoadedModel, tmp_path: Path) -> None:
    pipeline = tiny_model.pipeline
    scheduler, boundary = pipeline.scheduler, pipeline.config["boundary_ratio"]
    settings = tiny_model.defaults.changed(steps=STEPS, shift=5.0, boundary=0.8)
    with pytest.raises(RuntimeError, match="stop"):
        calibrate_model(
            tiny_model,
            [Prompt("a cross")],
            tmp_path / "out",
            settings,
            CalibrationOptions(),
            progress=Raises(3, RuntimeError("stop")),
        )
    assert hooks_of(tiny_model) == 0
    assert pipeline.scheduler is scheduler
    assert pipeline.config["boundary_ratio"] == boundary


def test_a_linear_that_never_runs_is_named(tiny_model: LoadedModel, tmp_path: Path) -> None:
    block = tiny_model.transformers["high_noise"].get_submodule("blocks.6")
    original, block.attn2.to_q = block.attn2.to_q, nn.Sequential(block.attn2.to_q)
    try:
        with pytest.raises(UsageError, match=r"high_noise blocks\.6\.cross_attn\.q"):
            calibrated(tiny_model, tmp_path / "out")
    finally:
        block.attn2.to_q = original


def test_checks_come_before_the_first_forward(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """A wrong word in the last prompt, an impossible size, a schedule without steps for an expert: nothing is begun."""
    good = TINY_PROMPTS[0]
    cases: list[tuple[type[HfqError], dict[str, Any]]] = [
        (UnknownWordError, {"prompts": [good, "a red hippopotamus"]}),
        (UnknownWordError, {"prompts": [good], "negative_prompt": "blurry"}),
        (UsageError, {"prompts": []}),
        (UsageError, {"prompts": [good], "height": 26}),
        (UsageError, {"prompts": [good], "frames": 8}),
        (UsageError, {"prompts": [good], "steps": 1}),
        (UsageError, {"prompts": [good], "rows": 0}),
        (UsageError, {"prompts": [good], "by": "bins"}),
        (UsageError, {"prompts": [good], "colour": "red"}),
        (MissingPathError, {"prompts": tmp_path / "none.txt"}),
    ]
    for error, settings in cases:
        with pytest.raises(error):
            hfq.calibrate(
                tiny_model.pipeline, settings.pop("prompts"), tmp_path / "out", **{"steps": STEPS, **settings}
            )
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_occurs_again_is_run_once(tiny_model: LoadedModel, tmp_path: Path) -> None:
    twice = [TINY_PROMPTS[0], TINY_PROMPTS[1], TINY_PROMPTS[0]]
    said: list[str] = []

    class Hears(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    for name, prompts in (("twice", twice), ("once", twice[:2])):
        hfq.calibrate(tiny_model.pipeline, prompts, tmp_path / name, steps=STEPS, progress=Hears()).close()
    assert bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "once")
    assert said == ["1 of 3 prompts occurred before in the list; each is run once"]


# --- a live pipeline -------------------------------------------------------------------------------------------------


def test_a_live_pipeline_is_the_checkpoint(tiny_model: LoadedModel, tiny_weights: Path, tmp_path: Path) -> None:
    """The same roots and the same bytes as from the folder, and `quantize` takes it for the checkpoint."""
    live = hfq.calibrate(tiny_model.pipeline, [TINY_PROMPTS[0]], tmp_path / "live", steps=STEPS)
    calibrated(tiny_model, tmp_path / "folder").close()
    assert bytes_of(tmp_path / "live") == bytes_of(tmp_path / "folder")
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        for role, expert in checkpoint.experts.items():
            assert live.document["base"]["experts"][role]["bf16_root"] == expert.identity().bf16_root
        delta = hfq.quantize(checkpoint, "tail-aware-hif4", tmp_path / "live", out=tmp_path / "delta")
    assert delta.document["calibration"]["id"] == live.id
    live.close()


def test_what_is_no_wan_pipeline_is_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    for wrong in (object(), nn.Linear(2, 2)):
        with pytest.raises(UsageError, match="not a diffusers Wan pipeline"):
            hfq.calibrate(wrong, ["a cross"], tmp_path / "out")
