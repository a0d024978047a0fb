"""Tensors on which an implementation of the formats goes wrong if it can: every rounding boundary and every special.

Seeded, so that a figure can be repeated. Where a class is named after a boundary, the boundary is computed from the
format's constants and surrounded by the neighbouring fp32 numbers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hfq.formats import hif4
from hfq.formats.hif4_bytes import pack_scale, scale_values
from hfq.formats.hif4_spec import CODE_BYTES, E6M2_NAN, GROUP, MAX_QUARTERS, ONE_SEVENTH
from hfq.formats.hif8_bytes import code_values
from hfq.formats.hif8_spec import INFINITY_SLOT, MIN_SCALE_EXPONENT, SIGN

__all__ = ["activation_classes", "hif8_weight_classes", "weight_classes"]

_ROWS: Final = 240
_COLUMNS: Final = 2 * GROUP
_HEADROOMS: Final = (0.5, 0.9, 1.0, 1.1, 2.0)
_FP32_MAX: Final = float(np.finfo(np.float32).max)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Random = np.random.Generator


def activation_classes(seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the quantize-dequantize ops by class: fp32 [240, 128] each, "short last group" [240, 100].

    All are finite but those of "non-finite".
    """
    random = np.random.default_rng(seed)
    shape = (_ROWS, _COLUMNS)
    normal = random.standard_normal(shape)
    outliers = normal * 1e-3
    outliers[np.arange(_ROWS), random.integers(0, _COLUMNS, _ROWS)] *= np.exp2(random.integers(0, 24, _ROWS))
    mixed = np.clip(normal * np.exp2(_octaves(random, -140, 141)), -_FP32_MAX, _FP32_MAX)
    patterns = _floats(random.integers(0, 1 << 32, shape, dtype=np.uint32))
    non_finite = _fp32(normal)
    specials = np.array([np.nan, np.inf, -np.inf], np.float32)
    places = random.random(shape) < 0.02
    non_finite[places] = random.choice(specials, int(places.sum()))
    non_finite[: len(specials)] = specials[:, None]
    huge = _signed(random, 1e38 * (1 + 2.4 * random.random(shape)))
    huge[::4, 0] = _FP32_MAX
    classes = {
        "normal": _fp32(normal),
        "heavy tail": _fp32(random.standard_t(1.2, shape)),
        "group scales": _fp32(mixed),
        "random bit patterns": np.where(np.isfinite(patterns), patterns, np.float32(0)),
        "one binade": _signed(random, 1 + random.random(shape)),
        "scale boundaries": _scale_boundaries(random),
        "flag thresholds": _flag_thresholds(random),
        "ties of quarters": _signed(random, random.integers(0, 57, shape) / 8 * np.exp2(_octaves(random, -30, 12))),
        "rounding boundaries": _quarter_boundaries(random),
        "HiF8 boundaries": _hif8_boundaries(random),
        "zeros": _zeros(random),
        "subnormals": _floats(random.integers(0, 1 << 23, shape, dtype=np.uint32) | _signs(random)),
        "tiny": _signed(random, np.exp2(random.uniform(-60, -40, shape))),
        "huge": huge,
        "single outliers": _fp32(outliers),
        "short last group": _fp32(random.standard_normal((_ROWS, 100))),
        "non-finite": non_finite,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in classes.items()}


