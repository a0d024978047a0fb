"""The nodes behind each quantized site of a graph, found by its wiring and not by what nodes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from .domain import DOMAIN, HIF4_DEQUANTIZE, HIF4_QDQ, HIF8_DEQUANTIZE, HIF8_QDQ
from .levels import Level
from .onnx_file import OnnxFile
from .origin import Origin, Places

__all__ = ["SiteNodes", "locate_sites"]

_QUANTIZERS = (HIF4_QDQ, HIF8_QDQ)
_DECODERS = (HIF4_DEQUANTIZE, HIF8_DEQUANTIZE)


@dataclass(frozen=True)
class SiteNodes:
    """A site's places and nodes.

    Attributes:
        quantizer: of the input; a Cast when the delta leaves activations in BF16.
        decoder: of the packed weight.
        multiply: the MatMul.
    """

    site: str
    places: Places
    quantizer: onnx.NodeProto
    decoder: onnx.NodeProto | None
    multiply: onnx.NodeProto

    @property
    def is_open(self) -> bool:
        """Whether the ops are nodes of our domain, not written out as standard ops."""
        return self.decoder is not None


def locate_sites(file: OnnxFile, origin: Origin, level: Level) -> dict[str, SiteNodes]:
    """Find every site's nodes; what is wired otherwise than an export does it is a failure of `level`.

    Wired as an export does it means: the product is a MatMul of the quantized input with the transposed weight that
    the site's own codes and scales decode to.
    """
    producers = {output: node for node in file.model.graph.node for output in node.output if output}
    inputs = {entry.name for entry in file.model.graph.input}
    inlined = all(node.domain != DOMAIN for node in file.model.graph.node)
    found = {}
    for site, places in origin.sites.items():
        nodes = _locate(site, places, producers, inputs, inlined, level)
        if nodes is not None:
            found[site] = nodes
    return found


def _locate(
    site: str,
    places: Places,
    producers: Mapping[str, onnx.NodeProto],
    inputs: set[str],
    inlined: bool,
    level: Level,
) -> SiteNodes | None:
    if places.input not in producers and places.input not in inputs:
        level.fail(site, "the graph has no such value", "the input of the linear", places.input)
        return None
    for place in (places.qdq, places.product, places.output):
        if place not in producers:
            level.fail(site, "no node of the graph makes this value", found=place)
            return None
    multiply, quantizer = producers[places.product], producers[places.qdq]
    if multiply.op_type != "MatMul" or multiply.input[0] != places.qdq:
        level.fail(multiply.name or site, "not the product of the quantized input", f"MatMul of {places.qdq}",
                   f"{multiply.op_type} of {', '.join(multiply.input)}")  # fmt: skip
        return None
    if inlined:
        return SiteNodes(site, places, quantizer, None, multiply)
    if (quantizer.domain, quantizer.op_type) != ("", "Cast") and quantizer.op_type not in _QUANTIZERS:
        level.fail(quantizer.name or site, "not a quantizer", ", ".join(_QUANTIZERS), quantizer.op_type)
        return None
    transpose = producers.get(multiply.input[1])
    decoder = None
    if transpose is not None and transpose.op_type == "Transpose" and _permutation(transpose) in ([1, 0], []):
        decoder = producers.get(transpose.input[0])
    own = [f"{site}.w_codes", f"{site}.w_scale"]
    if decoder is None or decoder.op_type not in _DECODERS or list(decoder.input) != own:
        found = "nothing of the kind" if decoder is None else f"{decoder.op_type} of {', '.join(decoder.input)}"
        level.fail((decoder or multiply).name or site, "not the weight of this linear", " and ".join(own), found)
        return None
    return SiteNodes(site, places, quantizer, decoder, multiply)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [])
