"""`hfq calibrate` on the tiny Wan: true numbers, interruption and resumption, refusals, no trace left in the model."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import TINY_PROMPTS
from torch import Tensor, nn

import hfq
from hfq.cli import run
from hfq.convert.calibrate import CalibrationOptions, calibrate_model, estimate, plan_run
from hfq.convert.calibration import Calibration, load_calibration
from hfq.convert.calibration_work import CalibrationWork
from hfq.convert.pipelines import LoadedModel, adopt_pipeline, load_model
from hfq.convert.progress import Silent
from hfq.convert.prompts import Prompt
from hfq.schema.errors import (
    HfqError,
    InterruptedRunError,
    MissingPathError,
    NonFiniteActivationError,
    OutputExistsError,
    ResumeMismatchError,
    UnknownWordError,
    UsageError,
)

STEPS = 4
"""With the tiny model's shift and boundary: one for high noise, three for low noise."""


@pytest.fixture(scope="module")
def model(tiny_weights: Path) -> LoadedModel:
    return load_model(tiny_weights)


def calibrated(
    model: LoadedModel, out: Path, prompts: tuple[str, ...] = TINY_PROMPTS[:1], *, progress: Any = None,
    resume: bool = False, steps: int = STEPS, seed: int = 42, **options: Any,
) -> Calibration:  # fmt: skip
    settings = model.defaults.changed(steps=steps, seed=seed)
    listed = [Prompt(text) for text in prompts]
    return calibrate_model(
        model, listed, out, settings, CalibrationOptions(**options), progress=progress, resume=resume
    )[0]


def hooks_of(model: LoadedModel) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + ("cache_context" in module.__dict__)
        for transformer in model.transformers.values()
        for module in transformer.modules()
    )


class Raises(Silent):
    """A progress that stops the run after some forwards."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            raise self.error


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


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
    model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Calibration, dict[tuple[str, str], list[Tensor]]]]:
    """A calibration of two prompts with every row, and the inputs that hooks of the test's own saw meanwhile."""
    seen: dict[tuple[str, str], list[Tensor]] = {}
    handles = []
    for role, transformer in model.transformers.items():
        for group, name in WATCHED.items():
            inputs = seen.setdefault((role, group), [])
            handles.append(
                transformer.get_submodule(name).register_forward_pre_hook(
                    lambda module, args, inputs=inputs: inputs.append(args[0].reshape(-1, args[0].shape[-1]).bfloat16())
                )
            )
    out = tmp_path_factory.mktemp("observed") / "cal"
    calibration = calibrated(model, out, TINY_PROMPTS, rows=None, keep_inputs=20)
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
        if len(every) * (1 - p / 100) >= 100:
            exact = np.percentile(every.numpy(), p, axis=0)
            assert np.abs(found.channel_percentile(p, group).numpy() / exact - 1).max() <= 0.03


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


def test_extra_keys_divide_the_same_samples(model: LoadedModel, observed: Any, tmp_path: Path) -> None:
    with calibrated(model, tmp_path / "cal", TINY_PROMPTS, rows=None, keep_inputs=20, by=("bins", "branch")) as divided:
        for role in divided.roles:
            left, right = divided.read(role, "blocks.7.ffn.2"), observed[0].read(role, "blocks.7.ffn.2")
            assert set(left.histograms) == {f"bin{b}-{branch}" for b in left.inputs for branch in ("cond", "uncond")}
            assert torch.equal(left.pooled().counts, right.pooled().counts)
            assert torch.equal(left.max, right.max)


def test_rows_limit_the_histogram_alone(model: LoadedModel, observed: Any, tmp_path: Path) -> None:
    with calibrated(model, tmp_path / "cal", TINY_PROMPTS, rows=16, keep_inputs=20) as sampled:
        left, right = sampled.read("high_noise", "head.head"), observed[0].read("high_noise", "head.head")
        assert torch.equal(left.max, right.max)
        assert torch.equal(left.inputs[0], right.inputs[0])
        assert int(left.histograms["all"].samples[0]) == 16 * left.max.shape[0] * 2


