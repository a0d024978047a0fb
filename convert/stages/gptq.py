"""`gptq`: weight codes chosen column by column against the covariance of the inputs (GPTQ, arXiv 2210.17323).

The Hessian is that of the kept input rows behind the ops of the stages before, quantized as they will run
(`inputs = "quantized"`) or not. Block and scale group are the same 64 columns; their scale is chosen from the weight as
it stands when the block starts (`group_scale = "dynamic"`) or is that of plain rounding ("static"). Columns are not
reordered: a permutation would break the groups.
"""

from __future__ import annotations

from hfq.convert.code_difference import CODING, encode_codes, encode_words
from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, quantize_columns
from hfq.convert.stages.stage import StageInput, StageResult, pooled_rows
from hfq.convert.threads import single_thread
from hfq.convert.weights import quantize_activation
from hfq.formats import hif4
from hfq.formats.errors import NonFiniteError
from hfq.schema.errors import NonFiniteWeightError

__all__ = ["gptq"]


def gptq(given: StageInput) -> StageResult:
    """State `codes` uint8 [bytes], and `scale` uint8 [bytes] for dynamic scales; `quantized` holds them unpacked.

    Raises:
        HessianError
        NonFiniteWeightError: weights so large that what corrects their errors is no fp32 number.
    """
    assert given.statistics is not None
    options, weight = given.options, given.recipe.weight
    profile, dynamic = str(weight["profile"]), options["group_scale"] == "dynamic"
    rows = given.activation(pooled_rows(given.statistics, int(options["tokens"])))
    if options["inputs"] == "quantized":
        rows = quantize_activation(rows, given.recipe.activation)
    plain = hif4.quantize(given.weight, profile=profile, scale_search=bool(weight["scale_search"]))
    rounder = Hif4Rounder(
        *given.weight.shape,
        profile=profile,
        scale_search=bool(weight["scale_search"]),
        words=None if dynamic else plain.scale,
    )
    with single_thread():
        factor = inverse_factor(hessian(rows), float(options["damp"]), given.where)
        del rows
        try:
            quantize_columns(given.weight, factor, rounder)
        except NonFiniteError as error:
            raise NonFiniteWeightError(
                "a weight so large that GPTQ's corrections are not finite",
                where=given.where,
                found=error,
                todo='keep this site (a route with to = "keep") or repair the checkpoint',
            ) from None
    del factor
    chosen = rounder.result()
    under = hif4.quantize_under(given.weight, chosen.scale, profile=profile) if dynamic else plain
    state = {"codes": encode_codes(chosen, under)}
    if dynamic:
        state["scale"] = encode_words(chosen.scale, plain.scale)
    op = {"op": "codes", "coding": CODING, "codes": "codes", "scale": "scale" if dynamic else None}
    return StageResult(op, state, quantized=chosen)
