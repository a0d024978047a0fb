"""The first level: the graph is of this delta, this base, this expert, and is built as an export builds it."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

import onnx

from hfq.convert.architecture import Architecture
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.schema.errors import HfqError

from .levels import Level
from .onnx_file import OnnxFile
from .origin import Origin, profile_of
from .payload import quantized_sites
from .scope import Axis, graph_inputs
from .site_nodes import SiteNodes, locate_sites

__all__ = ["check_origin"]

_BIN_IN_NAME: Final = re.compile(r"\.bin([0-2])\.onnx", re.ASCII)


def check_origin(
    file: OnnxFile, origin: Origin, delta: Delta, base: Checkpoint, role: str | None
) -> tuple[Level, dict[str, SiteNodes]]:
    """Compare what the graph says of itself with the delta and the base, and find its sites.

    Args:
        role: the expert it should be of; None for whichever it names.

    Returns:
        the level `file`, and the sites; without all of them when it failed.
    """
    level = Level("file", _figures(file))
    for key, expected, found in (
        ("hfq.delta", delta.id, origin.delta),
        ("hfq.role", role or origin.role, origin.role),
        ("hfq.recipe", delta.recipe.name, origin.recipe),
        ("hfq.profile", profile_of(delta), origin.profile),
    ):
        if expected != found:
            level.fail(key, f"the graph is of another {key.removeprefix('hfq.')}", expected, found)
    if origin.role not in delta.roles or origin.role not in base.experts:
        experts = ", ".join(name for name in delta.roles if name in base.experts)
        level.fail("hfq.role", "the delta on this base has no such expert", experts, origin.role)
    elif delta.root(origin.role) != origin.base_root:
        level.fail("hfq.base_root", "the graph is of another base", delta.root(origin.role), origin.base_root)
    else:
        _check_bin(file, origin, delta, level)
    if level.failures:
        return level, {}
    architecture = base.experts[origin.role].architecture
    try:
        origin.scope.check(architecture)
    except HfqError as error:
        level.fail("hfq.scope", error.what, error.expected, error.found)
        return level, {}
    _check_interface(file, architecture, origin, level)
    _check_site_names(delta, origin, level)
    sites = {} if level.failures else locate_sites(file, origin, level)
    return level, sites


def _check_bin(file: OnnxFile, origin: Origin, delta: Delta, level: Level) -> None:
    """What a user chooses a graph by: the timestep bin in its name, and the edges between the bins."""
    if origin.bin is None:
        return
    named = _BIN_IN_NAME.search(file.path.name)
    if named is not None and int(named[1]) != origin.bin:
        level.fail("hfq.bin", "the file is named as another timestep bin's", f".bin{origin.bin}.onnx", named[0])
    ops = (op for site in delta.quantized(origin.role) for op in delta.site(origin.role, site)["ops"])
    edges = next((json.dumps(op["edges"]) for op in ops if op["op"] == "clip"), None)
    if file.metadata.get("hfq.edges") != edges:
        level.fail("hfq.edges", "other edges of the timestep bins", edges, file.metadata.get("hfq.edges"))


def _figures(file: OnnxFile) -> dict[str, Any]:
    nodes = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in file.model.graph.node)
    return {
        "size_bytes": file.size_bytes,
        "data_bytes": file.data_bytes,
        "nodes": dict(sorted(nodes.items())),
        "functions": {function.name: len(function.node) for function in file.model.functions},
        "initializers": len(file.initializers),
    }


def _check_interface(file: OnnxFile, architecture: Architecture, origin: Origin, level: Level) -> None:
    expected = {entry.name: [_axis(axis) for axis in entry.axes] for entry in graph_inputs(architecture, origin.scope)}
    found = {entry.name: _extents(entry) for entry in file.model.graph.input}
    if list(found) != list(expected):
        level.fail("inputs", "not the inputs of this part of a model", ", ".join(expected), ", ".join(found))
        return
    for name, axes in expected.items():
        extents = found[name]
        same = extents is not None and len(extents) == len(axes)
        if not same or any(have != want for have, want in zip(extents or [], axes, strict=False)):
            level.fail(name, "an input of another type or shape", f"float32 {axes}", extents)
    outputs = [entry.name for entry in file.model.graph.output]
    if outputs != ["y"]:
        level.fail("outputs", "not the output of this part of a model", "y", ", ".join(outputs))


def _axis(axis: int | Axis) -> int | str:
    return axis if isinstance(axis, int) else "any"


def _extents(entry: onnx.ValueInfoProto) -> list[int | str] | None:
    tensor = entry.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        return None
    return [axis.dim_value if axis.HasField("dim_value") else "any" for axis in tensor.shape.dim]


def _check_site_names(delta: Delta, origin: Origin, level: Level) -> None:
    expected = set(quantized_sites(delta, origin.role, origin.scope))
    for site in sorted(expected - set(origin.sites)):
        level.fail(site, "the delta quantizes this linear, the graph does not")
    for site in sorted(set(origin.sites) - expected):
        level.fail(site, "the graph quantizes this linear, the delta does not")
