"""What a recipe's stages may say: their defaults, what fits together, and which orders mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hfq.schema.errors import RecipeError, StageFormatError, StageOrderError

__all__ = [
    "NEEDS_CALIBRATION",
    "NEEDS_INPUTS",
    "STAGE_KINDS",
    "check_order",
    "check_stage_fields",
    "check_stages",
    "check_width",
    "with_stage_defaults",
]

_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "smooth": {
        # alpha, floors and clamp: facts gathered from ViDiT-Q (activation floor) and the challenge entries (clamp).
        "alpha": 0.5,
        "activation_floor": 1e-3,
        "weight_floor": 1e-8,
        "mask_min": 1e-4,
        "mask_max": 1e4,
    },
    # One scale group is mixed with itself alone: no other group gets a share of an outlier.
    "rotate": {"block": 64, "seed": 0},
    "outlier_columns": {"k": 64, "statistic": "max"},
    "lowrank": {"rank": 32},
    "gptq": {"damp": 0.05, "tokens": 4096, "inputs": "quantized", "group_scale": "dynamic"},
    # HiFloat4 has no code above the group's maximum, so that the search stays near 1.
    "clip": {"scope": "bin", "candidates": [1.15, 1.1, 1.05, 1.0, 0.95, 0.9], "rows": 1024},
}

STAGE_KINDS: Final = tuple(_DEFAULTS)
NEEDS_INPUTS: Final = frozenset({"gptq", "clip"})
NEEDS_CALIBRATION: Final = NEEDS_INPUTS | {"smooth", "outlier_columns"}

# A mask outside fp32's normal numbers would be flushed to zero by some devices and not by others.
_FP32_SMALLEST_NORMAL: Final = 2.0**-126
_FP32_LARGEST: Final = (2.0 - 2.0**-23) * 2.0**127

_CODES: Final = "gptq stores codes of the weight as the stages before it have left it; write gptq after {later}"
_LAST: Final = "clip searches with the quantized weight as it will run; write clip last"
_MIXED: Final = "a rotation mixes the channels, so that {what} after it finds none; write {later} before rotate"
_MASKED: Final = "the low-rank branch is taken from the {what} weight; write {later} before lowrank"

_REFUSED: Final[Mapping[tuple[str, str], str]] = {
    ("rotate", "smooth"): _MIXED.format(what="a channel mask", later="smooth"),
    ("rotate", "outlier_columns"): _MIXED.format(what="a choice of columns", later="outlier_columns"),
    ("lowrank", "smooth"): _MASKED.format(what="masked", later="smooth"),
    ("lowrank", "outlier_columns"): _MASKED.format(what="remaining", later="outlier_columns"),
    **{("gptq", later): _CODES.format(later=later) for later in ("smooth", "rotate", "outlier_columns", "lowrank")},
    **{("clip", later): _LAST for later in ("smooth", "rotate", "outlier_columns", "lowrank", "gptq")},
}
"""(earlier, later) -> why that order means nothing."""


def with_stage_defaults(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage with every option that has a default written out; candidates in falling order, each once."""
    kind = stage.get("kind")
    full = {**_DEFAULTS.get(kind, {}), **stage} if isinstance(kind, str) else dict(stage)
    candidates = full.get("candidates")
    if isinstance(candidates, list) and all(isinstance(item, int | float) for item in candidates):
        full["candidates"] = sorted(set(candidates), reverse=True)
    return full


def check_stage_fields(stage: Mapping[str, Any], where: str) -> None:
    """What a JSON Schema would say in words that nobody understands.

    Raises:
        RecipeError
    """
    kind = stage.get("kind")
    if kind not in STAGE_KINDS:
        raise RecipeError("unknown stage", where=where, expected=", ".join(STAGE_KINDS), found=kind)
    statistic = stage.get("statistic")
    if kind == "smooth" and ("percentile" in stage) != (statistic == "percentile"):
        raise RecipeError(
            'a percentile goes with statistic = "percentile" and with no other',
            where=where,
            found=f"statistic {statistic}, percentile {stage.get('percentile', 'absent')}",
        )
    if kind == "rotate" and stage["block"] not in (64, 128, 256):
        raise RecipeError("not a block of the Hadamard rotation", where=where, expected="64, 128 or 256",
                          found=stage["block"])  # fmt: skip
    if kind == "outlier_columns" and (not isinstance(stage["k"], int) or stage["k"] % 64 or stage["k"] <= 0):
        raise RecipeError("the remaining columns would not be whole groups", where=f"{where}: k",
                          expected="a multiple of 64", found=stage["k"])  # fmt: skip


