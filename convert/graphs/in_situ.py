"""The fourth level: every op of our domain inside the running graph, fed to torch with the runtime's own inputs.

An op's own input is what the runtime had, whatever differed before it, so that nothing can drift and nothing but
equality of all bits is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from hfq.convert.hadamard import rotate
from hfq.formats import hif4, hif8
from hfq.formats.hif4 import Hif4Tensor
from hfq.formats.hif8 import Hif8Tensor

from .domain import BLOCK_HADAMARD, DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_QDQ
from .functions import attributes_of
from .levels import Level
from .running import differing
from .site_nodes import SiteNodes
from .site_reference import ReferenceSite

__all__ = ["InSitu", "reference_of"]


def reference_of(node: onnx.NodeProto, inputs: Sequence[Tensor]) -> Tensor:
    """What a node of our domain must make of its inputs, in float32.

    Args:
        node: with attributes that were checked.
        inputs: of the node, as the contract of its op has them.
    """
    attributes: dict[str, Any] = attributes_of(node)
    if node.op_type == HIF4_QDQ:
        return hif4.qdq(inputs[0], profile=attributes["profile"], headroom=attributes["headroom"])
    if node.op_type == HIF8_QDQ:
        return hif8.qdq(inputs[0], scale=attributes["scale"], saturate=bool(attributes["saturate"]))
    if node.op_type == HIF4_DEQUANTIZE:
        codes, scale = inputs
        words = scale.contiguous().view(torch.uint32).view(scale.shape[:-1])
        return Hif4Tensor(codes, words, (codes.shape[0], attributes["columns"]), "ref").dequantize(torch.float32)
    if node.op_type in BLOCK_HADAMARD.values():
        block = next(block for block, name in BLOCK_HADAMARD.items() if name == node.op_type)
        return rotate(inputs[0], inputs[1], block)
    codes, scale = inputs
    return Hif8Tensor(codes, scale, "row" if scale.ndim else "tensor").dequantize(torch.float32)


class InSitu:
    """Collects the comparison of nodes and sites as they are run."""

    def __init__(self) -> None:
        self.level = Level("in_situ", {"nodes": 0, "elements": 0, "differing": 0, "sites": 0, "inputs": 0})
        self._nodes: set[str] = set()
        self._sites: set[str] = set()

    def see_node(self, node: onnx.NodeProto, inputs: Sequence[Tensor], found: Tensor) -> None:
        """One node of our domain, its inputs and its output."""
        self._nodes.add(node.output[0])
        self.level.figures["nodes"] = len(self._nodes)
        what = "other values than torch makes of the same input"
        self._compare(node.name, what, reference_of(node, inputs), found)

    def see_site(self, nodes: SiteNodes, reference: ReferenceSite, values: Mapping[str, Tensor]) -> None:
        """The way from a site's input to its quantizer: rounding to BF16, mask, rotation, columns."""
        self._sites.add(nodes.site)
        self.level.figures["sites"] = len(self._sites)
        given = values[nodes.places.input]
        if nodes.quantizer.domain == DOMAIN:
            what = "the input is prepared otherwise than by the delta (rounding, mask, rotation, columns)"
            expected, found = reference.before_quantizer(given), values[nodes.quantizer.input[0]]
        else:
            what = "the input is quantized otherwise than by the delta"
            expected, found = reference.quantized_input(given), values[nodes.places.qdq]
        self._compare(nodes.quantizer.name or nodes.site, what, expected, found)

    def _compare(self, where: str, what: str, expected: Tensor, found: Tensor) -> None:
        wrong = differing(expected, found)
        self.level.figures["elements"] += expected.numel()
        self.level.figures["differing"] += wrong
        if wrong:
            self.level.fail(where, what, "0 elements that differ", f"{wrong} of {expected.numel()}")
