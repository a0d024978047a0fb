"""Converting one site: its stages in order, its codes, its digest and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .architecture import Site
from .calibration import GroupStatistics
from .plain_site import PlainSite
from .recipe import Recipe
from .restore import RestoredSite, sole_mask
from .site_error import measure_site, output_figures, weight_figures
from .site_ops import SiteOps, read_ops
from .stages import STAGES, StageInput, StageResult
from .weights import QuantizedWeight, quantize_weight, site_digest

__all__ = ["ConvertedSite", "convert_site", "plain_site"]


@dataclass(frozen=True)
class ConvertedSite:
    """What a delta will say of a site.

    Attributes:
        ops: as in the delta; a clip still lacks its headroom.
        state: tensors to store, by local name.
        digest: of the restored site.
        error: result of `measure_site`.
        search: what the clip's headroom is chosen from, or None.
        rounded: why `gptq` has left the weight to plain rounding, or None.
    """

    ops: list[dict[str, Any]]
    state: dict[str, Tensor]
    digest: str
    error: dict[str, Any]
    search: Mapping[str, Any] | None
    rounded: str | None = None


def convert_site(
    site: Site,
    base: Tensor,
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    statistics: GroupStatistics | None,
    sample: Tensor | None,
    edges: tuple[float, float] | None,
    where: str,
) -> ConvertedSite:
    """Run the stages of one site.

    Args:
        base: BF16 [out_features, in_features], finite.
        stages: of this site, in order; their order has been checked.
        statistics: of the site's input, or None when no stage needs any.
        sample: input rows that measure the output, BF16 [rows, in_features], or None.
        edges: of the expert's timestep bins.
        where: expert and site, for error messages.

    Raises:
        NonFiniteWeightError, CalibrationRangeError, TooFewRowsError, HessianError
    """
    chain = _Chain(base, SiteOps(activation=recipe.activation), recipe, where)
    quantized: QuantizedWeight | None = None
    ops: list[dict[str, Any]] = []
    state: dict[str, Tensor] = {}
    search: Mapping[str, Any] | None = None
    rounded: str | None = None
    for options in stages:
        if options["kind"] == "clip" and quantized is None:
            quantized = chain.quantize()
        weight = base if options["kind"] == "clip" else chain.weight  # a clip looks at the codes alone
        given = StageInput(site, base, weight, chain.ops.ops, quantized, statistics, edges, recipe, options, where)
        result = STAGES[options["kind"]](given)
        rounded = result.rounded or rounded
        if result.op is None:
            continue
        ops.append(dict(result.op))
        state.update(result.state)
        quantized, search = result.quantized or quantized, result.search or search
        del given, weight
        chain.add(result)
    if quantized is None:
        quantized = chain.quantize()
    chain.forget()
    ops.append({"op": "qdq", **recipe.activation})
    digest = site_digest(quantized, recipe.weight, state)
    # A clip is measured by its search.
    error = measure_site(base, RestoredSite(quantized, chain.ops, digest), sample if search is None else None)
    return ConvertedSite(ops, state, digest, error, search, rounded)


def plain_site(plain: PlainSite, activation: Mapping[str, Any], elements: int) -> ConvertedSite:
    """A site without stages whose rows have all been seen.

    Raises:
        NonFiniteWeightError
    """
    digest = plain.digest()
    error = weight_figures(plain.sums(), elements, plain.bits)
    if plain.output is not None:
        error |= output_figures(*plain.output.sums())
    return ConvertedSite([{"op": "qdq", **activation}], {}, digest, error, None)


class _Chain:
    """The ops of a site, and its weight as they leave it: computed when it is asked for, for a lone mask never."""

    def __init__(self, base: Tensor, ops: SiteOps, recipe: Recipe, where: str) -> None:
        self.ops = ops
        self._done, self._weight, self._recipe, self._where = 0, base, recipe, where

    @property
    def weight(self) -> Tensor:
        """BF16 without ops, else fp32, [out_features, in_features']."""
        for op in self.ops.ops[self._done :]:
            op.bind(self._weight)
            self._weight = op.on_weight(self._weight)
        self._done = len(self.ops.ops)
        return self._weight

    def add(self, result: StageResult) -> None:
        """Append what a stage leaves."""
        if result.op is None or result.op["op"] in ("codes", "clip"):
            return
        height = int(self._weight.shape[0])
        width = int(self.weight.shape[1]) if self.ops.ops else int(self._weight.shape[1])
        built = read_ops([result.op, {"op": "qdq"}], result.state, (height, width), self._where).ops
        self.ops.ops += built

    def quantize(self) -> QuantizedWeight:
        """Plain rounding of the weight."""
        mask = sole_mask(self.ops.ops) if self._done == 0 else None
        if mask is not None:
            return quantize_weight(self._weight, self._recipe.weight, self._where, divisor=mask)
        return quantize_weight(self.weight, self._recipe.weight, self._where)

    def forget(self) -> None:
        """Let the weight go; ops that keep a part of it have taken it."""
        if self.ops.ops and sole_mask(self.ops.ops) is None:
            _ = self.weight
        self._weight = self._weight[:0]
