"""Converting one site: its stages in order, its codes, its digest and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .architecture import Site
from .calibration import GroupStatistics
from .ops import Op
from .recipe import Recipe
from .restore import RestoredSite
from .site_error import measure_site
from .site_ops import SiteOps, read_ops
from .stages import STAGES, StageInput, StageResult
from .weights import QuantizedWeight, quantize_weight, site_digest

__all__ = ["ConvertedSite", "convert_site"]


@dataclass(frozen=True)
class ConvertedSite:
    """What a delta will say of a site.

    Attributes:
        ops: as in the delta; a clip still lacks its headroom.
        state: tensors to store, by local name.
        digest: of the restored site.
        error: result of `measure_site`.
        search: what the clip's headroom is chosen from, or None.
    """

    ops: list[dict[str, Any]]
    state: dict[str, Tensor]
    digest: str
    error: dict[str, Any]
    search: Mapping[str, Any] | None


def convert_site(
    site: Site,
    base: Tensor,
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    statistics: GroupStatistics | None,
    edges: tuple[float, float] | None,
    where: str,
) -> ConvertedSite:
    """Run the stages of one site.

    Args:
        base: BF16 [out_features, in_features], finite.
        stages: of this site, in order; their order has been checked.
        statistics: of the site's input, or None when no stage needs any.
        edges: of the expert's timestep bins.
        where: expert and site, for error messages.

    Raises:
        NonFiniteWeightError, CalibrationRangeError, HessianError
    """
    weight, chain = base, SiteOps(activation=recipe.activation)
    quantized: QuantizedWeight | None = None
    ops: list[dict[str, Any]] = []
    state: dict[str, Tensor] = {}
    search: Mapping[str, Any] | None = None
    for options in stages:
        if options["kind"] == "clip" and quantized is None:
            quantized = quantize_weight(weight, recipe.weight, where)
        given = StageInput(site, base, weight, chain.ops, quantized, statistics, edges, recipe, options, where)
        result = STAGES[options["kind"]](given)
        ops.append(dict(result.op))
        state.update(result.state)
        quantized, search = result.quantized or quantized, result.search or search
        for op in _new_ops(result, weight, where):
            op.bind(weight)
            weight = op.on_weight(weight)
            chain.ops.append(op)
    if quantized is None:
        quantized = quantize_weight(weight, recipe.weight, where)
    del weight
    ops.append({"op": "qdq", **recipe.activation})
    digest = site_digest(quantized, recipe.weight, state)
    inputs = None
    if statistics is not None and statistics.inputs and search is None:
        inputs = statistics.pooled_inputs()
    error = measure_site(base, RestoredSite(quantized, chain, digest), inputs)
    return ConvertedSite(ops, state, digest, error, search)


def _new_ops(result: StageResult, weight: Tensor, where: str) -> list[Op]:
    if result.op["op"] in ("codes", "clip"):
        return []
    sizes = (int(weight.shape[0]), int(weight.shape[1]))
    return read_ops([result.op, {"op": "qdq"}], result.state, sizes, where).ops
