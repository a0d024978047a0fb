"""Real inputs of a graph: from the calls that a calibration kept, taken to where the graph begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.kept_calls import ModelCall
from hfq.convert.keymap import to_diffusers
from hfq.convert.transformer import empty_transformer, set_tensor

from .origin import Origin
from .reference import sample_inputs
from .scope import graph_inputs

__all__ = ["real_inputs", "verification_inputs"]

_MOST: Final = 2
"""Calls that are run: one of each guidance branch."""


def verification_inputs(
    origin: Origin, base: Checkpoint, calls: Sequence[ModelCall] | None
) -> tuple[list[dict[str, Tensor]], str]:
    """Inputs for a graph, and in words where they come from.

    Calls serve graphs of a block or a model, in the graph's own timestep bin; elsewhere the inputs are made up.
    """
    found = real_inputs(origin, base, calls or [])
    if found:
        return found, "calls of a calibration"
    return sample_inputs(base.experts[origin.role].architecture, origin.scope), "made up"


def real_inputs(origin: Origin, base: Checkpoint, calls: Sequence[ModelCall]) -> list[dict[str, Tensor]]:
    """The inputs that a block or model has in calls of its expert; none for a site, or without a call of its bin.

    A block's input is that of the unquantized model: the blocks before it run in float32, those after it do not run.
    """
    usable = _by_branch([call for call in calls if origin.bin in (None, call.bin)])
    if origin.scope.kind == "site" or not usable:
        return []
    model_inputs = [_float_inputs(call) for call in usable[:_MOST]]
    if origin.scope.kind == "model":
        names = [entry.name for entry in graph_inputs(base.experts[origin.role].architecture, origin.scope)]
        return [{name: given[name] for name in names} for given in model_inputs]
    return _before_block(base, origin.role, origin.scope.block, model_inputs)


def _by_branch(calls: Sequence[ModelCall]) -> list[ModelCall]:
    """One of each guidance branch before a second one of the same."""
    seen: Counter[str] = Counter()
    ranked = []
    for number, call in enumerate(calls):
        ranked.append((seen[call.branch], number))
        seen[call.branch] += 1
    return [calls[number] for _, number in sorted(ranked)]


def _float_inputs(call: ModelCall) -> dict[str, Tensor]:
    return {name: value.float() for name, value in call.inputs.items() if isinstance(value, Tensor)}


class _Reached(Exception):  # noqa: N818 - no error: the forward has gone as far as it needs to
    """The forward came to the block; carries what the block is called with."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.inputs = inputs


def _before_block(
    base: Checkpoint, role: str, block: int, given: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    expert = base.experts[role]
    transformer: Any = empty_transformer(expert.architecture).eval()
    for name in expert.architecture.tensors():
        stack, _, rest = name.partition(".")
        if stack != "blocks" or int(rest.partition(".")[0]) < block:
            set_tensor(transformer, to_diffusers(name), expert.read_bf16(name).float())
    stop = transformer.blocks[block].register_forward_pre_hook(_stop)
    found = []
    try:
        for inputs in given:
            try:
                with torch.no_grad():
                    transformer(**inputs, return_dict=False)
            except _Reached as reached:
                found.append(reached.inputs)
    finally:
        stop.remove()
    return found


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    hidden_states, text, temb, (cosine, sine) = args
    values = (hidden_states, text, temb, cosine, sine)
    names = ("hidden_states", "encoder_hidden_states", "temb", "rotary_cos", "rotary_sin")
    raise _Reached({name: value.detach().float().contiguous() for name, value in zip(names, values, strict=True)})
