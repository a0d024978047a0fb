"""`gptq`: weight codes chosen column by column against the covariance of the inputs (GPTQ, arXiv 2210.17323).

The Hessian is that of the kept input rows behind the ops of the stages before, quantized as they will run
(`inputs = "quantized"`) or not. Block and scale group are the same 64 columns; their scale is chosen from the weight as
it stands when the block starts (`group_scale = "dynamic"`) or is that of plain rounding ("static"). Columns are not
reordered: a permutation would break the groups.

Where few of the rows differ (`hfq.convert.few_rows`), a quarter of them is left out first: unless codes fitted to the
others do better on it than plain rounding, the linear is rounded plainly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from hfq.convert.code_difference import CODING, encode_codes, encode_words
from hfq.convert.few_rows import judge_rows
from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, quantize_columns
from hfq.convert.group_statistics import different_rows, row_numbers
from hfq.convert.stages.stage import StageInput, StageResult, pooled_rows
from hfq.convert.threads import single_thread
from hfq.convert.weights import quantize_activation
from hfq.formats import hif4
from hfq.formats.errors import NonFiniteError
from hfq.schema.errors import NonFiniteWeightError

__all__ = ["gptq"]

_PARTS: Final = 4
"""One of so many different rows is left out to try the codes on."""

_TRIED_OUTPUTS: Final = 64
"""Rows of the weight that are tried; each is rounded on its own."""


def gptq(given: StageInput) -> StageResult:
    """State `codes` uint8 [bytes], and `scale` uint8 [bytes] for dynamic scales; `quantized` holds them unpacked.
    Nothing but `rounded` where the rows are too few.

    Raises:
        TooFewRowsError, HessianError
        NonFiniteWeightError: weights so large that what corrects their errors is no fp32 number.
    """
    assert given.statistics is not None
    options, width = given.options, given.site.in_features
    kept, rows = given.statistics.kept_rows, pooled_rows(given.statistics, int(options["tokens"]))
    numbers = row_numbers(rows)
    different = different_rows(numbers)
    judged = judge_rows(different, kept, width, options, given.where, given.site.input_group)
    counted = f"gptq: {different} different input rows for {width} channels"
    if judged == "round":
        return StageResult(None, rounded=counted)
    with single_thread():
        if judged == "try" and not _beats_rounding(given, rows, numbers):
            return StageResult(None, rounded=f"{counted}: worse than rounding on rows left out")
        chosen = _codes(given, given.weight, rows)
    weight = given.recipe.weight
    profile, dynamic = str(weight["profile"]), options["group_scale"] == "dynamic"
    plain = _rounded(given, given.weight)
    under = hif4.quantize_under(given.weight, chosen.scale, profile=profile) if dynamic else plain
    state = {"codes": encode_codes(chosen, under)}
    if dynamic:
        state["scale"] = encode_words(chosen.scale, plain.scale)
    op = {"op": "codes", "coding": CODING, "codes": "codes", "scale": "scale" if dynamic else None}
    return StageResult(op, state, quantized=chosen)


def _rounded(given: StageInput, weight: Tensor) -> hif4.Hif4Tensor:
    options = given.recipe.weight
    return hif4.quantize(weight, profile=str(options["profile"]), scale_search=bool(options["scale_search"]))


def _codes(given: StageInput, weight: Tensor, rows: Tensor) -> hif4.Hif4Tensor:
    """GPTQ's codes of rows of the weight, [out, in_features'], for input rows BF16 [n, in_features].

    Raises:
        as `gptq`
    """
    assert given.statistics is not None
    options, formats = given.options, given.recipe.weight
    inputs = given.activation(rows)
    if options["inputs"] == "quantized":
        inputs = quantize_activation(inputs, given.recipe.activation)
    factor = inverse_factor(hessian(inputs), float(options["damp"]), given.where)
    del inputs
    # A channel that is silent in these rows alone is rounded; a column of zeros would lose what it carries.
    silent = ~given.carrying(given.statistics.channel_max() > 0)
    factor = replace(factor, dead=factor.dead & silent)
    rounder = Hif4Rounder(
        *weight.shape,
        profile=str(formats["profile"]),
        scale_search=bool(formats["scale_search"]),
        words=None if options["group_scale"] == "dynamic" else _rounded(given, weight).scale,
    )
    try:
        quantize_columns(weight, factor, rounder)
    except NonFiniteError as error:
        raise NonFiniteWeightError(
            "a weight so large that GPTQ's corrections are not finite",
            where=given.where,
            found=error,
            todo='keep this site (a route with to = "keep") or repair the checkpoint',
        ) from None
    return rounder.result()


def _beats_rounding(given: StageInput, rows: Tensor, numbers: Tensor) -> bool:
    """Whether codes that are fitted to three quarters of the different rows do better on the others than rounding.

    Args:
        rows: BF16 [n, in_features].
        numbers: int64 [n], equal for equal rows: all copies of a row are on one side.
    """
    left_out = numbers % _PARTS == _PARTS - 1
    if not bool(left_out.any()):
        return False
    height = given.weight.shape[0]
    count = min(_TRIED_OUTPUTS, height)
    weight = given.weight[torch.arange(count) * height // count]
    fitted = _codes(given, weight, rows[~left_out])
    inputs = given.activation(rows[left_out]).float()
    exact = inputs @ weight.float().T
    quantized = quantize_activation(inputs, given.recipe.activation).float()

    def error(codes: hif4.Hif4Tensor) -> float:
        return float((quantized @ codes.dequantize(torch.float32).T - exact).double().square_().sum())

    return error(fitted) < error(_rounded(given, weight))