def weight_classes(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Packed HiF4 groups by class: codes uint8 [g, 32] and scale words uint32 [g], layout A."""
    random = np.random.default_rng(seed)
    every = torch.arange(256, dtype=torch.int32)

    def drawn(count: int, top: int) -> Tensor:
        return torch.from_numpy(random.integers(0, top, count, dtype=np.int32))

    def codes(count: int) -> Tensor:
        return torch.from_numpy(random.integers(0, 256, (count, CODE_BYTES), dtype=np.uint8))

    flags = torch.cat((every, every << 8))
    turned = (every.unsqueeze(-1) + 8 * torch.arange(CODE_BYTES)).to(torch.uint8)  # all 256 bytes in every place
    weight = hif4.quantize(torch.from_numpy(_fp32(random.standard_normal((512, GROUP)) * 0.02)))
    return {
        "all scale bytes": (codes(512), pack_scale(every.repeat(2), drawn(512, 256), drawn(512, 1 << 16))),
        "all lv2 flags": (codes(512), pack_scale(drawn(512, E6M2_NAN), every.repeat(2), drawn(512, 1 << 16))),
        "all lv3 flags": (codes(512), pack_scale(drawn(512, E6M2_NAN), drawn(512, 256), flags)),
        "all codes": (turned.repeat(2, 1), pack_scale(drawn(512, E6M2_NAN), drawn(512, 256), drawn(512, 1 << 16))),
        "NaN scale": (
            codes(512),
            pack_scale(torch.full((512,), E6M2_NAN, dtype=torch.int32), drawn(512, 256), drawn(512, 1 << 16)),
        ),
        "quantized": (weight.codes, weight.scale.reshape(-1)),
    }


def hif8_weight_classes(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """HiF8 codes uint8 [n, k] by class, with scales fp32 [n, 1] or []."""
    random = np.random.default_rng(seed)
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(128, 1)
    exponents = random.integers(MIN_SCALE_EXPONENT, 126, 128)
    rows = torch.from_numpy(_fp32(np.exp2(exponents.astype(np.float64))).reshape(-1, 1))
    return {
        "all codes": (codes, torch.ones(())),
        "all codes, tensor scale": (codes, torch.tensor(2.0**-9)),
        "all codes, row scales": (codes, rows),
    }


def _scale_boundaries(random: Random) -> Floats:
    """Group peaks where step 2 meets a boundary of bf16 or of E6M2, for several headrooms, and 3 ulp around."""
    groups = _ROWS * 2
    significand = random.choice(np.array([1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875]), groups)
    # A boundary of E6M2 is met one rounding earlier, half a bf16 step around it.
    shifted = significand * (1 + random.choice(np.array([0.0, -(2.0**-8), 2.0**-8, 2.0**-9, -(2.0**-9)]), groups))
    scale = shifted * np.exp2(random.integers(-49, 17, groups))
    peaks = _neighbours(random, scale / ONE_SEVENTH / random.choice(np.array(_HEADROOMS), groups), 3)
    values = _fp32(random.uniform(-1, 1, (groups, GROUP)) * peaks[:, None].astype(np.float64))
    values[np.arange(groups), random.integers(0, GROUP, groups)] = peaks
    return values.reshape(_ROWS, _COLUMNS)


def _flag_thresholds(random: Random) -> Floats:
    """Values whose product with the group's reciprocal is 2 or 4, exactly or but for the last bits of bf16 or fp32."""
    targets = np.array([2.0, 4.0, 2 - 2.0**-8, 4 - 2.0**-7, 2 - 2.0**-7, 4 - 2.0**-6])
    return _around_reciprocals(random, targets, idle=0.7)


def _quarter_boundaries(random: Random) -> Floats:
    """Values whose quarters lie on a tie, or within a bf16 step of one, under every combination of flags."""
    ties = np.arange(MAX_QUARTERS + 1) + 0.5
    steps = np.exp2(np.floor(np.log2(ties)) - 8)
    targets = np.concatenate([ties, ties - steps / 2, ties - steps, ties + steps]) / 4
    return _around_reciprocals(random, np.concatenate([targets, 2 * targets, 4 * targets]), idle=0.0)


def _around_reciprocals(random: Random, targets: Doubles, *, idle: float) -> Floats:
    """Groups of values target / reciprocal within 3 ulp; in front of them the peak that gives that reciprocal."""
    groups = _ROWS * 2
    codes = torch.from_numpy(random.integers(0, E6M2_NAN, groups, dtype=np.int32))
    inverse = hif4.reciprocals(torch.device("cpu"))[codes.long()].double().numpy()[:, None]
    values = _neighbours(random, random.choice(targets, (groups, GROUP)) / inverse, 3)
    values[random.random(values.shape) < idle] = 0
    peaks = 7 * scale_values(codes).numpy()
    values = np.clip(values, -peaks[:, None], peaks[:, None])
    values[:, 0] = peaks
    signed: Floats = values * random.choice(np.array([-1, 1], np.float32), values.shape)
    return signed.reshape(_ROWS, _COLUMNS)


def _hif8_boundaries(random: Random) -> Floats:
    """Values of HiF8, midpoints and twice-midpoints of neighbours, and 3 ulp around; the slot of infinity counts."""
    values = code_values(torch.device("cpu"))[:SIGN].double().numpy()
    grid = np.sort(np.where(np.isfinite(values), values, INFINITY_SLOT))
    points = np.concatenate([grid, (grid[:-1] + grid[1:]) / 2])
    drawn = np.resize(random.permutation(np.repeat(points, 7)), (_ROWS, _COLUMNS))
    signed: Floats = _neighbours(random, drawn, 3) * random.choice(np.array([-1, 1], np.float32), drawn.shape)
    return signed


def _zeros(random: Random) -> Floats:
    """Groups of +0, of -0, of both, and values among zeros."""
    values = random.choice(np.array([0.0, -0.0], np.float32), (_ROWS, _COLUMNS))
    values[:40], values[40:80] = 0.0, -0.0
    some = values[160:]
    places = random.random(some.shape) < 0.2
    some[places] = random.standard_normal(int(places.sum())).astype(np.float32)
    return values


def _neighbours(random: Random, values: Any, reach: int) -> Floats:
    """Non-negative numbers as fp32, moved by up to `reach` ulp either way."""
    bits = _fp32(values).view(np.int32) + random.integers(-reach, reach + 1, np.shape(values), dtype=np.int32)
    moved: Floats = np.maximum(bits, 0).astype(np.int32).view(np.float32)
    return moved


def _octaves(random: Random, low: int, high: int) -> Doubles:
    """One exponent for each group, repeated for its values."""
    return random.integers(low, high, (_ROWS, 2)).repeat(GROUP, axis=1).astype(np.float64)


def _signed(random: Random, magnitudes: Doubles) -> Floats:
    return _fp32(magnitudes * random.choice(np.array([-1.0, 1.0]), magnitudes.shape))


def _signs(random: Random) -> npt.NDArray[np.uint32]:
    return random.integers(0, 2, (_ROWS, _COLUMNS), dtype=np.uint32) << np.uint32(31)


def _fp32(values: Any) -> Floats:
    return np.asarray(values).astype(np.float32)


def _floats(bits: npt.NDArray[np.uint32]) -> Floats:
    return bits.view(np.float32)
