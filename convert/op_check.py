"""Whether the ops that a delta lists for its sites follow from its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfq.schema.errors import InconsistentDeltaError

from .clip import Clip
from .code_difference import CODING
from .ops import ColumnsOp, LowRankOp
from .recipe import Recipe
from .site_ops import SiteOps

__all__ = ["ClipCheck", "check_ops", "check_sizes"]


def _follows(stage: Mapping[str, Any], op: Mapping[str, Any]) -> dict[str, Any]:
    """The op that a stage leaves; what the stage has measured is taken from the op found."""
    match stage["kind"]:
        case "smooth":
            return {"op": "mask", "tensor": "mask"}
        case "outlier_columns":
            return {"op": "columns", "tensor": "columns"}
        case "rotate":
            return {"op": "rotate", "block": int(stage["block"]), "seed": int(stage["seed"])}
        case "lowrank":
            return {"op": "lowrank", "down": "lowrank_down", "up": "lowrank_up"}
        case "gptq":
            scale = "scale" if stage["group_scale"] == "dynamic" else None
            return {"op": "codes", "coding": CODING, "codes": "codes", "scale": scale}
        case _:
            return {"op": "clip", "edges": op.get("edges"), "headroom": op.get("headroom")}


def check_ops(
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    ops: Sequence[Mapping[str, Any]],
    rounded: str | None,
    where: str,
) -> None:
    """Compare a site's ops with the stages that it goes through.

    Args:
        rounded: why the site has no codes although the recipe chooses some; None where it has.

    Raises:
        InconsistentDeltaError
    """
    if rounded is not None:
        left = [stage for stage in stages if stage["kind"] != "gptq"]
        if len(left) == len(stages):
            raise InconsistentDeltaError("a reason to do without gptq, which the recipe does not ask for", where=where)
        stages = left
    found = [*ops, *[{}] * (len(stages) + 1 - len(ops))]
    wanted = [_follows(stage, op) for stage, op in zip(stages, found, strict=False)]
    wanted.append({"op": "qdq", **recipe.activation})
    if list(ops) != wanted:
        raise InconsistentDeltaError("ops that do not follow from the recipe", where=where, expected=wanted, found=ops)


def check_sizes(stages: Sequence[Mapping[str, Any]], ops: SiteOps, where: str) -> None:
    """Compare what a site's tensors hold with the numbers of its stages.

    Raises:
        InconsistentDeltaError
    """
    numbers = {stage["kind"]: stage for stage in stages}
    for op in ops.ops:
        if isinstance(op, ColumnsOp):
            kind, field, found = "outlier_columns", "k", len(op.columns)
        elif isinstance(op, LowRankOp):
            kind, field, found = "lowrank", "rank", int(op.down.shape[0])
        else:
            continue
        if found != numbers[kind][field]:
            raise InconsistentDeltaError(
                f"not the {field} of the recipe", where=where, expected=int(numbers[kind][field]), found=found
            )


class ClipCheck:
    """Compares the clips of all sites with each other and with the recipe's stages."""

    def __init__(self) -> None:
        self._edges: dict[str, tuple[float, float]] = {}
        self._shared: dict[str, float] = {}

    def see(self, role: str, site: str, stages: Sequence[Mapping[str, Any]], clip: Clip | None, where: str) -> None:
        """Check one site.

        Raises:
            InconsistentDeltaError: edges that differ within an expert, a headroom that is no candidate, or headrooms
                that differ where the scope has one.
        """
        stage = next((stage for stage in stages if stage["kind"] == "clip"), None)
        if clip is None or stage is None:
            return
        edges = self._edges.setdefault(role, clip.edges)
        if clip.edges != edges:
            raise InconsistentDeltaError(
                "other timestep edges than elsewhere in this expert", where=where, expected=edges, found=clip.edges
            )
        for headroom in clip.headroom:
            if headroom not in stage["candidates"]:
                raise InconsistentDeltaError(
                    "a headroom that is no candidate", where=where, expected=stage["candidates"], found=headroom
                )
        one = clip.headroom[0]
        if stage["scope"] == "global":
            one = self._shared.setdefault(site, one)
        if stage["scope"] != "bin" and set(clip.headroom) != {one}:
            raise InconsistentDeltaError(
                f"headrooms that differ under scope {stage['scope']}", where=where, expected=one, found=clip.headroom
            )
