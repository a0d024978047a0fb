"""HiFloat4 in torch operations, on any device.

The vectorised twin of `hif4_reference`: every product is one fp32 multiplication in a kernel of its own, every other
step is exact, and no step adds two inexact numbers in fp32. Steps are numbered as in `hif4`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ._operand import Operand, round_bits_to_bf16
from ._tiles import (
    INFINITY_BITS,
    MAGNITUDE_BITS,
    NEGATIVE_ZERO,
    bits_of,
    float_of,
    groups_of,
    power_of_two,
    tiles,
    ungrouped,
)
from .errors import MalformedTensorError
from .hif4_bytes import (
    E6M2_TO_FP32,
    flag_words,
    pack_codes,
    pack_scale,
    scale_values,
    unpack_scale,
)
from .hif4_spec import (
    CODE_BYTES,
    E6M2_BIAS,
    E6M2_MAX,
    E6M2_NAN,
    GROUP,
    LV2_FLAGS,
    LV2_THRESHOLD,
    LV3_FLAGS,
    LV3_SPAN,
    LV3_THRESHOLD,
    MAX_QUARTERS,
    ONE_SEVENTH,
    RECIPROCAL_MANTISSAS,
    SCALE_MAX,
    SCALE_MIN,
    SEARCH_OFFSETS,
    Profile,
    Rules,
)

__all__ = ["element_factors", "encode", "encode_under", "qdq", "reciprocals", "round_quarters", "scale_fields"]


def encode(operand: Operand, rules: Rules, codes: Tensor, words: Tensor, scale_search: bool) -> None:
    """Codes uint8 [rows, 32 groups] and scale words int32 [rows, groups] of an operand.

    Raises:
        NonFiniteError: see `hif4.quantize`.
    """
    matrix = operand.matrix
    for r, c in tiles(matrix, multiple=GROUP):
        if rules.nonfinite == "refuse":
            operand.refuse_non_finite(matrix, r, c)
        group = _Groups(groups_of(operand.tile(matrix, r, c), GROUP), rules)
        scale = group.best_scale() if scale_search else group.scale
        lv2, lv3, quarters = group.encode(scale)
        packed = pack_codes(group.signed_codes(quarters))
        word = pack_scale(group.e6m2(scale), flag_words(lv2), flag_words(lv3)).view(torch.int32)
        height, left, right = r.stop - r.start, c.start // GROUP, -(-c.stop // GROUP)
        codes[r, left * CODE_BYTES : right * CODE_BYTES] = packed.view(height, -1)
        words[r, left:right] = word.view(height, -1)


def encode_under(operand: Operand, rules: Rules, codes: Tensor, words: Tensor) -> None:
    """Codes uint8 [rows, 32 groups] of an operand under scale words int32 [rows, groups].

    Raises:
        NonFiniteError: NaN or infinity.
        MalformedTensorError: a word that is NaN.
    """
    matrix = operand.matrix
    for r, c in tiles(matrix, multiple=GROUP):
        operand.refuse_non_finite(matrix, r, c)
        group = _Groups(groups_of(operand.tile(matrix, r, c), GROUP), rules)
        left, right = c.start // GROUP, -(-c.stop // GROUP)
        e6m2, increments = scale_fields(words[r, left:right].reshape(-1))
        packed = pack_codes(group.signed_codes(group.quarters(e6m2, increments)))
        codes[r, left * CODE_BYTES : right * CODE_BYTES] = packed.view(r.stop - r.start, -1)


def qdq(operand: Operand, rules: Rules, out: Tensor) -> None:
    """The values of an operand's codes, into `out` [rows, K].

    Raises:
        NonFiniteError: see `hif4.qdq`.
    """
    matrix = operand.matrix
    for r, c in tiles(matrix, multiple=GROUP):
        if rules.nonfinite == "refuse":
            operand.refuse_non_finite(matrix, r, c)
        group = _Groups(groups_of(operand.tile(matrix, r, c), GROUP), rules)
        lv2, lv3, quarters = group.encode(group.scale)
        values = group.decode(group.e6m2(group.scale), lv2, lv3, quarters)
        out[r, c] = ungrouped(torch.copysign(values, float_of(group.bits)), matrix[r, c])


def scale_fields(words: Tensor) -> tuple[Tensor, Tensor]:
    """E6M2 codes int32 [g] and lv2 + lv3 int32 [g, 16] of scale words int32 [g].

    Raises:
        MalformedTensorError: a word that is NaN.
    """
    e6m2, lv2, lv3 = unpack_scale(words.contiguous().view(torch.uint32))
    if bool((e6m2 == E6M2_NAN).any()):
        raise MalformedTensorError("a scale word that is NaN", expected="E6M2 00..FE", found="FF")
    k = torch.arange(LV3_FLAGS, dtype=torch.int32, device=words.device)
    above = (lv2.unsqueeze(-1) >> (k // (LV3_FLAGS // LV2_FLAGS))) & 1
    return e6m2, above + ((lv3.unsqueeze(-1) >> k) & 1)


class _Groups:
    """One tile on its way through the conversion: contiguous groups [g, 64] and what all scales share."""

    def __init__(self, x: Tensor, rules: Rules) -> None:
        """Steps 1-4. Maxima are taken of integer patterns: they order like the magnitudes, with NaN on top."""
        self.rules = rules
        self.bits = bits_of(x).masked_fill(bits_of(x) == NEGATIVE_ZERO, 0)  # -0 < 0 is false
        magnitudes = self.bits & MAGNITUDE_BITS
        fours = magnitudes.view(-1, LV3_FLAGS, LV3_SPAN)
        v16 = torch.maximum(torch.maximum(fours[..., 0], fours[..., 1]), torch.maximum(fours[..., 2], fours[..., 3]))
        v8 = torch.maximum(v16[:, 0::2], v16[:, 1::2])
        vmax = v8.amax(-1)
        self.nan = vmax >= INFINITY_BITS if rules.nonfinite == "nan-group" else vmax > INFINITY_BITS
        self.magnitudes, self.v8, self.v16 = float_of(magnitudes), float_of(v8), float_of(v16)
        self.scale = _scale_codes(float_of(vmax.masked_fill(self.nan, 0)), rules.headroom)

    def encode(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps 5-9 for E6M2 codes int32 [g]: flags bool [g, 8] and [g, 16], quarters fp32 [g, 64] in 0..7."""
        profile = self.rules.profile
        reciprocal = reciprocals(scale.device).index_select(0, scale).unsqueeze(-1)
        tested8, tested16 = self.v8 * reciprocal, self.v16 * reciprocal
        if profile.tests_in_bf16:
            tested8, tested16 = round_to_bf16(tested8), round_to_bf16(tested16)
        alive = ~self.nan.unsqueeze(-1)
        lv2 = (tested8 >= LV2_THRESHOLD) & alive
        above = lv2.repeat_interleave(LV3_FLAGS // LV2_FLAGS, dim=-1)
        lv3 = (tested16 >= LV3_THRESHOLD + LV3_THRESHOLD * above.to(torch.float32)) & alive
        increments = above.to(torch.int32) + lv3.to(torch.int32)
        return lv2, lv3, self.quarters(scale, increments)

    def quarters(self, scale: Tensor, increments: Tensor) -> Tensor:
        """Steps 8-9 for E6M2 codes int32 [g] and lv2 + lv3 int32 [g, 16]: fp32 [g, 64] in 0..7."""
        factor = element_factors(scale.unsqueeze(-1), increments, self.rules.profile)
        scaled = (self.magnitudes.view(-1, LV3_FLAGS, LV3_SPAN) * factor.unsqueeze(-1)).view(-1, GROUP)
        return round_quarters(scaled, self.rules.profile)

    def best_scale(self) -> Tensor:
        """The E6M2 codes int32 [g] of the smallest squared error; ties go to the first of SEARCH_OFFSETS."""
        best = self.scale.clone()
        best_error = torch.full(best.shape, torch.inf, dtype=torch.float64, device=best.device)
        for offset in SEARCH_OFFSETS:
            # Beyond either end the clamp repeats a code tried before, which cannot be better than itself.
            candidate = (self.scale + offset).clamp_(0, E6M2_MAX)
            values = self.decode(candidate, *self.encode(candidate))
            error = self._squared_error(values)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, candidate, best)
        return best

    def _squared_error(self, values: Tensor) -> Tensor:
        """Sum of (x - value)^2 per group, binary64, in index order: [g, 64] -> [g]. Signs agree, magnitudes serve."""
        difference = (self.magnitudes.to(torch.float64) - values).t().contiguous()
        difference.mul_(difference)
        total = difference[0].clone()
        for i in range(1, GROUP):
            total += difference[i]
        return total

    def decode(self, e6m2: Tensor, lv2: Tensor, lv3: Tensor, quarters: Tensor) -> Tensor:
        """Magnitudes fp32 [g, 64], exact: E6M2 * 2^(lv2 + lv3) * quarters / 4."""
        increments = lv2.repeat_interleave(LV3_FLAGS // LV2_FLAGS, dim=-1).to(torch.int32) + lv3.to(torch.int32)
        steps = scale_values(e6m2).unsqueeze(-1) * power_of_two(increments - 2)
        return (quarters.view(-1, LV3_FLAGS, LV3_SPAN) * steps.unsqueeze(-1)).view(-1, GROUP)

    def e6m2(self, scale: Tensor) -> Tensor:
        """The stored codes: `scale`, and FF where the group is NaN."""
        return scale.masked_fill(self.nan, E6M2_NAN)

    def signed_codes(self, quarters: Tensor) -> Tensor:
        """Step 10: uint8 [g, 64]; zero in NaN groups."""
        codes = quarters.to(torch.uint8) | ((self.bits < 0).view(torch.uint8) << 3)
        return codes.masked_fill_(self.nan.unsqueeze(-1), 0)


def _scale_codes(peak: Tensor, headroom: float) -> Tensor:
    """Steps 2-4: fp32 peaks [g] -> int32 E6M2 codes [g]."""
    scale = round_to_bf16(peak * headroom * ONE_SEVENTH).clamp_(SCALE_MIN, SCALE_MAX)
    bits = bits_of(scale)
    half_to_even = 0xF_FFFF + ((bits >> 21) & 1)
    return ((bits + half_to_even) >> 21) - E6M2_TO_FP32


def element_factors(scale: Tensor, increments: Tensor, profile: Profile) -> Tensor:
    """What step 8 multiplies magnitudes by, exact: 8 or 4 times rec / 2^(lv2 + lv3), fp32.

    Args:
        scale: E6M2 codes 00..FE, int32.
        increments: lv2 + lv3, int32; broadcast against `scale`.
    """
    reciprocal = reciprocals(scale.device).index_select(0, scale.reshape(-1)).view(scale.shape)
    # 2^(3 - lv2 - lv3) * rec gives 8m, 2^(2 - ...) * rec gives 4m: only the exponent of rec moves.
    octaves = (2 if profile.ties_to_even else 3) - increments
    return float_of(bits_of(reciprocal) + (octaves << 23))


def round_quarters(scaled: Tensor, profile: Profile) -> Tensor:
    """Step 9, in place: magnitudes times `element_factors` -> quarters 0..7."""
    if profile.element_in_bf16:
        scaled = round_to_bf16(scaled)
    if profile.ties_to_even:
        return scaled.clamp_(max=MAX_QUARTERS).round_()
    # floor(4m) + [frac(4m) >= 1/2] = floor((floor(8m) + 1) / 2); from 8m = 13 on, q is 7.
    return scaled.clamp_(max=2 * MAX_QUARTERS).floor_().add_(1).mul_(0.5).floor_()


@functools.cache
def reciprocals(device: torch.device) -> Tensor:
    """Step 5: bf16(1 / E6M2) of the codes 00..FE, fp32 [255]."""
    code = torch.arange(E6M2_MAX + 1, dtype=torch.int32, device="cpu")
    exponent, m = code >> 2, code & 3
    mantissa = torch.tensor(RECIPROCAL_MANTISSAS, dtype=torch.int32, device="cpu")[m.long()]
    biased = 127 + E6M2_BIAS - exponent - (m > 0).to(torch.int32)
    return float_of((biased << 23) | (mantissa << 16)).to(device)


def round_to_bf16(x: Tensor) -> Tensor:
    """fp32 rounded to bf16, nearest even, as fp32. By integers: a compiler drops a cast there and back."""
    return float_of(round_bits_to_bf16(bits_of(x)))
