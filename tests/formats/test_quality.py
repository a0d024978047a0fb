"""Signal-to-noise ratios on Gaussian weights, against figures measured with other implementations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hfq.formats import hif4, hif8, mxfp4, nvfp4

Qdq = Callable[[torch.Tensor], torch.Tensor]

FIGURES: list[tuple[str, Qdq, float, float]] = [  # name, format, dB at sigma 1, dB at sigma 0.02
    ("hif4 ref", hif4.qdq, 21.63, 21.62),
    ("hif4 amct", lambda x: hif4.qdq(x, profile="amct"), 21.62, 21.62),
    ("hif4 cann", lambda x: hif4.qdq(x, profile="cann"), 21.62, 21.62),
    ("hif4 pto", lambda x: hif4.qdq(x, profile="pto"), 21.62, 21.62),
    ("hif4 scale search", lambda x: hif4.quantize(x, scale_search=True).dequantize(), 22.03, 22.05),
    ("nvfp4", nvfp4.qdq, 20.43, 20.44),
    ("nvfp4 without tensor scale", lambda x: nvfp4.qdq(x, tensor_scale=False), 20.42, 19.73),
    ("mxfp4", mxfp4.qdq, 18.80, 18.86),
    ("hif8", hif8.qdq, 31.49, 25.39),
    ("hif8 with a power-of-two scale", lambda x: hif8.qdq(x, scale="tensor"), 31.49, 31.49),
]


def sqnr_db(x: torch.Tensor, y: torch.Tensor) -> float:
    signal, noise = x.double().square().sum(), (x.double() - y.double()).square().sum()
    return float(10 * torch.log10(signal / noise))


@pytest.mark.parametrize(("qdq", "at_one", "at_weights"), [row[1:] for row in FIGURES], ids=[row[0] for row in FIGURES])
def test_sqnr(qdq: Qdq, at_one: float, at_weights: float) -> None:
    normal = torch.randn(256, 4096, generator=torch.Generator().manual_seed(2602))
    for sigma, expected in ((1.0, at_one), (0.02, at_weights)):
        x = (normal * sigma).bfloat16()
        assert sqnr_db(x, qdq(x)) == pytest.approx(expected, abs=0.05)
