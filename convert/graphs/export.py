"""Exporting a delta on its base as an ONNX graph that any ONNX Runtime runs: the file, its weights, its origin."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.clip import BINS
from hfq.convert.delta import Delta
from hfq.convert.progress import Progress, Silent
from hfq.schema.atomic import publish_file
from hfq.schema.errors import OutputExistsError, UsageError
from hfq.schema.version import VERSION

from .functions import attach_functions
from .nodes import Finished, finish
from .origin import profile_of
from .payload import payload, quantized_sites
from .scope import Scope
from .trace import trace
from .weights_file import WeightsFile

__all__ = ["IR_VERSIONS", "Export", "ExportedGraph", "export_onnx", "graph_paths"]

IR_VERSIONS: Final = {18: 9, 23: 10}
"""Opset -> IR version: the oldest that holds it, so that old runtimes read the file."""

_EMBED_BYTES: Final = 1 << 30
"""A protobuf message ends at 2 GiB; weights up to here stay inside the file."""


@dataclass(frozen=True)
class ExportedGraph:
    """One file.

    Attributes:
        path: the .onnx file.
        bin: timestep bin, or None when it holds for all of them.
        size_bytes: of the file, without weights that lie beside it.
    """

    path: Path
    bin: int | None
    size_bytes: int


@dataclass
class Export:
    """What `export_onnx` made.

    Attributes:
        graphs: the files.
        data: the file of weights beside them, or None when they are inside.
        data_bytes: its size.
        role, scope: the part of the model.
        opset, ir_version: of the files.
        nodes: op type (of our domain as `ai.hfq::X`) -> number.
        sites: quantized linears.
        kept: linears in BF16.
        quantized_weights: number of weights in quantized linears.
        seconds: wall time: weights, trace (with writing the graphs), all.
    """

    role: str
    scope: Scope
    opset: int
    ir_version: int
    sites: int
    kept: int
    quantized_weights: int
    graphs: list[ExportedGraph] = field(default_factory=list)
    data: Path | None = None
    data_bytes: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "expert": self.role,
            "scope": str(self.scope),
            "opset": self.opset,
            "ir_version": self.ir_version,
            "quantized": self.sites,
            "kept": self.kept,
            "quantized_weights": self.quantized_weights,
            "graphs": [
                {"path": str(graph.path), "bin": graph.bin, "size_bytes": graph.size_bytes} for graph in self.graphs
            ],
            "data": None if self.data is None else str(self.data),
            "data_bytes": self.data_bytes,
            "nodes": self.nodes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def graph_paths(out: Path) -> list[Path]:
    """The graphs that an export to `out` can have made: itself, or one per timestep bin."""
    return [out, *(_bin_path(out, bin) for bin in range(BINS))]


def _bin_path(out: Path, bin: int) -> Path:
    return out.with_name(f"{out.stem}.bin{bin}{out.suffix}")


def export_onnx(
    delta: Delta,
    base: Checkpoint,
    out: str | os.PathLike[str],
    *,
    scope: Scope,
    role: str | None = None,
    bin: int | None = None,
    opset: int = 18,
    inline: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write a part of an expert as an ONNX graph in float32 with packed weights and the ops of domain `ai.hfq`.

    The ops are functions of standard ops inside the file, so that nothing needs to be installed beside a runtime.
    Weights up to 1 GiB are inside, others in `OUT.data`. Where headrooms differ from timestep bin to timestep bin there
    is one graph per bin, `NAME.bin0.onnx` to `NAME.bin2.onnx`, and all three share `OUT.data`.

    Args:
        out: the .onnx file to make.
        scope: a site, a block, or the whole transformer.
        role: expert; needed when the delta has two.
        bin: this timestep bin alone, as `out` itself; only where bins differ.
        opset: 18 (any ONNX Runtime from 1.18), or 23, which has an op for attention.
        inline: write the bodies of our ops into the graph: standard ops alone, and no op to verify by itself.

    Raises:
        OutputExistsError, UsageError: nothing was written.
        WrongBaseError, WrongRoleError, DigestMismatchError: the base is not the delta's.
        UnsupportedModelError, MissingDependencyError
    """
    path = Path(out)
    role = _checked_role(delta, base, role)
    architecture = base.experts[role].architecture
    scope.check(architecture)
    sites = quantized_sites(delta, role, scope)
    if scope.kind == "site" and not sites:
        reason = delta.routes[role][scope.name].reason
        raise UsageError(
            "this linear is kept, and has no graph of its own",
            where=f"{role} {scope.name}",
            found=f"the rule {reason!r}",
            todo="export its block with --block",
        )
    _check_output(path)
    if opset not in IR_VERSIONS:
        raise UsageError("not an opset that graphs are written in", expected="18 or 23", found=opset)
    tables = _clip_tables(delta, role, sites)
    bins = _bins(tables, bin)
    bar = progress or Silent()
    started = time.perf_counter()
    inside = [site for site in architecture.sites() if scope.holds(site.name)]
    done = Export(role, scope, opset, IR_VERSIONS[opset], len(sites), len(inside) - len(sites), 0)
    done.quantized_weights = sum(site.in_features * site.out_features for site in inside if site.name in set(sites))
    with _temporary(path.parent) as folder:
        # The weights first: they tell a wrong base, and tracing is the long part.
        weights = WeightsFile(folder / f"{path.name}.data")
        bar.start("weights", sum(scope.holds(name) for name in architecture.tensors()), "tensors")
        with weights:
            for name, tensor in payload(delta, base, role, scope, bar):
                weights.add(name, tensor)
        bar.finish()
        written = time.perf_counter()
        bar.note(f"tracing {role} {scope}; for a whole model this takes minutes")
        graph = finish(trace(delta, architecture, role, scope, opset), IR_VERSIONS[opset])
        weights.attach(graph.model.graph)
        external = weights.size_bytes > _EMBED_BYTES or len(bins) > 1
        made = _models(graph, external, _metadata(delta, role, scope, graph, tables), bins, inline)
        moves = []
        for index, model in zip(bins, made, strict=True):
            target = path if len(bins) == 1 else _bin_path(path, index or 0)
            (folder / target.name).write_bytes(model.SerializeToString(deterministic=True))
            moves.append((folder / target.name, target))
            done.graphs.append(ExportedGraph(target, index, (folder / target.name).stat().st_size))
            done.nodes = _count_nodes(model)
        if external:
            done.data, done.data_bytes = path.with_name(weights.path.name), weights.size_bytes
            moves.insert(0, (weights.path, done.data))
        _publish(moves)
    ended = time.perf_counter()
    done.seconds = {"weights": written - started, "trace": ended - written, "all": ended - started}
    return done


