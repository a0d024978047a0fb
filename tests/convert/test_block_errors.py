"""Errors of whole blocks, computed again here: a copy of the model with linears of the test's own, run whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_pipelines import transformer as random_transformer
from torch import Tensor, nn

import hfq
from hfq.convert.block_errors import arms_errors, block_errors
from hfq.convert.calibration import load_calibration
from hfq.convert.kept_calls import ModelCall, flatten
from hfq.convert.progress import Silent
from hfq.convert.rounded_transformer import RoundedTransformer
from hfq.convert.transformer import build_transformer
from hfq.formats import hif4, hif8
from hfq.schema.errors import CalibrationBaseError, NonFiniteActivationError, UsageError

DEPTH = 8
HIF8 = {"format": "hif8", "scale": "row", "saturate": False}, {"format": "hif8", "scale": "none", "saturate": False}
HIF4 = {"format": "hif4", "profile": "ref", "scale_search": False}, {"format": "hif4", "profile": "ref"}


@pytest.fixture(scope="module")
def model(tiny_weights: Path) -> nn.Module:
    """The tiny Wan's low-noise expert."""
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        return build_transformer(checkpoint.experts["low_noise"])[0]


@pytest.fixture(scope="module")
def calls(tiny_calibration: Path) -> list[ModelCall]:
    """One call of the first bin, both branches of the second; a corner of each clip, which takes less time."""
    with load_calibration(tiny_calibration) as found:
        chosen = found.sampled_calls("low_noise")[1:4]
    assert [(call.bin, call.branch) for call in chosen] == [(0, "uncond"), (1, "cond"), (1, "uncond")]
    corners = [flatten(call.inputs)["hidden_states"][:, :, :3, :12, :12] for call in chosen]
    return [changed(call, hidden_states=corner)[0] for call, corner in zip(chosen, corners, strict=True)]


