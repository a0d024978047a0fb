"""Quantized linears in `torch.compile`: the quantized inputs of eager, and the timestep bin of every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_linear import HIF4, K
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler

from hfq.convert.clip import TimestepClock, unused_clips
from hfq.convert.hadamard import rotation_signs
from hfq.convert.linear import QuantizedLinear
from hfq.convert.restore import RestoredSite, transform_weight
from hfq.convert.site_ops import read_ops
from hfq.convert.weights import quantize_weight
from hfq.schema.errors import UsageError


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        get_cpp_compiler()
    except Exception as error:  # of a class that differs between releases
        pytest.skip(f"inductor needs a C++ compiler: {error}")
    torch._dynamo.reset()


HALF = torch.arange(0, K, 2, dtype=torch.int32)
MASK = torch.rand(K, generator=torch.Generator().manual_seed(1)) * 2 + 0.1
FACTORS = torch.randn(4, K, generator=torch.Generator().manual_seed(2)).bfloat16()
OPS: dict[str, dict[str, Any]] = {
    "mask": {"op": "mask", "tensor": "mask"},
    "rotate": {"op": "rotate", "block": 64, "seed": 1},
    "columns": {"op": "columns", "tensor": "columns"},
    "lowrank": {"op": "lowrank", "down": "down", "up": "up"},
    "clip": {"op": "clip", "edges": [900, 500], "headroom": [1.3, 1.0, 0.6]},
}
QDQ: dict[str, dict[str, Any]] = {
    "ref": {"op": "qdq", "format": "hif4", "profile": "ref"},
    "pto": {"op": "qdq", "format": "hif4", "profile": "pto"},
    "hif8": {"op": "qdq", "format": "hif8", "scale": "row", "saturate": False},
    "bf16": {"op": "qdq", "format": "bf16"},
}


def linear_of(words: str, dtype: torch.dtype, clock: TimestepClock | None = None) -> QuantizedLinear:
    """A quantized linear [K, K] with these ops and this quantizer, in this order."""
    *ops, quantizer = words.split()
    width, state = K, {}
    if "columns" in ops:
        width, state["columns"] = K // 2, HALF
    if "mask" in ops:
        state["mask"] = MASK[:width].clone()
    if "lowrank" in ops:
        state |= {"down": FACTORS[:, :width].clone(), "up": FACTORS.t().contiguous()}
    source = nn.Linear(K, K)
    with torch.no_grad():
        source.weight.copy_(torch.randn(K, K, generator=torch.Generator().manual_seed(3)) * 0.05)
    source = source.to(torch.bfloat16).to(dtype)
    built = read_ops([*(OPS[op] for op in ops), QDQ[quantizer]], state, (K, K), "site")
    weight = transform_weight(source.weight.detach().bfloat16(), built.ops)
    return QuantizedLinear(
        RestoredSite(quantize_weight(weight, HIF4, "site"), built, ""), source, role="single", site="site", clock=clock
    )


def an_input(dtype: torch.dtype) -> Tensor:
    return (torch.randn(40, K, generator=torch.Generator().manual_seed(4)) * 3).to(dtype)


CHAINS = ["ref", "mask ref", "mask pto", "rotate ref", "rotate mask ref", "columns mask ref", "columns lowrank ref",
          "lowrank mask hif8", "rotate hif8", "mask bf16", "hif8"]  # fmt: skip


@pytest.mark.parametrize("words", CHAINS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_inputs_are_quantized_as_in_eager(words: str, dtype: torch.dtype) -> None:
    linear = linear_of(words, dtype)

    def scaled_and_quantized(x: Tensor) -> Tensor:
        return linear.quantize_input(x * 1.1)

    x = an_input(dtype)
    compiled = torch.compile(scaled_and_quantized, fullgraph=True)
    assert torch.equal(compiled(x), scaled_and_quantized(x))
    if dtype == torch.float32:  # products of float32 are rounded nowhere on the way
        assert torch.allclose(torch.compile(linear, fullgraph=True)(x), linear(x), rtol=1e-5, atol=1e-4)


def test_the_rotation_keeps_its_promises() -> None:
    torch.library.opcheck(torch.ops.hfq.rotate.default, (an_input(torch.float32), rotation_signs(1, K), 64))


class Steps(nn.Module):
    """Three linears with clips behind a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        clock = TimestepClock("single", (900.0, 500.0))
        self.layers = nn.ModuleList(linear_of("mask clip ref", torch.bfloat16, clock) for _ in range(3))
        clock.install(self)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(nn.functional.silu(hidden_states))
        return hidden_states


@pytest.mark.parametrize("way", ["torch.compile", "compile in place"])
@torch.no_grad()
def test_every_call_of_a_compiled_model_has_its_own_timestep_bin(way: str) -> None:
    model, x = Steps(), an_input(torch.bfloat16)
    times = [torch.tensor([t]) for t in (1000.0, 700.0, 1.0, 1000.0)]
    expected = [model(x, t) for t in times]
    assert not torch.equal(expected[0], expected[2])
    unused_clips(model, reset=True)
    if way == "torch.compile":
        compiled = torch.compile(model)
    else:
        model.compile()
        compiled = model
    assert all(torch.equal(compiled(x, t), wanted) for t, wanted in zip(times, expected, strict=True))
    assert unused_clips(model) == []
    with pytest.raises(UsageError, match="call the transformer"):
        model.layers[0](x)


@torch.no_grad()
def test_a_graph_that_would_freeze_the_timestep_bin_is_refused() -> None:
    with pytest.raises(Exception, match="ContextVar"):
        torch.compile(Steps(), fullgraph=True)(an_input(torch.bfloat16), torch.tensor([700.0]))