def test_the_estimate_is_what_is_stored(model: LoadedModel, tmp_path: Path) -> None:
    """Statistics in memory, to the byte but for row counts and digests; forwards and tokens of the run."""
    prompts, options = [Prompt(TINY_PROMPTS[0])], CalibrationOptions(keep_inputs=8, by=("branch",))
    settings = model.defaults.changed(steps=STEPS)
    _, schedules = plan_run(model.plan, prompts, settings, options)
    expected = estimate(model.plan, settings, schedules, options, 1)
    with calibrate_model(model, prompts, tmp_path / "cal", settings, options)[0] as found:
        sizes = 0
        for role in found.roles:
            for group in found.groups(role):
                for entry in found.plan(role, group).tensors():
                    if not entry.name.rpartition("/")[0].endswith("digests") and not entry.name.endswith("count"):
                        sizes += entry.size_bytes
        # Groups of one row per call, such as the time embedding's, have fewer rows to keep.
        assert 0.95 * expected.statistics_bytes < sizes <= expected.statistics_bytes
        assert int(found.read("high_noise", "head.head").count[0]) == expected.tokens
    assert expected.forwards == STEPS * 2
    assert expected.model_bytes == pytest.approx(
        sum(p.numel() * 2 for t in model.transformers.values() for p in t.parameters())
    )


# --- interruption ----------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_the_same_bytes(model: LoadedModel, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second prompt, and again while the parts are joined."""
    whole = calibrated(model, tmp_path / "whole", TINY_PROMPTS, parts=True, keep_inputs=5)
    whole.close()
    out = tmp_path / "out"
    for after in (3 * STEPS, 2 * STEPS + 5):
        child = os.fork()
        if child == 0:
            try:
                calibrated(model, out, TINY_PROMPTS, parts=True, keep_inputs=5, resume=True, progress=Kills(after))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not out.exists()
    assert len(list((tmp_path / "out.partial" / "parts").iterdir())) == 2
    calibrated(model, out, TINY_PROMPTS, parts=True, keep_inputs=5, resume=True).close()
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