class Rounded(nn.Module):
    """Weight and input quantized and dequantized, then an ordinary product."""

    def __init__(self, linear: nn.Linear, name: str) -> None:
        super().__init__()
        self.name, self.bias, dtype = name, linear.bias, linear.weight.dtype
        weight = linear.weight.detach().bfloat16()
        self.weight = (hif8.qdq(weight, scale="row") if name == "hif8" else hif4.qdq(weight)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rounded = hif8.qdq(x.bfloat16()) if self.name == "hif8" else hif4.qdq(x.bfloat16())
        return F.linear(rounded.to(self.weight.dtype), self.weight, self.bias)


def with_rounded(model: nn.Module, blocks: Sequence[int], name: str) -> Any:
    """A copy in which all linears of some blocks are rounded."""
    made = copy.deepcopy(model)
    for block in blocks:
        linears = [(n, m) for n, m in made.get_submodule(f"blocks.{block}").named_modules() if isinstance(m, nn.Linear)]
        assert len(linears) in (10, 12)
        for local, linear in linears:
            parent, _, leaf = f"blocks.{block}.{local}".rpartition(".")
            setattr(made.get_submodule(parent), leaf, Rounded(linear, name))
    return made


@torch.no_grad()
def output_of(model: Any, call: ModelCall) -> np.ndarray[Any, np.dtype[np.float64]]:
    found: Tensor = model(**call.inputs, return_dict=False)[0]
    return found.double().numpy()


@torch.no_grad()
def blocks_of(model: Any, call: ModelCall) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Arguments and output of every block of one forward."""
    seen: list[tuple[tuple[Any, ...], Tensor]] = []
    handles = [block.register_forward_hook(lambda m, args, y: seen.append((args, y))) for block in model.blocks]
    model(**call.inputs)
    for handle in handles:
        handle.remove()
    return seen


def ratio(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Pooled sum of squared differences over the pooled sum of squares of what they are relative to."""
    return sum(float((d**2).sum()) for d, _ in pairs) / sum(float((x**2).sum()) for _, x in pairs)


def expected_errors(model: nn.Module, call: ModelCall, block: int, name: str) -> tuple[float, float, float]:
    rounded = with_rounded(model, [block], name)
    args, y = blocks_of(model, call)[block]
    with torch.no_grad():
        difference = (rounded.blocks[block](*args).double() - y.double()).numpy()
    isolated = difference, y.double().numpy()
    contribution = difference, (y.double() - args[0].double()).numpy()
    exact = output_of(model, call)
    return ratio([isolated]), ratio([contribution]), ratio([(output_of(rounded, call) - exact, exact)])


def state_of(model: nn.Module) -> list[Any]:
    """Modules by identity, what replaced their forwards, and their numbers."""
    modules = [(name, id(module), "forward" in module.__dict__) for name, module in model.named_modules()]
    return [*modules, *((name, x.data_ptr(), x._version) for name, x in model.named_parameters())]


@pytest.mark.parametrize(("name", "tables"), [("hif8", HIF8), ("hif4", HIF4)])
def test_errors_are_those_of_a_copy_with_one_block_rounded(
    name: str, tables: Any, model: nn.Module, calls: list[ModelCall]
) -> None:
    """Against whole forwards of the copy: blocks that were skipped on the way to the output changed nothing."""
    before = state_of(model)
    found = block_errors(model, calls, *tables)
    assert state_of(model) == before
    assert list(found) == [f"blocks.{index}" for index in range(DEPTH)]
    for block in (0, 3, 7):
        for errors, call in zip(found[f"blocks.{block}"], calls, strict=True):
            expected = expected_errors(model, call, block, name)
            assert (errors.isolated, errors.isolated_contribution, errors.propagated) == pytest.approx(
                expected, rel=1e-9
            )
            assert errors.isolated_contribution > errors.isolated > 0


def test_arms_are_those_of_a_copy(model: nn.Module, calls: list[ModelCall]) -> None:
    """Everything rounded but the kept blocks; one number per call, in the calls' order; keeping all is no error."""
    before = state_of(model)
    arms: Mapping[str, frozenset[int]] = {
        "none": frozenset(), "first 2": frozenset({0, 1}), "last 3": frozenset({5, 6, 7}),
        "all": frozenset(range(DEPTH)),
    }  # fmt: skip
    exact = [output_of(model, call) for call in calls]
    found = arms_errors(model, calls, *HIF4, arms)
    assert state_of(model) == before
    for name, kept in arms.items():
        rounded = with_rounded(model, sorted(set(range(DEPTH)) - kept), "hif4")
        pairs = [(output_of(rounded, call) - y, y) for call, y in zip(calls, exact, strict=True)]
        assert list(found[name]) == pytest.approx([ratio([pair]) for pair in pairs], rel=1e-9)
        assert found[name].nmse == pytest.approx(ratio(pairs), rel=1e-9)
    assert list(found["all"]) == [0.0] * len(calls)
    assert found["none"].nmse > found["last 3"].nmse > found["first 2"].nmse > 0
    back = arms_errors(model, calls[::-1], *HIF4, {"none": frozenset()})
    assert back["none"] == found["none"][::-1]


def test_quantizing_nothing_is_no_error(model: nn.Module, calls: list[ModelCall]) -> None:
    """Weights that the format holds exactly, and inputs that stay BF16: every number is 0."""
    exact = copy.deepcopy(model)
    for linear in exact.get_submodule("blocks").modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = hif8.qdq(hif8.qdq(linear.weight.data, scale="row"), scale="row")
    found = block_errors(exact, calls[:2], HIF8[0], {"format": "bf16"})
    for errors in [errors for of_block in found.values() for errors in of_block]:
        assert (errors.isolated, errors.isolated_contribution, errors.propagated) == (0.0, 0.0, 0.0)
    assert arms_errors(exact, calls[:2], HIF8[0], {"format": "bf16"}, {"none": frozenset()})["none"].nmse == 0.0


class Stops(Silent):
    """A progress that ends the work after some blocks."""

    def __init__(self, after: int) -> None:
        self.left, self.started, self.finished = after, 0, 0

    def start(self, label: str, total: int, unit: str) -> None:
        self.started = total

    def advance(self, amount: int = 1) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


def test_the_model_is_as_before_after_an_exception(model: nn.Module, calls: list[ModelCall]) -> None:
    """Between blocks, between arms, and inside a quantized block."""
    before, progress = state_of(model), Stops(3)
    with pytest.raises(KeyboardInterrupt):
        block_errors(model, calls, *HIF8, progress)
    assert (progress.started, progress.finished) == (DEPTH * len(calls), 1)
    with pytest.raises(KeyboardInterrupt):
        arms_errors(model, calls, *HIF8, {"none": frozenset()}, Stops(1))
    norm, counted = model.get_submodule("blocks.5.norm3"), []

    def fail(*_: Any) -> None:
        counted.append(1)
        # Once in the plain forward, four times in tails of the blocks before, then in the walk, then quantized.
        if type(model.get_submodule("blocks.5.ffn.net.2")) is not nn.Linear:
            raise RuntimeError("inside")

    for work in (
        lambda: block_errors(model, calls[:1], *HIF8),
        lambda: arms_errors(model, calls[:1], *HIF8, {"none": frozenset()}),
    ):
        handle = norm.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="inside"):
            work()
        handle.remove()
        assert state_of(model) == before
    assert len(counted) > 2


