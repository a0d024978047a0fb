"""Whether `gptq` has seen enough: how many different input rows it is given, and what a recipe does with too few.

Equal rows say nothing new: text inputs repeat at every step, so that a thousand kept rows of `cross_attn.k` may be a
dozen different ones. With fewer different rows than an eighth of the width the Hessian is mostly damping; with fewer
than twice the width GPTQ may fit its codes to the rows that it happens to see, and do worse than plain rounding on
others (`benchmarks/few_rows.py` measures both). So the first are rounded, and the second are tried on rows left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from hfq.schema.errors import TooFewRowsError

__all__ = ["FEW_ROWS", "Judgement", "judge_rows"]

FEW_ROWS: Final = ("round", "refuse", "warn")
"""Values of a gptq stage's `few_rows`; without it a calibration that kept too few rows is refused, and one that kept
enough of which too few differ is rounded."""

Judgement = Literal["enough", "try", "round"]
"""Use GPTQ; try it on rows left out and use it where it is better than rounding; round plainly."""

_LEAST: Final = 8
_TRIED: Final = 2


def judge_rows(different: int, kept: int, width: int, stage: Mapping[str, Any], where: str, group: str) -> Judgement:
    """What becomes of one linear's gptq stage.

    Args:
        different: rows that gptq would see and that differ from each other and from zero.
        kept: rows that the calibration kept of the linear's input.
        width: in_features.
        stage: the stage's table in the recipe, normalised.
        where, group: the linear, and calibration and input group, for messages.

    Raises:
        TooFewRowsError: the recipe refuses.
    """
    chosen = stage.get("few_rows")
    seen, least = min(kept, int(stage["tokens"])), -(-width // _LEAST)
    if chosen == "warn":
        return "enough" if different else "round"
    if chosen != "round" and kept >= least > seen:
        raise TooFewRowsError(
            "the recipe lets gptq see too few of the kept input rows",
            where=f"{where}: tokens",
            expected=f"at least {least}",
            found=seen,
            todo="raise `tokens` of the stage",
        )
    if chosen != "round" and seen < least:
        raise TooFewRowsError(
            "the calibration kept too few input rows for gptq",
            where=group,
            expected=f"at least {least}",
            found=seen,
            todo="calibrate with --keep-inputs 1024 (rows per timestep bin) and more prompts",
        )
    if chosen == "refuse" and different < least:
        raise TooFewRowsError(
            "too few of the kept input rows differ for gptq",
            where=group,
            expected=f"at least {least} different rows",
            found=f"{different} of {seen}",
            todo='calibrate more prompts, or write few_rows = "round" in the stage',
        )
    if different < least:
        return "round"
    return "try" if different < _TRIED * width else "enough"
