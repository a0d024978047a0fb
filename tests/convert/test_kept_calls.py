"""Whole model calls that a calibration keeps: which ones, and what is in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import TINY_PROMPTS, build_pipeline, size_of
from tiny_runs import Raises, bytes_of
from torch import Tensor, nn

import hfq
from hfq.cli import run
from hfq.convert.calibrate import CalibrationOptions, calibrate_model, estimate, plan_run
from hfq.convert.calibration import Calibration, load_calibration
from hfq.convert.calibration_layout import CallPlan
from hfq.convert.calibration_merge import merge_calibrations
from hfq.convert.kept_calls import CallKeeper, choose_spread, flatten, spread_counts
from hfq.convert.pipelines import LoadedModel
from hfq.convert.progress import Silent
from hfq.convert.prompts import Prompt
from hfq.convert.schedule import Call, ExpertSchedule
from hfq.schema.errors import (
    CalibrationMergeError,
    InterruptedRunError,
    NonFiniteActivationError,
    ResumeMismatchError,
    UsageError,
)

Tensors = dict[str, Tensor]
KEEP = 1
PROMPTS = (*TINY_PROMPTS, "a green cross moving left over a black background")
"""Two steps of each expert and three prompts: three of six pairs of prompt and step are kept."""
SETTINGS = {"steps": 4, "height": 8, "width": 8, "frames": 3}


def kept(
    model: LoadedModel, out: Path, prompts: tuple[str, ...] = PROMPTS[:1], *, progress: Any = None,
    resume: bool = False, seed: int = 42, **options: Any,
) -> Calibration:  # fmt: skip
    """A calibration of a few tokens."""
    settings, listed = model.defaults.changed(**SETTINGS, seed=seed), [Prompt(text) for text in prompts]
    chosen = CalibrationOptions(**options)
    return calibrate_model(model, listed, out, settings, chosen, progress=progress, resume=resume)[0]


@pytest.fixture(scope="module")
def observed(
    tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[dict[str, Tensor]]]]:
    """A calibration of three prompts that keeps two calls, and what hooks saw: role -> calls in order."""
    seen: dict[str, list[dict[str, Tensor]]] = {}
    handles = []
    for role, transformer in tiny_model.transformers.items():

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], role: str = role) -> None:
            tensors = {name: value.clone() for name, value in kwargs.items() if isinstance(value, Tensor)}
            seen.setdefault(role, []).append(tensors)

        handles.append(transformer.register_forward_pre_hook(hook, with_kwargs=True))
    out = tmp_path_factory.mktemp("observed") / "cal"
    kept(tiny_model, out, PROMPTS, parts=True, keep_calls=KEEP).close()
    for handle in handles:
        handle.remove()
    return out, seen


def key_of(text: str) -> str:
    return hashlib.sha256(json.dumps({"sha256": Prompt(text).sha256}, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("role", ["high_noise", "low_noise"])
def test_both_branches_of_spread_steps_are_kept_bit_for_bit(observed: Any, role: str) -> None:
    """Chosen again here, from the definition; every tensor is the one that the transformer was given."""
    out, seen = observed
    with load_calibration(out) as found:
        calls = found.calls(role)
        schedule = found.document["schedule"][role]["calls"]
        everything = {c["step"]: c["t"] for entry in found.document["schedule"].values() for c in entry["calls"]}
    first, second = sorted({call["step"] for call in schedule})
    expected = []
    for step, count in ((first, 1), (second, 2)):
        order = sorted(range(3), key=lambda n: hashlib.sha256(f"42|{key_of(PROMPTS[n])}|{step}".encode()).digest())
        expected += [(number, c) for number in order[:count] for c in schedule if c["step"] == step]
    assert [(c.step, c.t, c.branch, c.bin, c.prompt_sha256) for c in calls] == [
        (c["step"], c["t"], c["branch"], c["bin"], Prompt(PROMPTS[number]).sha256) for number, c in expected
    ]
    for kept, (number, call) in zip(calls, expected, strict=True):
        assert kept.movement == pytest.approx((call["t"] - everything.get(call["step"] + 1, 0)) / 1000)
        given = seen[role][number * len(schedule) + schedule.index(call)]
        assert set(kept.inputs) == set(given) == {"hidden_states", "timestep", "encoder_hidden_states"}
        for name, value in given.items():
            stored = kept.inputs[name]
            assert isinstance(stored, Tensor)
            assert stored.dtype == value.dtype
            assert torch.equal(stored, value)


def test_calls_are_spread_over_the_steps_of_an_expert() -> None:
    """The middles of equal stretches; all steps alike where more is asked for; both branches of every pair."""
    calls = [Call(step, 1000.0 - step, branch, 0) for step in range(5, 33) for branch in ("cond", "uncond")]
    schedule, prompts = ExpertSchedule(tuple(calls), (900.0, 500.0)), [f"{n:064x}" for n in range(4)]
    assert spread_counts(schedule, 1) == {9: 1, 19: 1, 28: 1}
    assert spread_counts(schedule, 4) == dict.fromkeys([6, 8, 10, 13, 15, 17, 20, 22, 24, 27, 29, 31], 1)
    assert sorted(spread_counts(schedule, 10).items()) == [(n, 2 if n in (12, 26) else 1) for n in range(5, 33)]
    chosen = choose_spread(schedule, 4, 42, prompts)
    assert [key.call.branch for key in chosen] == ["cond", "uncond"] * 12
    assert all(left.prompt == right.prompt for left, right in zip(chosen[::2], chosen[1::2], strict=True))
    assert len({key.prompt for key in chosen}) > 1
    assert len(choose_spread(schedule, 1000, 42, prompts)) == len(calls) * len(prompts)


def test_merging_is_one_run(observed: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    """Byte for byte in either order, and the calls also when what is merged was merged before."""
    out, _ = observed
    parts = sorted((out / "parts").iterdir())
    whole = {name: data for name, data in bytes_of(out).items() if "/" not in name}
    for number, sources in enumerate((parts, parts[::-1])):
        merge_calibrations(sources, tmp_path / f"{number}").close()
        assert bytes_of(tmp_path / f"{number}") == whole
    merge_calibrations(parts[:2], tmp_path / "two").close()
    with merge_calibrations([tmp_path / "two", parts[2]], tmp_path / "again") as again, load_calibration(out) as found:
        assert again.spread is not None
        assert found.spread is not None
        # The sums of squares, and so the ids, follow the order in which parts were added.
        assert again.spread.document["experts"] == found.spread.document["experts"]
        for role in found.roles:
            for left, right in zip(again.calls(role), found.calls(role), strict=True):
                assert all(torch.equal(x, flatten(right.inputs)[name]) for name, x in flatten(left.inputs).items())
    alone = kept(tiny_model, tmp_path / "alone", PROMPTS[1:2], keep_calls=KEEP)
    alone.close()
    assert bytes_of(alone.path) in [bytes_of(part) for part in parts]


def test_a_resumed_run_keeps_the_same(observed: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    """The first prompt's calls come from its part; another number of kept calls is refused by name."""
    out, options = tmp_path / "out", {"parts": True, "keep_calls": KEEP}
    with pytest.raises(InterruptedRunError):
        kept(tiny_model, out, PROMPTS, progress=Raises(2 * SETTINGS["steps"] + 1, KeyboardInterrupt()), **options)
    with pytest.raises(ResumeMismatchError, match=r"calls\.keep_calls.*expected 1, found 3"):
        kept(tiny_model, out, PROMPTS, resume=True, parts=True, keep_calls=3)
    kept(tiny_model, out, PROMPTS, resume=True, **options).close()
    assert bytes_of(out) == bytes_of(observed[0])