def _checked_role(delta: Delta, base: Checkpoint, role: str | None) -> str:
    if role is None:
        if len(delta.roles) > 1:
            raise UsageError(
                "the delta has two experts", expected=" or ".join(delta.roles), todo="say which with --expert"
            )
        role = delta.roles[0]
    if role not in delta.roles:
        raise UsageError("the delta has no such expert", expected=" or ".join(delta.roles), found=role)
    if role not in base.experts:
        raise UsageError("the base lacks this expert", expected=role, found=", ".join(base.experts))
    return role


def _check_output(path: Path) -> None:
    if path.suffix != ".onnx":
        raise UsageError("not a name for a graph", expected="a name that ends in .onnx", found=path)
    if not path.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=path.parent)
    for taken in (*graph_paths(path), path.with_name(f"{path.name}.data")):
        if taken.exists() or taken.is_symlink():
            raise OutputExistsError(
                "the output is already there", where=taken, todo="choose another name, or remove it"
            )


def _clip_tables(delta: Delta, role: str, sites: list[str]) -> list[Mapping[str, Any]]:
    """The clip ops of the sites."""
    return [op for site in sites for op in delta.site(role, site)["ops"] if op["op"] == "clip"]


def _bins(tables: list[Mapping[str, Any]], bin: int | None) -> list[int | None]:
    if all(len(set(table["headroom"])) == 1 for table in tables):
        if bin is not None:
            raise UsageError("this part is the same in every timestep bin", found=f"bin {bin}", todo="leave --bin out")
        return [None]
    if bin is not None and not 0 <= bin < BINS:
        raise UsageError("no such timestep bin", expected="0, 1 or 2", found=bin)
    return list(range(BINS)) if bin is None else [bin]


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder on the disk where the result will be; whatever is left in it goes away."""
    with tempfile.TemporaryDirectory(prefix=".hfq-export-", dir=parent) as folder:
        yield Path(folder)


def _publish(moves: list[tuple[Path, Path]]) -> None:
    """Give finished files their names, weights first: a graph that is there is whole.

    Raises:
        OutputExistsError: something of such a name has appeared; it is not replaced.
    """
    for source, _ in moves:
        with open(source, "rb") as file:
            os.fsync(file.fileno())
    for source, target in moves:
        publish_file(source, target)


def _metadata(
    delta: Delta, role: str, scope: Scope, graph: Finished, tables: list[Mapping[str, Any]]
) -> dict[str, str]:
    """Where the graph comes from, as a runtime shows it."""
    found = {
        "hfq.version": VERSION,
        "hfq.delta": delta.id,
        "hfq.recipe": delta.recipe.name,
        "hfq.base_root": delta.root(role),
        "hfq.role": role,
        "hfq.scope": str(scope),
        "hfq.profile": profile_of(delta),
        "hfq.sites": json.dumps(graph.sites, sort_keys=True, separators=(",", ":")),
    }
    if graph.by_bin:  # every table of an expert has the same edges, which reading the delta has checked
        found["hfq.edges"] = json.dumps(tables[0]["edges"])
    return found


def _models(
    graph: Finished, external: bool, metadata: dict[str, str], bins: list[int | None], inline: bool
) -> Iterator[Any]:
    """The finished protos, one per timestep bin."""
    import onnx
    import onnx.inliner
    import onnx_ir as ir

    if not external:
        ir.external_data.load_to_model(graph.model)
    proto = ir.serde.serialize_model(graph.model)
    proto.producer_name, proto.producer_version = "hfq", VERSION
    attach_functions(proto)
    for bin in bins:
        for node in proto.graph.node:
            if node.name in graph.headroom:
                table = graph.headroom[node.name]
                attribute = next(entry for entry in node.attribute if entry.name == "headroom")
                attribute.f = table[0 if bin is None or len(table) == 1 else bin]
        onnx.helper.set_model_props(proto, metadata if bin is None else {**metadata, "hfq.bin": str(bin)})
        yield onnx.inliner.inline_local_functions(proto) if inline else proto


def _count_nodes(model: Any) -> dict[str, int]:
    kinds = (f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return dict(sorted(Counter(kinds).items()))
