"""What lies between the quantized linears of a graph, with every linear's output in torch forced to the runtime's own.

A free run cannot tell a wrong computation from a code that rounding moved: both are a step of quantization. Forced, no
code can move. What torch then feeds to each linear, and its output, must be the runtime's but for float32 rounding.
With each op (`in_situ`) and each linear (`linear`) right on the runtime's own input, nothing of the graph is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from hfq.convert.linear import QuantizedLinear

from .linear_level import largest_error
from .running import RunningGraph
from .site_nodes import SiteNodes

__all__ = ["OUTPUT", "forced_errors"]

OUTPUT: Final = "y"


@torch.no_grad()
def forced_errors(
    module: nn.Module, graph: RunningGraph, inputs: Sequence[Mapping[str, Tensor]], sites: Mapping[str, SiteNodes]
) -> dict[str, float]:
    """Largest error over largest value, of each site's input and of the output, over all inputs of the graph.

    All values are of one run: two sessions may differ in the last bit, and then in a code.

    Args:
        module: the quantized part in torch; as before afterwards.

    Returns:
        site, in the order of the forward, and `y` -> error.

    Raises:
        GraphRunError
    """
    exposed = [name for nodes in sites.values() for name in (nodes.places.input, nodes.places.output)]
    errors: dict[str, float] = {}
    for given in inputs:
        values = graph.run(given, [*exposed, OUTPUT])
        with _forced(module, values, sites, errors):
            output: Tensor = module(**given)
        errors[OUTPUT] = max(errors.pop(OUTPUT, 0.0), largest_error(output, values[OUTPUT]))
    return errors


@contextlib.contextmanager
def _forced(
    module: nn.Module, values: Mapping[str, Tensor], sites: Mapping[str, SiteNodes], errors: dict[str, float]
) -> Iterator[None]:
    linears = [part for part in module.modules() if isinstance(part, QuantizedLinear) and part.site in sites]

    def replace(linear: QuantizedLinear) -> None:
        places = sites[linear.site].places

        def forward(x: Tensor) -> Tensor:
            errors[linear.site] = max(errors.get(linear.site, 0.0), largest_error(x, values[places.input]))
            return values[places.output]

        linear.__dict__["forward"] = forward

    try:
        for linear in linears:
            replace(linear)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)
