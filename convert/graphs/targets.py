"""Which graphs to verify: those that an export left behind, or, where there is none, one made for the purpose."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.progress import Progress
from hfq.schema.errors import MissingPathError, UsageError

from .export import export_onnx, graph_paths
from .scope import Scope

__all__ = ["export_first_blocks", "exported_graphs"]

_BLOCK = re.compile(r"blocks\.([0-9]+)\.", re.ASCII)


def exported_graphs(path: str | os.PathLike[str]) -> list[Path]:
    """The graphs of an export to `path`: the file itself, or those of the timestep bins.

    Raises:
        MissingPathError: there is none, or one of several timestep bins is missing.
    """
    given = Path(path)
    known = graph_paths(given) if given.name else [given]  # a root and `.` have no names beside them
    found = [graph for graph in known if graph.exists() or graph.is_symlink()]
    absent = [graph for graph in known[1:] if graph not in found]
    if found and given not in found and absent:
        raise MissingPathError(
            "the graph of a timestep bin is missing", where=absent[0], todo="bring it back, or give the others by name"
        )
    if not found:
        todo = "make one: hfq export onnx DELTA --base MODEL -o FILE"
        raise MissingPathError("no such graph, nor one per timestep bin", where=path, todo=todo)
    return found


def export_first_blocks(
    delta: Delta, base: Checkpoint, folder: Path, role: str | None, progress: Progress
) -> list[Path]:
    """Export the first block with a quantized linear of every expert, or of one.

    Args:
        folder: where the graphs go.

    Raises:
        UsageError: no block is quantized.
        what `export_onnx` raises
    """
    made = []
    for name in delta.roles if role is None else [role]:
        blocks = [int(found[1]) for site in delta.quantized(name) if (found := _BLOCK.match(site))]
        if blocks:
            out, scope = folder / f"{name}.block{min(blocks)}.onnx", Scope("block", str(min(blocks)))
            done = export_onnx(delta, base, out, scope=scope, role=name, progress=progress)
            made += [graph.path for graph in done.graphs]
    if not made:
        raise UsageError("no block of this delta is quantized", todo="export a linear, and give its file to --onnx")
    return made