class Kills(Silent):
    """A progress that kills the process."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def test_interrupting_keeps_finished_prompts(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C: exit 130, no trace left in the model, and finished prompts are not run again."""
    with pytest.raises(InterruptedRunError, match="--resume"):
        calibrated(model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    assert hooks_of(model) == 0
    ran: list[str] = []
    write = CalibrationWork.write_part
    monkeypatch.setattr(CalibrationWork, "write_part", lambda self, p, s: (ran.append(p.text), write(self, p, s))[1])
    calibrated(model, tmp_path / "out", TINY_PROMPTS, resume=True).close()
    assert ran == [TINY_PROMPTS[1]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["calibration.json", "statistics.safetensors"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("settings.steps", {"steps": STEPS + 1}),
        ("settings.seed", {"seed": 7}),
        ("settings.keep_inputs", {"keep_inputs": 4}),
        ("settings.by", {"by": ("bins",)}),
        ("settings.rows", {"rows": 10}),
        ("prompts.2", {"prompts": (TINY_PROMPTS[0], "a green cross")}),
        ("prompts.1", {"prompts": TINY_PROMPTS[::-1]}),
    ],
)
def test_resuming_with_other_inputs_is_refused_by_name(
    field: str, changes: dict[str, Any], model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(model, tmp_path / "out", TINY_PROMPTS, progress=Raises(1, KeyboardInterrupt()))
    with pytest.raises(OutputExistsError, match="--resume"):
        calibrated(model, tmp_path / "out", TINY_PROMPTS)
    with pytest.raises(ResumeMismatchError, match=field):
        calibrated(model, tmp_path / "out", **{"prompts": TINY_PROMPTS, **changes}, resume=True)


def test_resuming_with_another_model_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(model, tmp_path / "out", progress=Raises(1, KeyboardInterrupt()))
    other = adopt_pipeline(model.pipeline)
    other.identities["high_noise"], other.identities["low_noise"] = (
        other.identities["low_noise"], other.identities["high_noise"],
    )  # fmt: skip
    with pytest.raises(ResumeMismatchError, match="base"):
        calibrated(other, tmp_path / "out", resume=True)


def test_a_part_of_another_run_is_not_taken(model: LoadedModel, tmp_path: Path) -> None:
    """Not even when the record of the settings is gone."""
    with pytest.raises(InterruptedRunError):
        calibrated(model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    (tmp_path / "out.partial" / "started.json").unlink()
    with pytest.raises(ResumeMismatchError, match="a part that was made with other inputs"):
        calibrated(model, tmp_path / "out", TINY_PROMPTS, seed=7, resume=True)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_names_expert_input_and_step(model: LoadedModel, tmp_path: Path) -> None:
    """The first input that sees it: what follows in the run is its consequence."""
    linear = model.transformers["low_noise"].get_submodule("blocks.4.ffn.net.0.proj")
    assert isinstance(linear, nn.Linear)
    kept = linear.weight.detach().clone()
    linear.weight.data[0, 0] = float("nan")
    try:
        with pytest.raises(NonFiniteActivationError, match=r"low_noise blocks\.4\.ffn\.2, step 1 \(cond\)"):
            calibrated(model, tmp_path / "out")
    finally:
        linear.weight.data.copy_(kept)
    assert hooks_of(model) == 0


def test_infinity_that_vanishes_again_is_found(model: LoadedModel, tmp_path: Path) -> None:
    """What the model's output does not show is seen at the input itself."""
    transformer = model.transformers["high_noise"]
    linear = transformer.get_submodule("blocks.1.ffn.net.2")
    handle = linear.register_forward_pre_hook(lambda module, args: (args[0].masked_fill(args[0] > 0, float("inf")),))
    other = linear.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    try:
        with pytest.raises(NonFiniteActivationError, match=r"high_noise blocks\.1\.ffn\.2, step 0 \(cond\)"):
            calibrated(model, tmp_path / "out")
    finally:
        handle.remove()
        other.remove()


def test_nothing_is_left_in_the_pipeline(model: LoadedModel, tmp_path: Path) -> None:
    pipeline = model.pipeline
    scheduler, boundary = pipeline.scheduler, pipeline.config["boundary_ratio"]
    settings = model.defaults.changed(steps=STEPS, shift=5.0, boundary=0.8)
    with pytest.raises(RuntimeError, match="stop"):
        calibrate_model(
            model,
            [Prompt("a cross")],
            tmp_path / "out",
            settings,
            CalibrationOptions(),
            progress=Raises(3, RuntimeError("stop")),
        )
    assert hooks_of(model) == 0
    assert pipeline.scheduler is scheduler
    assert pipeline.config["boundary_ratio"] == boundary


def test_a_linear_that_never_runs_is_named(model: LoadedModel, tmp_path: Path) -> None:
    block = model.transformers["high_noise"].get_submodule("blocks.6")
    original, block.attn2.to_q = block.attn2.to_q, nn.Sequential(block.attn2.to_q)
    try:
        with pytest.raises(UsageError, match=r"high_noise blocks\.6\.cross_attn\.q"):
            calibrated(model, tmp_path / "out")
    finally:
        block.attn2.to_q = original


def test_checks_come_before_the_first_forward(model: LoadedModel, tmp_path: Path) -> None:
    """A wrong word in the last prompt, an impossible size, a schedule without steps for an expert: nothing is begun."""
    good = TINY_PROMPTS[0]
    cases: list[tuple[type[HfqError], dict[str, Any]]] = [
        (UnknownWordError, {"prompts": [good, "a red hippopotamus"]}),
        (UnknownWordError, {"prompts": [good], "negative_prompt": "blurry"}),
        (UsageError, {"prompts": []}),
        (UsageError, {"prompts": [good, good]}),
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
            hfq.calibrate(model.pipeline, settings.pop("prompts"), tmp_path / "out", **{"steps": STEPS, **settings})
    assert list(tmp_path.iterdir()) == []


# --- a live pipeline -------------------------------------------------------------------------------------------------


def test_a_live_pipeline_is_the_checkpoint(model: LoadedModel, tiny_weights: Path, tmp_path: Path) -> None:
    """The same roots and the same bytes as from the folder, and `quantize` takes it for the checkpoint."""
    live = hfq.calibrate(model.pipeline, [TINY_PROMPTS[0]], tmp_path / "live", steps=STEPS)
    calibrated(model, tmp_path / "folder").close()
    assert bytes_of(tmp_path / "live") == bytes_of(tmp_path / "folder")
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        for role, expert in checkpoint.experts.items():
            assert live.document["base"]["experts"][role]["bf16_root"] == expert.identity().bf16_root
        delta = hfq.quantize(checkpoint, "tail-aware-hif4", tmp_path / "live", out=tmp_path / "delta")
    assert delta.document["calibration"]["id"] == live.id
    live.close()


def test_what_is_no_wan_pipeline_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    for wrong in (object(), nn.Linear(2, 2)):
        with pytest.raises(UsageError, match="not a diffusers Wan pipeline"):
            hfq.calibrate(wrong, ["a cross"], tmp_path / "out")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(TINY_PROMPTS[0] + "\n")
    return path


def test_the_command(
    model: LoadedModel, tiny_weights: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cal"
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--steps", str(STEPS), "--parts"]
    assert run([*arguments, "-o", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    with load_calibration(out) as found:
        assert document["id"] == found.id
    assert document["seconds"] > document["statistics_seconds"] > 0
    assert document["overhead"] > 0
    for line in ("memory", "disk", "8 forwards of 324 tokens"):
        assert line in captured.err
    assert run([*arguments, "-o", str(out)]) == 2
    assert "output-exists" in capsys.readouterr().err
    calibrated(model, tmp_path / "same", parts=True).close()
    assert bytes_of(out) == bytes_of(tmp_path / "same")


def test_the_command_prints_its_cost(
    tiny_weights: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--steps", "2", "--boundary", "0.9"]
    assert run([*arguments, "-o", str(tmp_path / "cal")]) == 0
    assert "% over plain generation" in capsys.readouterr().out


def test_dry_run_reads_no_weight(
    tiny_weights: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hfq.convert.safetensors_file.SafetensorsFile.read", None)
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--dry-run", "--keep-inputs", "100"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["forwards"] == 80
    assert document["tokens"] == 324
    assert document["seconds"] > 0
    assert document["disk_bytes"] == 2 * document["statistics_bytes"]
    assert run(arguments) == 0
    assert "time        at least" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        ([], 2, "usage"),
        (["--prompts", "missing.txt", "-o", "out"], 2, "missing-path"),
        (["--rows", "none", "-o", "out"], 2, "usage"),
        (["--by", "days", "-o", "out"], 2, "usage"),
        (["--boundary", "2", "-o", "out"], 2, "usage"),
        (["--device", "quantum", "-o", "out"], 2, "usage"),
        (["--offload", "model", "-o", "out"], 2, "usage"),
        (["--pipeline", ".", "-o", "out"], 2, "missing-pipeline"),
        (["--role", "high_noise", "-o", "out"], 2, "usage"),
    ],
)
def test_bad_arguments(
    arguments: list[str], exit_code: int, code: str, tiny_weights: Path, prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["calibrate", str(tiny_weights), "--prompts", str(prompts), *arguments, "--json"]) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
