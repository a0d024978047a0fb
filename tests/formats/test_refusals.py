"""What the room refuses, and that the refusal says where and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfq.formats import (
    FormatError,
    Hif8Tensor,
    InvalidHeadroomError,
    MalformedTensorError,
    NonFiniteError,
    UnknownOptionError,
    UnknownProfileError,
    UnsupportedDtypeError,
    UnsupportedShapeError,
    _tiles,
    hif4,
    hif8,
    mxfp4,
    nvfp4,
)

EVERY: list[Callable[[torch.Tensor], Any]] = [hif4.quantize, hif4.qdq, hif8.quantize, hif8.qdq, mxfp4.qdq, nvfp4.qdq]


@pytest.mark.parametrize("operation", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes(operation: Callable[[torch.Tensor], Any], dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedDtypeError, match=str(dtype).removeprefix("torch.")) as caught:
        operation(torch.ones(64).to(dtype))
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, FormatError)


@pytest.mark.parametrize("operation", EVERY)
def test_a_scalar_has_no_axis(operation: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(UnsupportedShapeError):
        operation(torch.tensor(1.0))


@pytest.mark.parametrize("quantize", [hif4.quantize, hif8.quantize])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tile", [64, 1 << 18])
def test_first_non_finite_value_is_named(
    quantize: Callable[[torch.Tensor], Any], value: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiles, "CPU_TILE", tile)
    x = torch.zeros(3, 5, 200, dtype=torch.bfloat16)
    x[1, 4, 133] = value
    x[2, 0, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\[1, 4, 133\]") as caught:
        quantize(x)
    assert caught.value.position == (1, 4, 133)
    assert caught.value.flat_index == (1 * 5 + 4) * 200 + 133
    assert str(caught.value.value) == str(value)


def test_qdq_can_refuse_too() -> None:
    x = torch.zeros(2, 64)
    x[1, 3] = float("inf")
    with pytest.raises(NonFiniteError) as caught:
        hif4.qdq(x, nonfinite="refuse")
    assert caught.value.position == (1, 3)


def test_activations_never_raise() -> None:
    x = torch.full((2, 64), float("nan"))
    x[1] = 1.0
    assert hif4.qdq(x).isnan().all(-1).tolist() == [True, False]
    assert hif8.qdq(x).isnan().all(-1).tolist() == [True, False]


@pytest.mark.parametrize("profile", ["", "REF", "reference", None, ["ref"]])
def test_unknown_profile(profile: Any) -> None:
    for operation in (hif4.quantize, hif4.qdq):
        with pytest.raises(UnknownProfileError, match="ref, amct, cann, pto"):
            operation(torch.ones(64), profile=profile)


@pytest.mark.parametrize("headroom", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60, "much", None])
def test_meaningless_headroom(headroom: Any) -> None:
    for operation in (hif4.quantize, hif4.qdq):
        with pytest.raises(InvalidHeadroomError):
            operation(torch.ones(64), headroom=headroom)


def test_unknown_words() -> None:
    x: Any = torch.ones(64)
    calls: list[Callable[[], Any]] = [
        lambda: hif4.quantize(x, nonfinite="ignore"),  # type: ignore[arg-type]
        lambda: hif4.qdq(x, nonfinite="encode"),  # type: ignore[arg-type]
        lambda: hif8.quantize(x, scale="channel"),  # type: ignore[arg-type]
        lambda: hif8.quantize(x, nonfinite="propagate"),  # type: ignore[arg-type]
        lambda: hif8.qdq(x, scale="group"),  # type: ignore[arg-type]
        lambda: mxfp4.qdq(x, scale_rule="round"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(UnknownOptionError, match="expected one of"):
            call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": torch.zeros(2, 3, dtype=torch.int8)}, "codes dtype"),
        ({"scale": torch.ones(2, 1, dtype=torch.float64)}, "scale dtype"),
        ({"scale": torch.ones(2)}, "scale shape"),
        ({"scale": torch.ones(())}, "scale shape"),
        ({"scaling": "tensor"}, "scale shape"),
        ({"scale": torch.tensor([[1.0], [0.0]])}, "found 0.0"),
        ({"scale": torch.tensor([[1.0], [3.0]])}, "found 3.0"),
        ({"scale": torch.tensor([[1.0], [-2.0]])}, "found -2.0"),
        ({"scale": torch.tensor([[1.0], [float("nan")]])}, "found nan"),
        ({"scale": torch.tensor([[1.0], [float("inf")]])}, "found inf"),
        ({"scale": torch.tensor([[1.0], [2.0**-127]])}, "powers of two"),
        ({"codes": torch.tensor(0, dtype=torch.uint8)}, "codes shape"),
        ({"scale": torch.tensor(2.0), "scaling": "none"}, 'scaling "none"'),
    ],
)
def test_hostile_hif8_pairs(change: dict[str, Any], words: str) -> None:
    good = Hif8Tensor(torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2, 1), "row")
    good.validate()
    with pytest.raises(MalformedTensorError, match=words):
        dataclasses.replace(good, **change).validate()


def test_unknown_scaling_in_a_stored_tensor() -> None:
    tensor = Hif8Tensor(torch.zeros(2, dtype=torch.uint8), torch.ones(()), "column")  # type: ignore[arg-type]
    with pytest.raises(UnknownOptionError):
        tensor.validate()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    for scaling in ("none", "tensor", "row"):
        stored = hif8.quantize(x, scale=scaling)
        stored.validate()
        assert stored.dequantize().shape == shape
        assert hif8.qdq(x, scale=scaling).shape == shape
    for operation in (hif4.qdq, mxfp4.qdq, nvfp4.qdq):
        assert operation(x).shape == shape
