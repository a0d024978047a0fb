"""What kept calls say about a run: weights, means, and ranks that agree with what sampled latents suffer by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import transformer as random_transformer
from torch import nn

from hfq.convert.analyze import formats_of
from hfq.convert.block_errors import block_errors
from hfq.convert.call_sample import CallSample
from hfq.convert.kept_calls import CallKey, ModelCall, choose_calls, choose_spread
from hfq.convert.rounded_transformer import RoundedTransformer
from hfq.convert.schedule import Call, ExpertSchedule, expert_schedules, movements

BRANCHES = ("cond", "uncond")


def called(step: int, branch: str = "cond", movement: float = 1.0, prompt: str = "p") -> ModelCall:
    return ModelCall(step, 1000.0 - step, branch, 0, prompt, {}, movement)


def timesteps(steps: int, shift: float) -> list[float]:
    """Of a flow schedule with a shift, descending; the last is small and moves the latent next to nothing."""
    fraction = np.linspace(1, 1 / 1000, steps + 1)[:-1]
    return [float(1000 * shift * u / (1 + (shift - 1) * u)) for u in fraction[:-1]] + [8.9]


def test_movements_are_the_steps_of_sigma_over_both_experts() -> None:
    found = expert_schedules([999.0, 900.0, 700.0, 8.9], ["high_noise", "low_noise"], 800.0, BRANCHES)
    assert movements(found) == pytest.approx({0: 0.099, 1: 0.2, 2: 0.6911, 3: 0.0089})


def test_a_call_weighs_what_its_step_moves_and_prompts_of_a_step_share_it() -> None:
    sample = CallSample([called(0, movement=0.1), called(1, movement=0.3), called(1, movement=0.3, prompt="q")])
    assert sample.weights == pytest.approx([0.25, 0.375, 0.375])
    assert CallSample([called(0, movement=0.0), called(1, movement=0.0)]).weights == pytest.approx([0.5, 0.5])


def test_no_quarter_of_the_weight_decides_alone() -> None:
    calls = [called(step) for step in range(20)]
    values = [1.0] * 17 + [1000.0] * 3
    assert CallSample(calls).mean(values) == pytest.approx(1.0)
    assert CallSample(calls).mean([1.0] * 10 + [3.0] * 10) == pytest.approx(2.0)
    assert CallSample(calls[:1]).mean([7.0]) == 7.0


def test_an_interval_is_of_pairs_of_prompt_and_step() -> None:
    """Twice the calls, both branches alike, tell no more: the interval is that of the pairs."""
    values = np.random.default_rng(1).uniform(1, 2, 24)
    once = CallSample([called(step) for step in range(24)])
    twice = CallSample([called(step, branch) for step in range(24) for branch in BRANCHES])
    assert (once.pairs, twice.pairs) == (24, 24)
    assert twice.interval(np.repeat(values, 2)) == pytest.approx(once.interval(values))
    low, high = once.interval(values) or (0.0, 0.0)
    assert low < once.mean(values) < high
    assert CallSample([called(0)]).interval([1.0]) is None


def test_blocks_that_cannot_be_told_apart_share_ranks() -> None:
    """A block that is worse on every call stands alone; two that change places do not; equal ones never do."""
    random = np.random.default_rng(3)
    scale = random.lognormal(0, 2, 12)
    noise = random.lognormal(0, 0.3, (2, 12))
    table = np.stack([5 * scale, scale * noise[0], scale * noise[1], 0.1 * scale, 0.1 * scale])
    sample = CallSample([called(step) for step in range(12)])
    assert sample.ranks(table) == [[1, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    assert sample.weak == []


def test_a_weak_sample_says_so_and_tells_nothing_apart() -> None:
    few = CallSample([called(step, branch) for step in range(5) for branch in BRANCHES])
    assert few.ranks([[2.0] * 10, [1.0] * 10]) == [[1, 2], [1, 2]]
    assert [reason.partition(" ")[0] for reason in few.weak] == ["5"]
    apart = CallSample([called(step, BRANCHES[step % 2]) for step in range(8)])
    assert apart.weak == ["the guidance branches were kept at different steps"]
    uneven = CallSample([called(step, movement=1.0 if step < 2 else 0.01) for step in range(12)])
    assert [reason for reason in uneven.weak if "2 of 12" in reason]


@pytest.mark.parametrize("seed", range(6))
def test_the_last_steps_of_a_run_do_not_name_the_blocks(seed: int) -> None:
    """Every block errs a hundred times more at the end, the first two most; the latent is moved by the steps before,
    where the last three are worst. The truth is the error summed over the steps, weighed by what each moves."""
    (schedule,) = expert_schedules(timesteps(24, 5.0), ["single"], None, BRANCHES).values()
    moved = movements({"single": schedule})
    prompts = [f"{n:064x}" for n in range(4)]

    def error(block: int, call: Call) -> float:
        if call.t < 20:
            return 0.199 if block < 2 else 0.05
        return 0.010 if block > 2 else 0.002

    truth = [sum(moved[call.step] * error(block, call) for call in schedule.calls) for block in range(6)]
    assert set(np.argsort(truth)[-3:]) == {3, 4, 5}
    keys = choose_spread(schedule, 4, seed, prompts)
    sample = CallSample([model_call(key, moved) for key in keys])
    table = [[error(block, key.call) for key in keys] for block in range(6)]
    assert sample.weak == []
    assert {tuple(found) for found in sample.ranks(table)[3:]} == {(1, 3)}
    assert set(np.argsort([sample.mean(row) for row in table])[-3:]) == {3, 4, 5}


def test_one_call_of_a_bin_may_name_the_wrong_end() -> None:
    """The same model on sampled calls: where the last step is among them, it decides; the sample says that it is
    weak."""
    (schedule,) = expert_schedules(timesteps(24, 5.0), ["single"], None, BRANCHES).values()
    moved, prompt = movements({"single": schedule}), "0" * 64
    chosen = next(
        keys
        for seed in range(1000)
        for keys in [choose_calls([CallKey.of(seed, prompt, call) for call in schedule.calls], 1)]
        if any(key.call.t < 20 for key in keys)
    )
    pooled = [sum(0.199 if key.call.t < 20 and first else 0.01 for key in chosen) for first in (True, False)]
    assert pooled[0] > 2 * pooled[1]
    weak = CallSample([model_call(key, moved) for key in chosen]).weak
    assert any("different steps" in reason for reason in weak)


def model_call(key: CallKey, moved: dict[int, float]) -> ModelCall:
    return ModelCall(**key.call.to_json(), prompt_sha256=key.prompt, inputs={}, movement=moved[key.call.step])


# --- a model of known weak blocks ------------------------------------------------------------------------------------


def weaken(model: nn.Module, blocks: tuple[int, ...]) -> None:
    """Scale some channels of the attention's values up and take it back behind them: the same function, but other
    channels of their groups of 64 lose their precision when they are quantized."""
    for block in blocks:
        for name in ("attn1", "attn2"):
            attention: Any = model.get_submodule(f"blocks.{block}.{name}")
            for channel in range(0, attention.to_v.weight.shape[0], 64):
                attention.to_v.weight.data[channel] *= 256
                attention.to_v.bias.data[channel] *= 256
                attention.to_out[0].weight.data[:, channel] /= 256


def sampled(model: Any, start: torch.Tensor, text: torch.Tensor, steps: list[float]) -> tuple[torch.Tensor, list[Any]]:
    """The latent at the end of an Euler run without guidance, and the inputs of every call."""
    latent, seen = start, []
    for t, following in zip(steps, [*steps[1:], 0.0], strict=True):
        inputs = {"hidden_states": latent, "timestep": torch.tensor([t]), "encoder_hidden_states": text}
        seen.append(inputs)
        latent = latent - (t - following) / 1000 * model(**inputs, return_dict=False)[0]
    return latent, seen


@torch.no_grad()
def test_the_ranks_agree_with_the_measured_error_of_the_sampled_latent() -> None:
    """Three of six blocks were made weak; the latents of whole runs say which, and so does the analysis."""
    model = deep_transformer()
    worst = (1, 3, 4)
    weaken(model, worst)
    formats, generator = formats_of("hif4"), torch.Generator().manual_seed(9)
    steps = timesteps(12, 3.0)
    starts = [torch.randn(1, 16, 2, 4, 4, generator=generator) for _ in range(2)]
    texts = [torch.randn(1, 4, model.config.text_dim, generator=generator) for _ in range(2)]
    runs = [sampled(model, start, text, steps) for start, text in zip(starts, texts, strict=True)]
    rounded = RoundedTransformer(model, formats.weight, formats.activation)
    measured = []
    for block in range(6):
        with rounded.quantized(block):
            ends = [sampled(model, start, text, steps)[0] for start, text in zip(starts, texts, strict=True)]
        measured.append(sum(float((end - run[0]).square().sum()) for end, run in zip(ends, runs, strict=True)))
    assert set(np.argsort(measured)[-3:]) == set(worst)
    calls = tuple(Call(step, t, "cond", 0) for step, t in enumerate(steps))
    moved = movements({"single": ExpertSchedule(calls, (600.0, 300.0))})
    kept = [
        ModelCall(step, steps[step], "cond", 0, f"{number}", run[1][step], moved[step])
        for number, run in enumerate(runs)
        for step in range(number, 12, 2)
    ]
    found = block_errors(model, kept, formats.weight, formats.activation)
    sample = CallSample(kept)
    ranks = sample.ranks([[errors.propagated for errors in of_block] for of_block in found.values()])
    assert all(ranks[block][1] <= 3 for block in worst)
    assert all(ranks[block][0] >= 4 for block in range(6) if block not in worst)


def deep_transformer() -> Any:
    """Six random blocks in float32."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(4)
    config = {**random_transformer("t2v-2.2", 0).config, "num_layers": 6}
    return WanTransformer3DModel.from_config(config).eval()
