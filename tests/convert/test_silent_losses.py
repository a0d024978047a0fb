"""What would lose activation quantization or a change of weights without a word is refused, and says the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_apply import ROLE, build, run_model
from test_linear import K, N, inputs, make
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import hfq
from hfq.convert.linear import QuantizedLinear
from hfq.schema.errors import UsageError


@pytest.fixture
def quantized(small_base: Path, small_delta: Path) -> nn.Module:
    model = build(small_base)
    hfq.apply(model, small_delta, role=ROLE)
    return model


@pytest.mark.parametrize("how", ["model", "attention"])
@torch.no_grad()
def test_fusing_projections_is_refused(how: str, quantized: nn.Module) -> None:
    before = run_model(quantized)
    with pytest.raises(UsageError, match="lose the quantization of their inputs") as caught:
        quantized.fuse_qkv_projections() if how == "model" else quantized.blocks[1].attn2.fuse_projections()
    assert "one by one" in str(caught.value)
    assert not any(hasattr(module, "to_qkv") or hasattr(module, "to_kv") for module in quantized.modules())
    assert torch.equal(run_model(quantized), before)


@torch.no_grad()
def test_fusing_in_the_older_attention_class_is_refused() -> None:
    from diffusers.models.attention_processor import Attention

    attention = Attention(K, heads=2, dim_head=K // 2, bias=True).bfloat16()
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, make()[0])
    with pytest.raises(UsageError, match="lose the quantization of their inputs"):
        attention.fuse_projections()
    assert not hasattr(attention, "to_qkv")


def fused_by_hand(linear: QuantizedLinear) -> object:
    return torch.cat((linear.weight.data, linear.weight.data), dim=0)


def fused_by_column(linear: QuantizedLinear) -> object:
    return torch.hstack([linear.weight, linear.weight[:, :64]])


def copied(linear: QuantizedLinear) -> object:
    dense = nn.Linear(K, N, dtype=torch.bfloat16)
    return dense.weight.copy_(linear.weight.data)


def copied_into_data(linear: QuantizedLinear) -> object:
    return nn.Linear(K, N, dtype=torch.bfloat16).weight.data.copy_(linear.weight)


def copied_by_foreach(linear: QuantizedLinear) -> object:
    dense = nn.Linear(K, N, dtype=torch.bfloat16)
    return torch._foreach_copy_([dense.weight.data], [linear.weight])


def fused_in_place(linear: QuantizedLinear) -> object:
    """Into the rows of a joined weight, one linear after the other."""
    fused = nn.Linear(K, 2 * N, dtype=torch.bfloat16)
    return fused.weight[:N].copy_(linear.weight)


def fused_by_assignment(linear: QuantizedLinear) -> object:
    fused = nn.Linear(K, 2 * N, dtype=torch.bfloat16)
    fused.weight.data[N:] = linear.weight
    return fused


def written_by_row(linear: QuantizedLinear) -> object:
    for row in linear.weight:
        row.zero_()
    return linear


def merged_by_part(linear: QuantizedLinear) -> object:
    """As a LoRA of joined projections is merged."""
    return linear.weight.chunk(2)[1].add_(1.0)


def used_as_a_parameter(linear: QuantizedLinear) -> object:
    dense = nn.Linear(K, N, dtype=torch.bfloat16)
    dense.weight = nn.Parameter(linear.weight, requires_grad=False)
    return dense(inputs())


def multiplied(linear: QuantizedLinear) -> object:
    return F.linear(inputs(), linear.weight, linear.bias)


def called_as_its_parent(linear: QuantizedLinear) -> object:
    return nn.Linear.forward(linear, inputs())


def merged(linear: QuantizedLinear) -> object:
    """As peft merges: in place, into `.data`."""
    linear.weight.data += torch.ones(N, K)
    return linear


def merged_safely(linear: QuantizedLinear) -> object:
    """As peft merges after a check of the result."""
    whole = linear.weight.data.clone() + torch.ones(N, K)
    linear.weight.data = whole
    return linear


def quantized_again(linear: QuantizedLinear) -> object:
    """As torchao does: the weight of everything that is an nn.Linear becomes another class of tensor."""
    linear.weight = nn.Parameter(linear.weight.clone(), requires_grad=False)
    return linear


def loaded(linear: QuantizedLinear, assign: bool = False) -> object:
    return linear.load_state_dict({"weight": torch.zeros(N, K), "bias": torch.zeros(N)}, assign=assign)


def layerwise(linear: QuantizedLinear) -> object:
    from diffusers.hooks import apply_layerwise_casting

    model = nn.Sequential(linear)
    return apply_layerwise_casting(model, torch.float8_e4m3fn, torch.bfloat16, skip_modules_pattern=())


LOSSES: dict[str, Callable[[QuantizedLinear], object]] = {
    "fused by hand": fused_by_hand,
    "fused by column": fused_by_column,
    "copied": copied,
    "copied into data": copied_into_data,
    "copied by foreach": copied_by_foreach,
    "fused in place": fused_in_place,
    "fused by assignment": fused_by_assignment,
    "written by row": written_by_row,
    "merged by part": merged_by_part,
    "split": lambda linear: linear.weight.data.split(8, dim=1)[0].mul_(2),
    "unbound": lambda linear: torch.unbind(linear.weight)[0].copy_(torch.zeros(K)),
    "used as a parameter": used_as_a_parameter,
    "multiplied": multiplied,
    "called as its parent": called_as_its_parent,
    "merged": merged,
    "merged safely": merged_safely,
    "torchao": quantized_again,
    "loaded": loaded,
    "loaded by assignment": lambda linear: loaded(linear, assign=True),
    "pruned": lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    "weight norm": lambda linear: nn.utils.weight_norm(linear),
    "parametrized": lambda linear: parametrize.register_parametrization(linear, "weight", nn.Identity()),
    "spectral norm": lambda linear: nn.utils.parametrizations.spectral_norm(linear),
    "float8": lambda linear: linear.to(torch.float8_e4m3fn),
    "layerwise casting": layerwise,
}


@pytest.mark.parametrize("way", LOSSES)
def test_it_raises_and_the_linear_stays_what_it_was(way: str) -> None:
    linear, _, _ = make()
    before = linear(inputs())
    with torch.no_grad(), pytest.raises((UsageError, RuntimeError, ValueError, KeyError)):
        LOSSES[way](linear)
    assert [name for name, _ in linear.named_parameters()] == ["bias"]
    assert linear.bias.dtype == torch.bfloat16
    assert torch.equal(linear(inputs()), before)


@pytest.mark.parametrize("bias", [True, False])
def test_float8_names_the_linear(bias: bool) -> None:
    linear, _, _ = make(bias=bias)
    with pytest.raises(UsageError, match="does not hold its numbers") as caught:
        nn.Sequential(linear).to(torch.float8_e4m3fn)
    assert "single site" in str(caught.value)
    assert "skip_modules_classes" in str(caught.value)


def test_a_clone_of_the_weight_is_free() -> None:
    """The way to a model of effective weights alone."""
    linear, _, _ = make()
    dense = nn.Linear(K, N, dtype=torch.bfloat16)
    with torch.no_grad():
        dense.weight.copy_(linear.weight.clone())
        assert torch.cat((linear.weight.clone(), linear.weight)).shape == (2 * N, K)
    assert torch.equal(F.linear(inputs(), linear.weight.clone()), F.linear(inputs(), dense.weight))


class Patcher:
    """What ComfyUI's model patcher does with a model: walk over parameters, write patched weights, leave marks."""

    def __init__(self, model: nn.Module, patches: dict[str, Tensor], *, low_memory: bool, in_place: bool) -> None:
        self.model, self.low_memory, self.in_place = model, low_memory, in_place
        self.patches = {key: patch for key, patch in patches.items() if key in model.state_dict()}

    def load(self) -> None:
        for name, module in self.model.named_modules():
            parameters = [key for key, _ in module.named_parameters(recurse=False)]
            if not parameters:
                continue
            if self.low_memory and f"{name}.weight" in self.patches:
                module.weight_function = [lambda weight, patch=self.patches[f"{name}.weight"]: weight + patch]
                continue
            for key in parameters:
                self._patch(f"{name}.{key}")
            module.comfy_patched_weights = True

    def _patch(self, key: str) -> None:
        if key in self.patches:
            path, _, leaf = key.rpartition(".")
            owner = self.model.get_submodule(path)
            changed = getattr(owner, leaf) + self.patches[key]
            if self.in_place:
                getattr(owner, leaf).data.copy_(changed)
            else:
                setattr(owner, leaf, nn.Parameter(changed, requires_grad=False))


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_comfyuis_patcher_is_refused(low_memory: bool, in_place: bool, quantized: nn.Module) -> None:
    key = "blocks.0.attn1.to_q.weight"
    patch = torch.ones_like(quantized.get_submodule("blocks.0.attn1.to_q").weight.clone())
    patcher = Patcher(quantized, {key: patch}, low_memory=low_memory, in_place=in_place)
    assert list(patcher.patches) == [key]
    with pytest.raises(UsageError, match="ComfyUI's model patcher") as caught:
        patcher.load()
    assert "LoRA" in str(caught.value)
