"""Running a graph with the inner values of its sites exposed, some sites at a time, and showing them to the levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx
import torch
from torch import Tensor

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.progress import Progress

from .domain import DOMAIN
from .in_situ import InSitu
from .levels import Level
from .linear_level import LinearLevel
from .onnx_file import OnnxFile
from .origin import Origin
from .running import RunningGraph
from .site_nodes import SiteNodes
from .site_reference import ReferenceSite

__all__ = ["Flips", "check_sites", "most_rows"]

_EXPOSED_BYTES: Final = 1_000_000_000
"""Exposed values of one run; a site alone may need more."""


class Flips:
    """Counts elements of quantized inputs that differ between torch and the runtime, each with its own upstream.

    Args:
        expected: for each input of the graph, site -> what torch multiplies, BF16.
    """

    def __init__(self, expected: Sequence[Mapping[str, Tensor]]) -> None:
        self._expected = expected
        self.counts: dict[str, int] = {}
        self.elements = 0

    def see(self, site: str, index: int, found: Tensor) -> None:
        """What the runtime multiplies, float32, for one input of the graph."""
        expected = self._expected[index].get(site) if index < len(self._expected) else None
        if expected is None or expected.shape != found.shape:
            return
        self.elements += found.numel()
        self.counts[site] = self.counts.get(site, 0) + int((expected.float() != found).sum())


@dataclass
class _Part:
    """Nodes of our domain that are looked at together: those of a site, or one that belongs to none."""

    site: SiteNodes | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def values(self, file: OnnxFile) -> list[str]:
        """Names of the values that this needs from a run."""
        names = [name for node in self.nodes for name in (*node.input, *node.output) if name not in file.initializers]
        if self.site is not None:
            places = self.site.places
            names += [places.input, places.qdq, places.product, places.output]
            # A quantizer that sites share is looked at with one of them, and the way to it with each.
            names += [name for name in self.site.quantizer.input[:1] if self.site.quantizer.domain == DOMAIN]
        return list(dict.fromkeys(names))


def check_sites(
    file: OnnxFile,
    origin: Origin,
    sites: Mapping[str, SiteNodes],
    delta: Delta,
    base: Checkpoint,
    graph: RunningGraph,
    inputs: Sequence[Mapping[str, Tensor]],
    flips: Flips,
    progress: Progress,
) -> tuple[Level, Level]:
    """The levels `in_situ` and `linear`, over all inputs; flips are counted on the way.

    Raises:
        DigestMismatchError: the base is not the delta's.
        GraphRunError
    """
    in_situ, linear = InSitu(), LinearLevel()
    in_situ.level.figures["inputs"] = len(inputs)
    parts = _parts(file, sites)
    rows = max((most_rows(given) for given in inputs), default=0)
    progress.start("in situ", len(parts), "sites")
    try:
        for batch in _batches(parts, lambda part: _bytes(part, file, rows)):
            exposed = [name for part in batch for name in part.values(file)]
            references = {
                part.site.site: ReferenceSite(delta, base, origin.role, part.site.site, origin.bin)
                for part in batch
                if part.site is not None
            }
            for index, given in enumerate(inputs):
                values = graph.run(given, exposed)
                for part in batch:
                    _see(part, file, values, in_situ, linear, references, flips, index)
            progress.advance(len(batch))
    finally:
        progress.finish()
        graph.close()
    return in_situ.level, linear.level


def _see(
    part: _Part,
    file: OnnxFile,
    values: Mapping[str, Tensor],
    in_situ: InSitu,
    linear: LinearLevel,
    references: Mapping[str, ReferenceSite],
    flips: Flips,
    index: int,
) -> None:
    for node in part.nodes:
        if index and all(name in file.initializers for name in node.input):
            continue  # a weight decodes to the same whatever the input
        given = [values[name] if name in values else file.read(name) for name in node.input]
        in_situ.see_node(node, given, values[node.output[0]])
    if part.site is not None:
        reference = references[part.site.site]
        in_situ.see_site(part.site, reference, values)
        linear.see(part.site, reference, values)
        flips.see(part.site.site, index, values[part.site.places.qdq])


def _parts(file: OnnxFile, sites: Mapping[str, SiteNodes]) -> list[_Part]:
    """Every node of our domain once: with the site whose quantizer or decoder it is or whose name it bears."""
    parts = {site: _Part(nodes) for site, nodes in sites.items()}
    own: dict[str, str] = {}
    for site, nodes in sites.items():
        for node in (nodes.quantizer, nodes.decoder):
            if node is not None:
                own.setdefault(node.output[0], site)
    others = []
    for node in file.model.graph.node:
        if node.domain != DOMAIN:
            continue
        site = own.get(node.output[0], node.name.rpartition("/")[0])
        if site in parts:
            parts[site].nodes.append(node)
        else:
            others.append(_Part(None, [node]))
    return [*parts.values(), *others]


def _batches(parts: Sequence[_Part], size: Callable[[_Part], int]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    total = 0
    for part in parts:
        bytes_ = size(part)
        if batch and total + bytes_ > _EXPOSED_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += bytes_
    if batch:
        yield batch


def most_rows(inputs: Mapping[str, Tensor]) -> int:
    """The most rows that any linear inside a graph can have; patches and channels only make them fewer."""
    return max((math.prod(x.shape[:-1]) * (x.shape[-1] if x.ndim == 5 else 1) for x in inputs.values()), default=0)


def _bytes(part: _Part, file: OnnxFile, rows: int) -> int:
    """About what a part's exposed values take: four of the input's width, two of the output's, the decoded weight."""
    if part.site is None:
        return 0
    codes = file.initializers.get(f"{part.site.site}.w_codes")
    if codes is None:
        return 0
    out_features, width = int(codes.dims[0]), 2 * int(codes.dims[1])
    return torch.float32.itemsize * (rows * (4 * width + 2 * out_features) + out_features * width)