@pytest.mark.parametrize("kind", ["i2v-2.1", "vace-2.1", "ti2v-2.2"])
def test_other_models_in_float32(kind: str) -> None:
    """Image embeddings, a control branch beside the blocks, a timestep per token; BF16 inputs for a float32 model."""
    made, generator = random_transformer(kind, 3), torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    inputs: dict[str, Any] = {
        "hidden_states": noise(1, made.config.in_channels, 2, 4, 4), "timestep": torch.tensor([500]),
        "encoder_hidden_states": noise(1, 5, made.config.text_dim),
    }  # fmt: skip
    if kind == "i2v-2.1":
        inputs["encoder_hidden_states_image"] = noise(1, 5, made.config.image_dim)
    if kind == "vace-2.1":
        inputs["control_hidden_states"] = noise(1, 96, 2, 4, 4)
        inputs["control_hidden_states_scale"] = torch.tensor([1.0, 0.5])
    if kind == "ti2v-2.2":
        inputs["timestep"] = torch.tensor([[0.0] * 4 + [500.0] * 4])
    call = ModelCall(3, 500.0, "cond", 1, "0" * 64, inputs)
    wide = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    same = ModelCall(3, 500.0, "cond", 1, "0" * 64, wide)
    found = block_errors(made, [call], *HIF4)
    for block in (0, 1):
        (errors,) = found[f"blocks.{block}"]
        expected = expected_errors(made, same, block, "hif4")
        assert (errors.isolated, errors.isolated_contribution, errors.propagated) == pytest.approx(expected, rel=1e-9)
    kept = arms_errors(made, [call], *HIF4, {"last": [1]})["last"]
    assert list(kept) == pytest.approx([found["blocks.0"][0].propagated], rel=1e-9)


def test_weights_that_are_not_cached_give_the_same(
    model: nn.Module, calls: list[ModelCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model is quantized block by block for every call."""
    cached = block_errors(model, calls[:1], *HIF8)
    monkeypatch.setattr("hfq.convert.rounded_transformer._MOST_CACHED_BYTES", 0)
    assert block_errors(model, calls[:1], *HIF8) == cached


def changed(call: ModelCall, **inputs: Any) -> list[ModelCall]:
    """The call with other inputs; None removes one."""
    left = {name: value for name, value in {**call.inputs, **inputs}.items() if value is not None}
    return [ModelCall(call.step, call.t, call.branch, call.bin, call.prompt_sha256, left)]


def test_refusals(model: nn.Module, calls: list[ModelCall]) -> None:
    """No call, calls of another model, numbers that overflow, a block that is not there, another kind of module."""
    call, tensor = calls[0], torch.zeros
    with pytest.raises(UsageError, match="--keep-calls"):
        block_errors(model, [], *HIF8)
    for inputs in (
        {"hidden_states": tensor(1, 16, 9, 24, 24)},
        {"hidden_states": tensor(1, 3, 9, 24, 22)},
        {"hidden_states": tensor(1, 3, 24, 24)},
        {"hidden_states": None},
        {"encoder_hidden_states": tensor(1, 4, 65)},
        {"encoder_hidden_states_image": tensor(1, 4, 64)},
        {"timestep": tensor(1, 7)},
        {"control_hidden_states": tensor(1, 3, 9, 24, 24)},
    ):
        with pytest.raises(CalibrationBaseError, match="not this model's"):
            block_errors(model, [call, *changed(call, **inputs)], *HIF8)
    with pytest.raises(NonFiniteActivationError, match=r"step 2 \(uncond\): .*; check the checkpoint"):
        arms_errors(model, changed(call, hidden_states=tensor(1, 3, 9, 24, 24) + float("inf")), *HIF8, {"none": ()})
    with pytest.raises(UsageError, match="expected 0 to 7, found \\[8\\]"):
        arms_errors(model, calls, *HIF8, {"wrong": {8}})
    with pytest.raises(UsageError, match="not a Wan transformer"):
        block_errors(nn.Linear(2, 2), calls, *HIF8)


def test_a_quantized_model_is_refused(model: nn.Module, calls: list[ModelCall]) -> None:
    """Also one of which a single block is."""
    with (
        RoundedTransformer(model, *HIF8).quantized(6),
        pytest.raises(UsageError, match=r"blocks\.6\..*quantized already"),
    ):
        block_errors(model, calls, *HIF8)
