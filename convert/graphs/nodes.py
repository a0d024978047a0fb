"""From the exporter's graph to the one that is written: real ops for placeholders, names of sites, nothing private."""

from __future__ import annotations

import ast
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from .domain import DOMAIN, VERSION
from .torch_ops import PLACEHOLDERS
from .trace import Traced

__all__ = ["Finished", "finish"]

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_MERGED: Final = ("Round", "Hif4Qdq", "Hif8Qdq")

Sites = dict[str, dict[str, str]]
"""Site -> what of it (input, qdq, product, output) -> name of the value."""


class Finished:
    """A graph ready to be given its weights.

    Attributes:
        model: an onnx_ir model.
        sites: where each quantized site is in it.
        headroom: name of a HiFloat4QDQ node -> its headroom per timestep bin, or for all of them.
    """

    def __init__(self, model: Any, sites: Sites, headroom: dict[str, tuple[float, ...]]) -> None:
        self.model, self.sites, self.headroom = model, sites, headroom

    @property
    def by_bin(self) -> bool:
        """Whether timestep bins differ."""
        return any(len(set(table)) > 1 for table in self.headroom.values())


def finish(traced: Traced, ir_version: int) -> Finished:
    """Optimize a traced graph and turn it into standard ops and ops of our domain, in place."""
    _optimize(traced)
    graph = traced.model.graph
    marks = _Marks(graph)
    _merge(graph, marks)
    headroom = _replace_placeholders(graph, marks)
    _name_nodes(graph, traced.modules)
    sites = marks.name_values()
    _strip(traced.model, ir_version)
    return Finished(traced.model, sites, {node.name: table for node, table in headroom})


def _optimize(traced: Traced) -> None:
    """Rename the weights, take their values (which are none) away, fold constants and join equal nodes.

    Without the exporter's pattern rewriting, whose time grows with the square of the nodes and which finds a dozen of
    them to save.
    """
    from onnx_ir import passes
    from onnxscript import optimizer

    graph = traced.model.graph
    for old, new in traced.initializers.items():
        value = graph.initializers.pop(old)
        value.name, value.const_value = new, None
        graph.initializers[new] = value
    common = passes.common
    steps = passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    with _silent("onnx_ir", "onnxscript"):
        common.InlinePass()(traced.model)
        optimizer.fold_constants(traced.model, onnx_shape_inference=True)
        steps(traced.model)


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Without the optimizer's warning about every initializer that has no value."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _Marks:
    """Takes the marks out of a graph and knows the marked values whatever becomes of their nodes."""

    def __init__(self, graph: Any) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        for node in list(graph):
            if (node.domain, node.op_type) == (PLACEHOLDERS, "Mark"):
                site, place = (node.attributes[name].as_string() for name in ("site", "place"))
                self._values.setdefault(site, {})[place] = node.inputs[0]
                self.replace(graph, node, node.inputs[0])

    def replace(self, graph: Any, node: Any, value: Any) -> None:
        """Put `value` where the output of `node` was, and remove the node."""
        old = node.outputs[0]
        if old.is_graph_output():
            value.name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        for places in self._values.values():
            for place, marked in places.items():
                if marked is old:
                    places[place] = value

    def name_values(self) -> Sites:
        """Name what a site makes after the site; what it reads may be somebody else's."""
        for site, places in self._values.items():
            for place in ("qdq", "product", "output"):
                value = places[place]
                if not value.is_graph_output() and "/" not in value.name:
                    value.name = f"{site}/{place}"
        return {site: {place: value.name for place, value in places.items()} for site, places in self._values.items()}


def _merge(graph: Any, marks: _Marks) -> None:
    """Join roundings and quantizers that do the same to one value: q, k and v of a block read one input."""
    seen: dict[tuple[Any, ...], Any] = {}
    for node in list(graph):
        if node.domain == PLACEHOLDERS and node.op_type in _MERGED:
            attributes = tuple(sorted((name, str(value.value)) for name, value in node.attributes.items()))
            first = seen.setdefault((node.op_type, id(node.inputs[0]), attributes), node)
            if first is not node:
                marks.replace(graph, node, first.outputs[0])


def _replace_placeholders(graph: Any, marks: _Marks) -> list[tuple[Any, tuple[float, ...]]]:
    """Returns the HiFloat4QDQ nodes with their headrooms."""
    import onnx_ir as ir

    headroom = []
    for node in list(graph):
        if node.domain != PLACEHOLDERS:
            continue
        given = {name: value.value for name, value in node.attributes.items()}
        inputs = list(node.inputs)
        if node.op_type == "Round":
            down = ir.node("Cast", inputs, {"to": ir.DataType.BFLOAT16})
            down.metadata_props.update(node.metadata_props)
            graph.insert_before(node, down)
            _type(down.outputs[0], node.outputs[0].shape, ir.DataType.BFLOAT16)
            made = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT})
        else:
            op_type, attributes = _op(node.op_type, given)
            made = ir.node(op_type, inputs, attributes, domain=DOMAIN)
            if op_type == "HiFloat4QDQ":
                headroom.append((made, tuple(given["headroom"])))
        made.metadata_props.update(node.metadata_props)
        graph.insert_before(node, made)
        _type(made.outputs[0], node.outputs[0].shape, ir.DataType.FLOAT)
        marks.replace(graph, node, made.outputs[0])
    return headroom


def _type(value: Any, shape: Any, dtype: Any) -> None:
    import onnx_ir as ir

    value.shape, value.type = shape, ir.TensorType(dtype)


def _op(placeholder: str, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our op and its attributes for a placeholder's."""
    match placeholder:
        case "Hif4Qdq":
            return "HiFloat4QDQ", {"profile": given["profile"], "headroom": float(given["headroom"][0])}
        case "Hif8Qdq":
            return "HiFloat8QDQ", given
        case "Hif4Dequantize":
            return "HiFloat4Dequantize", given
        case "Hif8Dequantize":
            return "HiFloat8Dequantize", {}
    return f"BlockHadamard{given['block']}", {}


def _name_nodes(graph: Any, modules: dict[str, str]) -> None:
    """Every node `MODULE/OpType`: a module with weights by its original Wan name, any other by diffusers'."""
    counts: Counter[str] = Counter()
    for node in graph:
        name = "/".join(part for part in (_place_of(node, modules), node.op_type) if part)
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _place_of(node: Any, modules: dict[str, str]) -> str:
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    for path in reversed(scopes):
        if path in modules:
            return modules[path]
    # The last scope is the op's own name; `part` is the whole part.
    inside = str(scopes[-2]) if len(scopes) > 1 else ""
    return inside.removeprefix("part").removeprefix(".") if inside.startswith("part") else ""


def _strip(model: Any, ir_version: int) -> None:
    """Remove what the exporter says about itself: stack traces with absolute paths, private domains, comments."""
    graph = model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    graph.metadata_props.clear()
    model.metadata_props.clear()
    graph.doc_string, graph.name = None, "hfq"
    for domain in [name for name in model.opset_imports if name]:
        del model.opset_imports[domain]
    model.opset_imports[DOMAIN] = VERSION
    model.functions.clear()
    model.ir_version = ir_version
