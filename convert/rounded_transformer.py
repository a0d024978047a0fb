"""A loaded transformer whose blocks run quantized for a while: rounded plainly, as by a recipe without stages."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.schema.errors import CalibrationBaseError, NonFiniteActivationError, UsageError

from .bf16 import to_bf16
from .kept_calls import Inputs, ModelCall
from .linear import QuantizedLinear
from .restore import RestoredSite
from .site_ops import SiteOps
from .weights import quantize_weight

__all__ = ["Forward", "RoundedTransformer"]

_MOST_CACHED_BYTES: Final = 256 << 20
"""Of quantized weights: a small model is quantized once, a large one block by block for every call."""

Forward = Callable[..., Tensor]
"""The forward of a block: its first argument is the residual stream."""


def _fits(inputs: Inputs, config: Any) -> bool:
    """Whether a transformer of this configuration takes these arguments."""
    latents, text, timestep = (inputs.get(name) for name in ("hidden_states", "encoder_hidden_states", "timestep"))
    if not (isinstance(latents, Tensor) and isinstance(text, Tensor) and isinstance(timestep, Tensor)):
        return False
    if latents.ndim != 5 or latents.shape[1] != config.in_channels or text.shape[-1] != config.text_dim:
        return False
    patches = [extent / patch for extent, patch in zip(latents.shape[2:], config.patch_size, strict=True)]
    if not all(count.is_integer() and count <= config.rope_max_seq_len for count in patches):
        return False
    has_image = inputs.get("encoder_hidden_states_image") is not None
    return has_image == (config.image_dim is not None) and tuple(timestep.shape[1:]) in ((), (math.prod(patches),))


@dataclass
class _Swap:
    """A linear of a block and what stands in its place while the block is quantized."""

    parent: nn.Module
    leaf: str
    original: nn.Linear
    quantized: QuantizedLinear


@dataclass
class RoundedTransformer:
    """A transformer whose blocks can be quantized one at a time, for a while.

    Attributes:
        transformer: a diffusers Wan transformer.
        weight, activation: tables of a recipe, normalised.
        blocks: of the main stack; a VACE branch stays as it is.

    Raises:
        UsageError: another module, or one that is quantized already.
    """

    transformer: nn.Module
    weight: Mapping[str, Any]
    activation: Mapping[str, Any]
    _cached: dict[int, list[_Swap]] = field(default_factory=dict)
    _cached_bytes: int = 0

    def __post_init__(self) -> None:
        blocks = getattr(self.transformer, "blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise UsageError("not a Wan transformer of diffusers", found=type(self.transformer).__name__)
        self.blocks: list[nn.Module] = list(blocks)
        for name, module in self.transformer.named_modules():
            if isinstance(module, QuantizedLinear):
                raise UsageError("the model is quantized already", where=name, todo="build it from the base")

    def check(self, calls: Sequence[ModelCall]) -> None:
        """Check from names and shapes that the calls are this model's.

        Raises:
            UsageError: there is none.
            CalibrationBaseError
        """
        if not calls:
            raise UsageError("no model calls", todo="calibrate with --keep-calls N")
        config: Any = self.transformer.config
        known = inspect.signature(type(self.transformer).forward).parameters
        for number, call in enumerate(calls):
            if not (set(call.inputs) <= set(known) and _fits(call.inputs, config)):
                found = {name: list(x.shape) for name, x in call.inputs.items() if isinstance(x, Tensor)}
                raise CalibrationBaseError(
                    "the kept calls are not this model's",
                    where=f"call {number}",
                    expected=f"{config.in_channels} channels, text of width {config.text_dim}",
                    found=found,
                    todo="calibrate this model: hfq calibrate MODEL --prompts FILE -o CAL",
                )

    def run(self, call: ModelCall, quantized: str = "") -> Tensor:
        """The model's output of a call, [batch, channels, frames, height, width].

        Args:
            quantized: what of the model is, for the message when the output is not finite.

        Raises:
            NonFiniteActivationError
        """
        place = self.transformer.get_parameter("patch_embedding.weight")

        def put(name: str, x: Tensor) -> Tensor:
            # A pipeline casts what it gives to the transformer in the same way, but not the timestep.
            return x.to(place.device, place.dtype if x.is_floating_point() and name != "timestep" else x.dtype)

        inputs: Inputs = {
            name: put(name, value) if isinstance(value, Tensor) else [put(name, part) for part in value]
            for name, value in call.inputs.items()
        }
        output: Tensor = self.transformer(**inputs, return_dict=False)[0]
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteActivationError(
                "the model produced NaN or infinity",
                where=f"step {call.step} ({call.branch})" + (f", {quantized} quantized" if quantized else ""),
                todo="choose a format that holds them, or let it saturate" if quantized else "check the checkpoint",
            )
        return output

    @contextlib.contextmanager
    def quantized(self, index: int) -> Iterator[None]:
        """Every linear of one block is quantized until the `with` statement ends, however it ends.

        Raises:
            NonFiniteWeightError
        """
        swaps = self._swaps(index)
        try:
            for swap in swaps:
                setattr(swap.parent, swap.leaf, swap.quantized)
            yield
        finally:
            for swap in swaps:
                setattr(swap.parent, swap.leaf, swap.original)

    def _swaps(self, index: int) -> list[_Swap]:
        if index in self._cached:
            return self._cached[index]
        block, swaps = self.blocks[index], []
        for local, linear in block.named_modules():
            if isinstance(linear, nn.Linear):
                name = f"blocks.{index}.{local}"
                encoded = quantize_weight(to_bf16(linear.weight.detach()), self.weight, name)
                site = RestoredSite(encoded, SiteOps(activation=self.activation), "")
                parent, _, leaf = local.rpartition(".")
                made = QuantizedLinear(site, linear, role="", site=name)
                swaps.append(_Swap(block.get_submodule(parent), leaf, linear, made))
        size = sum(x.numel() * x.element_size() for swap in swaps for x in swap.quantized.buffers())
        if self._cached_bytes + size <= _MOST_CACHED_BYTES:
            self._cached[index], self._cached_bytes = swaps, self._cached_bytes + size
        return swaps

    @contextlib.contextmanager
    def wrapped(self, wrap: Callable[[int, Forward], Forward]) -> Iterator[None]:
        """Every block's forward is replaced by `wrap(index, forward)` until the `with` statement ends."""
        with contextlib.ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                stack.callback(_put_back, block, block.__dict__.get("forward"))
                block.__dict__["forward"] = wrap(index, block.forward)
            yield

    def quantize_but(self, kept: frozenset[int], index: int, original: Forward) -> Forward:
        """A wrap: blocks that are not kept run quantized."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            with contextlib.nullcontext() if index in kept else self.quantized(index):
                return original(*args, **kwargs)

        return forward


def _put_back(block: nn.Module, own: Forward | None) -> None:
    block.__dict__.pop("forward", None)
    if own is not None:
        block.__dict__["forward"] = own
