"""What a graph is compared with: the same part of the model in torch, float32, quantized by a delta or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from hfq.convert.architecture import Architecture
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.clip import TimestepClock
from hfq.convert.delta import Delta
from hfq.convert.linear import QuantizedLinear
from hfq.convert.restore import restore_site
from hfq.convert.transformer import set_tensor

from .graph_modules import empty_graph, linears_of, tensor_names
from .scope import TEXT_WITH_IMAGE, GraphInput, Scope, graph_inputs

__all__ = ["FixedBin", "plain_module", "reference_module", "sample_inputs"]

_SIZES: Final = {"batch": 1, "tokens": 96, "text": 24, "frames": 3, "height": 4, "width": 6, "image_tokens": 257}
_IMAGE_TOKENS: Final = 257


class FixedBin(TimestepClock):
    """A clock that stands still in one timestep bin."""

    def __init__(self, role: str, bin: int) -> None:
        super().__init__(role, (0.0, 0.0))
        self.fixed = bin

    def consult(self, site: str) -> int:
        """The bin."""
        return self.fixed


def plain_module(base: Checkpoint, role: str, scope: Scope) -> nn.Module:
    """The part without quantization: BF16-rounded weights, in float32, called with the graph's inputs by name."""
    expert = base.experts[role]
    module = empty_graph(expert.architecture, scope)
    for canonical, local in tensor_names(module, scope).items():
        set_tensor(module, local, expert.read_bf16(canonical).float())
    return module


def reference_module(delta: Delta, base: Checkpoint, role: str, scope: Scope, bin: int | None = None) -> nn.Module:
    """The part as the delta makes it, in float32.

    Args:
        base: the delta's base; every site's digest is compared.
        bin: timestep bin; None where all of them are the same.

    Raises:
        DigestMismatchError, and what reading the base raises.
    """
    module = plain_module(base, role, scope)
    clock = FixedBin(role, bin or 0)
    for site, local in linears_of(module, scope, delta.quantized(role)).items():
        restored = restore_site(delta, role, site, base.experts[role].read_bf16(f"{site}.weight"))
        linear = module.get_submodule(local)
        assert isinstance(linear, nn.Linear)
        parent, _, leaf = local.rpartition(".")
        replacement = QuantizedLinear(restored, linear, role=role, site=site, clock=clock)
        setattr(module.get_submodule(parent), leaf, replacement)
    return module


def sample_inputs(
    architecture: Architecture, scope: Scope, *, count: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> list[dict[str, Tensor]]:
    """Made-up inputs of a graph, by name: normal numbers, real rotary tables, timesteps over the whole range.

    Args:
        count: how many; each has its own extents.
        sizes: free numbers of the dynamic axes, see `scope.Axis`.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        chosen = {**_SIZES, **(sizes or {})}
        if index % 2:
            chosen |= {
                "tokens": max(2, chosen["tokens"] // 2),
                "width": chosen["width"] + 1,
                "text": chosen["text"] + 3,
            }
        if architecture.image_dim is not None and scope.kind == "block":
            chosen["text"] = (architecture.image_tokens or _IMAGE_TOKENS) + TEXT_WITH_IMAGE
        if scope.kind == "model" and architecture.model_type == "ti2v":
            chosen["tokens"] = chosen["frames"] * chosen["height"] * chosen["width"]
        inputs = graph_inputs(architecture, scope)
        made.append({entry.name: _values(entry, entry.shape(chosen), generator) for entry in inputs})
    return made


def _values(entry: GraphInput, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if entry.name == "timestep":
        return torch.rand(shape, generator=generator) * 1000
    if entry.name.startswith("rotary"):
        tokens, head = shape[1], shape[-1]
        frequencies = 10000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
        angles = torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies).repeat_interleave(2, dim=-1)
        table = angles.cos() if entry.name == "rotary_cos" else angles.sin()
        return table.float().view(shape)
    return torch.randn(shape, generator=generator)