def test_another_seed_does_not_merge(observed: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    source = sorted((observed[0] / "parts").iterdir())[0]
    kept(tiny_model, tmp_path / "other", ("a cross",), seed=1, keep_calls=KEEP).close()
    with pytest.raises(CalibrationMergeError, match=r"settings\.seed"):
        merge_calibrations([source, tmp_path / "other"], tmp_path / "out")


def test_parts_that_kept_other_numbers_do_not_merge(observed: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    source = sorted((observed[0] / "parts").iterdir())[0]
    kept(tiny_model, tmp_path / "other", ("a cross",), keep_calls=2).close()
    with pytest.raises(CalibrationMergeError, match=r"--keep-calls 1 as in .*found 2"):
        merge_calibrations([source, tmp_path / "other"], tmp_path / "out")


def test_parts_without_calls_merge_and_it_is_said(observed: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    """An older part has none: the statistics are joined, and one line says what is missing."""

    class Notes(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    source, notes = sorted((observed[0] / "parts").iterdir())[0], Notes()
    kept(tiny_model, tmp_path / "other", ("a cross",)).close()
    with merge_calibrations([source, tmp_path / "other"], tmp_path / "out", progress=notes) as found:
        assert found.calls("low_noise") == []
    (line,) = notes.notes
    assert f"{tmp_path / 'other'} kept no calls" in line


def test_what_is_kept_without_being_asked_for(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """With kept rows: calls for an analysis, and one per bin and branch in the statistics. Without: none."""
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({}, 0, 0), ({"keep_inputs": 4}, 4, 1), ({"keep_inputs": 4, "keep_calls": 0}, 0, 0), ({"keep_calls": 3}, 3, 0),
        ({"keep_inputs": 4, "keep_calls": 3}, 3, 1),
    ]  # fmt: skip
    for options, number, sampled in cases:
        made = CalibrationOptions(**options)
        assert (made.kept_calls, made.sampled_calls) == (number, sampled)
    for name, options in (("none", {}), ("one", {"keep_inputs": 4})):
        with kept(tiny_model, tmp_path / name, **options) as found:
            cells = len({(c["bin"], c["branch"]) for c in found.document["schedule"]["low_noise"]["calls"]})
            assert len(found.sampled_calls("low_noise")) == (0 if name == "none" else cells)
            # One prompt: every call of its four, once.
            assert len(found.calls("low_noise")) == (0 if name == "none" else 4)
            assert ("calls" in found.document) == ("keep_calls" in found.document["settings"]) == (name == "one")
    for wrong in (-1, 1001):
        with pytest.raises(UsageError, match="keep_calls"):
            CalibrationOptions(keep_calls=wrong)


def test_calls_for_an_analysis_leave_the_id_of_the_statistics_alone(tiny_model: LoadedModel, tmp_path: Path) -> None:
    ids = {}
    for name, options in (
        ("plain", {}), ("calls", {"keep_calls": 2}), ("rows", {"keep_inputs": 4}),
        ("rows and calls", {"keep_inputs": 4, "keep_calls": 2}),
    ):  # fmt: skip
        with kept(tiny_model, tmp_path / name, **options) as found:
            ids[name] = found.id
    assert ids["plain"] == ids["calls"] != ids["rows"] == ids["rows and calls"]


def test_a_calibration_from_before_has_no_calls(small_calibration: Path) -> None:
    with load_calibration(small_calibration) as found:
        assert [found.calls(role) for role in found.roles] == [[], []]
        assert found.calls("single") == found.sampled_calls("single") == []


def test_the_estimate_counts_them(tiny_model: LoadedModel, observed: Any) -> None:
    """To the byte: one prompt's calls in memory; on disk those of every part and of the whole."""
    prompts, settings = [Prompt(text) for text in PROMPTS], tiny_model.defaults.changed(**SETTINGS)
    _, schedules = plan_run(tiny_model.plan, prompts, settings, CalibrationOptions())
    without, with_calls = (
        estimate(tiny_model.plan, settings, schedules, CalibrationOptions(keep_calls=keep), len(prompts))
        for keep in (0, KEEP)
    )
    folders = [*sorted((observed[0] / "parts").iterdir()), observed[0]]
    sizes = [bytes_of_calls(folder) for folder in folders]
    assert with_calls.statistics_bytes - without.statistics_bytes == sizes[0] == sizes[1] == sizes[2]
    assert with_calls.disk_bytes - without.disk_bytes == sum(sizes)
    assert with_calls.calls_bytes == sizes[0]
    # Both steps of each expert in every part; in the whole three pairs instead of two.
    assert sizes[3] * 2 == sizes[0] * 3


def bytes_of_calls(source: Path | Calibration) -> int:
    found = source if isinstance(source, Calibration) else load_calibration(source)
    assert found.spread is not None
    plans = [plan for role in found.roles for plan in found.spread.plans(role)]
    size = sum(entry.size_bytes for plan in plans for entry in plan.tensors())
    if found is not source:
        found.close()
    return size


# --- other models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "estimated"),
    [
        ("i2v-2.1", {"encoder_hidden_states_image"}, False),
        ("vace-2.1", {"control_hidden_states", "control_hidden_states_scale"}, True),
        ("ti2v-2.2-image", set(), True),
    ],
)
def test_every_tensor_that_a_pipeline_passes(kind: str, more: set[str], estimated: bool, tmp_path: Path) -> None:
    """Image embeddings, control video and timesteps per token are kept, and the model gives finite numbers again."""
    pipeline = build_pipeline(kind)
    image = {} if kind.startswith("vace") else {"image": "blank"}
    with (
        hfq.calibrate(pipeline, ["a cat"], tmp_path / "cal", steps=2, keep_calls=1, **size_of(kind), **image) as found,
        torch.no_grad(),
    ):
        calls = found.calls("single")
        assert {(call.bin, call.branch) for call in calls} == {
            (call["bin"], call["branch"]) for call in found.document["schedule"]["single"]["calls"]
        }
        for call in calls:
            assert set(call.inputs) == {"hidden_states", "timestep", "encoder_hidden_states"} | more
            timestep = call.inputs["timestep"]
            assert isinstance(timestep, Tensor)
            assert timestep.ndim == (2 if kind.startswith("ti2v") else 1)
            output = pipeline.transformer(**call.inputs, return_dict=False)[0]
            assert bool(torch.isfinite(output).all())
        if estimated:
            model, _ = planned(pipeline, kind)
            options = [CalibrationOptions(keep_calls=keep, **image) for keep in (0, 1)]
            settings = model.defaults.changed(steps=2, **size_of(kind))
            _, schedules = plan_run(model.plan, [Prompt("a cat")], settings, options[0])
            without, with_calls = (
                estimate(model.plan, settings, schedules, chosen, 1, dtype_bytes=4) for chosen in options
            )
            assert with_calls.statistics_bytes - without.statistics_bytes == bytes_of_calls(found)


def planned(pipeline: Any, kind: str) -> tuple[LoadedModel, str]:
    from hfq.convert.pipelines import adopt_pipeline

    return adopt_pipeline(pipeline), kind


# --- arguments -------------------------------------------------------------------------------------------------------


class Takes(nn.Module):
    """A forward of every kind of argument."""

    def forward(self, hidden_states: Any, timestep: Any, parts: Any = None, return_dict: bool = True) -> None:
        """Do nothing."""


def keeper() -> tuple[CallKeeper, Call]:
    call = Call(0, 999.0, "cond", 0)
    made = CallKeeper(1, 0, 42, {"single": ExpertSchedule((call,), (600.0, 300.0))})
    made.begin_prompt("0" * 64)
    assert made.wants("single", call)
    assert not made.wants("single", Call(1, 998.0, "cond", 0))
    return made, call


def test_arguments_are_copied_by_name() -> None:
    """Positional ones too; lists come back as lists; later writes to a tensor change nothing."""
    made, call = keeper()
    hidden, timestep = torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor(999).expand(2)
    parts = [torch.full((index + 1,), float(index)) for index in range(11)]
    made.take(
        "single", call, Takes(), (hidden, timestep), {"parts": parts, "return_dict": False, "more": None, "d": {}}
    )
    hidden.fill_(7)
    parts[3].fill_(7)
    (kept,) = made.spread()["single"]
    assert made.sampled() == {}
    plan = CallPlan.of("single", 0, kept.key, kept.inputs)
    values = dict(zip((entry.name for entry in plan.tensors()), plan.values(kept.inputs), strict=True))
    back = plan.gather(values)
    assert set(back) == {"hidden_states", "timestep", "parts"}
    assert not bool(flatten(back)["hidden_states"].any())
    assert [float(part[0]) for part in back["parts"]] == [float(index) for index in range(11)]
    assert values["single/calls/0/timestep"].is_contiguous()


@pytest.mark.parametrize("value", ["text", 3, [torch.ones(1), 2], {"scale": 1.0}, torch.ones(1, dtype=torch.complex64)])
def test_an_argument_that_cannot_be_kept_is_named(value: Any) -> None:
    made, call = keeper()
    with pytest.raises(UsageError, match=r"single parts.*--keep-calls 0"):
        made.take("single", call, Takes(), (torch.ones(1), torch.ones(1)), {"parts": value})


def test_an_input_that_is_not_finite_is_named(tiny_model: LoadedModel, tmp_path: Path) -> None:
    handle = tiny_model.pipeline.text_encoder.register_forward_hook(lambda m, a, output: output * float("nan"))
    try:
        with pytest.raises(NonFiniteActivationError, match=r"high_noise input encoder_hidden_states, step 0 \(cond\)"):
            kept(tiny_model, tmp_path / "out", keep_calls=1)
    finally:
        handle.remove()


def test_the_command(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS[0] + "\n")
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(tmp_path / "prompts.txt"), "--dry-run", "--json"]
    sizes = []
    for more in ([], ["--keep-calls", "1"], ["--keep-calls", "1", "--dtype", "float32"]):
        assert run([*arguments, *more]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["statistics_bytes"])
    # Latents [3, 9, 24, 24], four text tokens of 64, and an integer timestep, of 12 calls.
    assert [size - sizes[0] for size in sizes] == [0, 12 * (15808 * 2 + 8), 12 * (15808 * 4 + 8)]
    assert run([*arguments, "--keep-calls", "1001"]) == 2
