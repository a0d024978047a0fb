"""Whether `gptq` has seen enough: how many different input rows it is given, and what a recipe does with too few.

Equal rows say nothing new: text inputs repeat at every step, so that a thousand kept rows of `cross_attn.k` may be a
dozen different ones. From few different rows GPTQ fits its codes to what it happens to see, and may do worse than plain
rounding on other inputs. How few is too few depends on the inputs (`benchmarks/few_rows.py` measures it): below half of
the width some linears lose, and others gain whatever the number. So rows are left out, and the codes are tried on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from hfq.schema.errors import TooFewRowsError

__all__ = ["Judgement", "judge_rows"]

Judgement = Literal["enough", "try", "round"]
"""Use GPTQ; try it on rows left out and use it where it is better than rounding; round plainly."""

_KEPT: Final = 8
"""A calibration that kept fewer rows than this part of the width is refused: more can be had."""

_FEW: Final = 2
"""Different rows are few below this part of the width."""

_TRIED: Final = 2
"""Up to so many times the width, the codes are tried."""

_LEAST_TRIED: Final = 8
"""Different rows without which nothing can be left out."""


def judge_rows(different: int, kept: int, width: int, stage: Mapping[str, Any], where: str, group: str) -> Judgement:
    """What becomes of one linear's gptq stage.

    Args:
        different: rows that gptq would see and that differ from each other and from zero.
        kept: rows that the calibration kept of the linear's input.
        width: in_features.
        stage: the stage's table in the recipe, normalised. Its `few_rows` decides about few different rows: "round",
            "refuse" or "warn" (use them); without it they are tried.
        where, group: the linear, and calibration and input group, for messages.

    Raises:
        TooFewRowsError: the recipe refuses, or the calibration or the recipe's `tokens` leave too few rows.
    """
    chosen = stage.get("few_rows")
    if chosen == "warn":
        return "enough" if different else "round"
    few = different < -(-width // _FEW)
    if chosen == "round" and few:
        return "round"
    _check_kept(kept, width, int(stage["tokens"]), where, group)
    if chosen == "refuse" and few:
        raise TooFewRowsError(
            "too few of the kept input rows differ for gptq",
            where=group,
            expected=f"at least {-(-width // _FEW)} different rows",
            found=f"{different} of {min(kept, int(stage['tokens']))}",
            todo='calibrate more prompts, or write few_rows = "round" in the stage',
        )
    if different >= _TRIED * width:
        return "enough"
    return "try" if different >= _LEAST_TRIED else "round"


def _check_kept(kept: int, width: int, tokens: int, where: str, group: str) -> None:
    """Raises TooFewRowsError."""
    seen, least = min(kept, tokens), -(-width // _KEPT)
    if kept >= least > seen:
        raise TooFewRowsError(
            "the recipe lets gptq see too few of the kept input rows",
            where=f"{where}: tokens",
            expected=f"at least {least}",
            found=seen,
            todo="raise `tokens` of the stage",
        )
    if seen < least:
        raise TooFewRowsError(
            "the calibration kept too few input rows for gptq",
            where=group,
            expected=f"at least {least}",
            found=seen,
            todo="calibrate with --keep-inputs 1024 (rows per timestep bin) and more prompts",
        )