def check_stages(document: Mapping[str, Any], where: str) -> None:
    """Check the stages of a recipe that its schema accepts: values, formats, and the order where it is known already.

    Raises:
        RecipeError: a range that is none.
        StageFormatError: a stage that the recipe's formats cannot do.
        StageOrderError
    """
    for index, stage in enumerate(document["stage"]):
        place = f"{where}: stage {index + 1} ({stage['kind']})"
        if stage["kind"] == "smooth":
            _check_mask_range(stage, place)
        if stage["kind"] == "clip" and stage["scope"] == "global" and "expert" in stage:
            raise RecipeError(
                "a global clip is one choice for both experts, and this stage is for one of them",
                where=place,
                todo='use scope = "expert", or remove `expert`',
            )
        operand = {"gptq": "weight", "clip": "activation"}.get(stage["kind"])
        if operand is not None and document[operand]["format"] != "hif4":
            why = "one value has no group to share a scale with" if operand == "weight" else "it has no group maximum"
            raise StageFormatError(
                f"this stage works on HiFloat4 {operand}s; {why}",
                where=place,
                expected=f'{operand} format "hif4"',
                found=document[operand]["format"],
                todo=f"remove the stage, or quantize {operand}s to hif4",
            )
    everywhere = [stage["kind"] for stage in document["stage"] if "match" not in stage and "expert" not in stage]
    check_order(everywhere, where)


def _check_mask_range(stage: Mapping[str, Any], where: str) -> None:
    low, high = stage["mask_min"], stage["mask_max"]
    if not _FP32_SMALLEST_NORMAL <= low < high <= _FP32_LARGEST:
        raise RecipeError(
            "mask_min and mask_max are no range of masks",
            where=where,
            expected=f"{_FP32_SMALLEST_NORMAL:.3g} <= mask_min < mask_max <= {_FP32_LARGEST:.3g}",
            found=f"{low:g} and {high:g}",
        )


def check_order(kinds: Sequence[str], where: str) -> None:
    """Check the stages that one linear goes through.

    Raises:
        StageOrderError: two of one kind, or an order that means nothing; the message gives the reason.
    """
    for later, kind in enumerate(kinds):
        for earlier in kinds[:later]:
            if earlier == kind:
                raise StageOrderError(
                    "two stages of one kind: the same stage twice for one linear",
                    where=f"{where}: {kind}",
                    todo="give each a `match` or an `expert` of its own",
                )
            reason = _REFUSED.get((earlier, kind))
            if reason is not None:
                raise StageOrderError(reason, where=where, found=f"{earlier}, then {kind}")


def check_width(stages: Sequence[Mapping[str, Any]], in_features: int, out_features: int, where: str) -> None:
    """Check that the stages of one linear fit its sizes.

    Raises:
        RecipeError: a block that does not divide the width, more columns than there are, a rank that is no low one.
    """
    width = in_features
    for stage in stages:
        kind = stage["kind"]
        if kind == "outlier_columns":
            if stage["k"] >= width:
                raise RecipeError(
                    "outlier_columns would keep every column",
                    where=where,
                    expected=f"k below {width}",
                    found=int(stage["k"]),
                    todo="give the stage a `match` that leaves this linear out, or a smaller k",
                )
            width -= int(stage["k"])
        elif kind == "rotate" and width % stage["block"]:
            raise RecipeError(
                "the rotation's block does not divide the width of this linear",
                where=where,
                expected=f"a divisor of {width}",
                found=int(stage["block"]),
                todo="choose a smaller block, or a `match` that leaves this linear out",
            )
        elif kind == "lowrank" and stage["rank"] >= min(width, out_features):
            raise RecipeError(
                "the rank is not low",
                where=where,
                expected=f"below {min(width, out_features)}",
                found=int(stage["rank"]),
            )
