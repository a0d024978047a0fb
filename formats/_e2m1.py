"""The E2M1 element of MXFP4 and NVFP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign."""

from __future__ import annotations

from typing import Final

from torch import Tensor

E2M1_MAX: Final = 6.0


def round_to_e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 value, ties to even, magnitudes above 6 saturate; fp32 in and out, NaN stays NaN.

    ml_dtypes' `float4_e2m1fn` cast does the same, on numpy arrays only; the tests hold the two together.
    """
    magnitude = x.abs().clamp_(max=E2M1_MAX)
    # The spacing is 1/2 below 2, 1 below 4, then 2; `round` is half to even, as are the codes on each of the three.
    spacing = 0.5 + 0.5 * (magnitude >= 2).to(x.dtype) + (magnitude >= 4).to(x.dtype)
    return (magnitude / spacing).round_().mul_(spacing).copysign_(x)
