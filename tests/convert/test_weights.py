"""Quantizing a weight and naming the result: the digest line by line, and numbers that no format holds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from hfq.convert.restore import RestoredSite
from hfq.convert.site_error import measure_site
from hfq.convert.site_ops import read_ops
from hfq.convert.weights import check_finite, quantize_activation, quantize_weight, site_digest
from hfq.formats.hif4_reference import decode_group, encode_group
from hfq.schema.errors import (
    HfqError,
    InconsistentDeltaError,
    MaskValueError,
    MissingTensorError,
    NonFiniteWeightError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

HIF4 = {"format": "hif4", "profile": "ref", "scale_search": False}
HIF8 = {"format": "hif8", "scale": "row", "saturate": False}
QDQ = {"op": "qdq", "format": "hif4", "profile": "ref"}
MASK = {"op": "mask", "tensor": "mask"}


def weight(rows: int = 4, columns: int = 128, *, scale: float = 0.02) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * scale).bfloat16()


def test_a_hif4_site_digest_from_the_readable_reference() -> None:
    w, mask = weight(), torch.linspace(0.5, 2.0, 128)
    masked = (w.float().numpy() / mask.numpy()).astype(np.float32)
    groups = [encode_group(row[start : start + 64].tolist()) for row in masked for start in (0, 64)]
    data = b"hif4\tref\t4,128\n" + b"".join(group.code_bytes for group in groups)
    data += b"".join(group.scale_word.to_bytes(4, "little") for group in groups) + mask.numpy().tobytes()
    found = quantize_weight(w.float() / mask, HIF4, "site")
    assert site_digest(found, HIF4, {"mask": mask}) == hashlib.sha256(data).hexdigest()
    values = np.array([decode_group(group) for group in groups]).reshape(4, 128)
    assert np.array_equal(found.dequantize(torch.float32).numpy(), values)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (HIF8, b"hif8\trow\t4,128\n"),
        ({**HIF8, "scale": "none"}, b"hif8\tnone\t4,128\n"),
        ({**HIF8, "scale": "tensor", "saturate": True}, b"hif8\ttensor-saturate\t4,128\n"),
        ({**HIF4, "profile": "amct"}, b"hif4\tamct\t4,128\n"),
    ],
)
def test_the_format_line_tells_formats_apart(options: dict[str, Any], line: bytes) -> None:
    found = quantize_weight(weight(), options, "site")
    data = line + found.codes.numpy().tobytes() + found.scale.numpy().tobytes()
    assert site_digest(found, options, {}) == hashlib.sha256(data).hexdigest()


def test_state_enters_the_digest_by_name_not_by_order() -> None:
    found = quantize_weight(weight(), HIF4, "site")
    a, b = torch.ones(3), torch.zeros(2)
    assert site_digest(found, HIF4, {"a": a, "b": b}) == site_digest(found, HIF4, {"b": b, "a": a})
    assert site_digest(found, HIF4, {"a": a, "b": b}) != site_digest(found, HIF4, {"a": b, "b": a})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [HIF4, HIF8])
def test_a_number_that_is_none_is_refused_by_position(value: float, options: dict[str, Any]) -> None:
    w = weight()
    w[2, 70] = value
    for attempt in (lambda: check_finite(w, "here"), lambda: quantize_weight(w, options, "here")):
        with pytest.raises(NonFiniteWeightError, match=r"here.*\[2, 70\]"):
            attempt()


def test_a_weight_that_hif8_would_make_infinite_is_refused() -> None:
    w = weight()
    w[1, 5] = 60000.0
    with pytest.raises(NonFiniteWeightError, match=r"\[1, 5\]"):
        quantize_weight(w, {**HIF8, "scale": "none"}, "here")
    assert quantize_weight(w, {**HIF8, "scale": "none", "saturate": True}, "here")
    assert quantize_weight(w, HIF8, "here")


@pytest.mark.parametrize(
    "options", [{"format": "hif4", "profile": "ref"}, {"format": "hif8", "scale": "none", "saturate": False}]
)
def test_a_quantized_activation_fits_bf16_exactly(options: dict[str, Any]) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-4, 3, 256)
    once = quantize_activation(x, options)
    assert once.dtype == torch.bfloat16
    again = quantize_activation(once.float(), options) if options["format"] == "hif8" else once
    assert torch.equal(once, again)
    assert float((once.float() - x).abs().sum() / x.abs().sum()) < 0.2


def test_bf16_activations_are_rounded_and_nothing_else() -> None:
    x = torch.randn(8, 64)
    assert torch.equal(quantize_activation(x, {"format": "bf16"}), x.bfloat16())


@pytest.mark.parametrize(
    ("ops", "state", "error"),
    [
        ([], {}, InconsistentDeltaError),
        ([MASK], {"mask": torch.ones(64)}, InconsistentDeltaError),
        ([QDQ, MASK], {"mask": torch.ones(64)}, InconsistentDeltaError),
        ([QDQ, QDQ], {}, InconsistentDeltaError),
        ([MASK, MASK, QDQ], {"mask": torch.ones(64)}, InconsistentDeltaError),
        ([MASK, QDQ], {}, MissingTensorError),
        ([QDQ], {"mask": torch.ones(64)}, UnexpectedTensorError),
        ([MASK, QDQ], {"mask": torch.ones(64), "more": torch.ones(1)}, UnexpectedTensorError),
        ([MASK, QDQ], {"mask": torch.ones(63)}, ShapeMismatchError),
        ([MASK, QDQ], {"mask": torch.ones(1, 64)}, ShapeMismatchError),
        ([MASK, QDQ], {"mask": torch.ones(64).double()}, ShapeMismatchError),
        *[
            ([MASK, QDQ], {"mask": torch.ones(64).index_fill(0, torch.tensor(9), value)}, MaskValueError)
            for value in (0.0, -0.0, -1.0, 1e-40, float("inf"), float("nan"))
        ],
    ],
)
def test_ops_and_state_that_do_not_fit(ops: Any, state: Any, error: type[HfqError]) -> None:
    with pytest.raises(error, match="here"):
        read_ops(ops, state, (32, 64), "here")


def test_measured_errors_are_those_of_the_definition() -> None:
    w, mask = weight(8), torch.linspace(0.5, 2.0, 128)
    ops = read_ops([MASK, QDQ], {"mask": mask}, (w.shape[0], 128), "site")
    site = RestoredSite(quantize_weight(w.float() / mask, HIF4, "site"), ops, "")
    effective = site.weight.dequantize(torch.float32).double() * mask.double()
    found = measure_site(w, site, None)
    expected = float((effective - w.double()).square().sum())
    assert found["weight_error"] == pytest.approx(expected, rel=1e-6)
    assert found["weight_power"] == pytest.approx(float(w.double().square().sum()))
    assert found["bits_per_weight"] == 4.5
    assert torch.equal(site.effective(), (site.weight.dequantize(torch.float32) * mask))


def test_errors_of_enormous_weights_are_still_numbers() -> None:
    w = weight(4, scale=1e30)
    ops = read_ops([QDQ], {}, (w.shape[0], 128), "site")
    found = measure_site(w, RestoredSite(quantize_weight(w, HIF4, "site"), ops, ""), w)
    assert np.isfinite(found["weight_error"])
    assert found["output_error"] is None
