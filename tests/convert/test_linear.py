"""The quantized linear: its numbers against numpy and the readable formats, and its manners against nn.Linear's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from hfq.convert.linear import QuantizedLinear
from hfq.convert.restore import RestoredSite, transform_weight
from hfq.convert.site_ops import read_ops
from hfq.convert.weights import quantize_weight
from hfq.formats import hif8
from hfq.formats.hif4_reference import decode_group, encode_group
from hfq.schema.errors import UsageError

K, N = 128, 24
HIF4 = {"format": "hif4", "profile": "ref", "scale_search": False}


def make(
    *, dtype: torch.dtype = torch.bfloat16, mask: bool = True, weight: dict[str, Any] | None = None,
    activation: dict[str, Any] | None = None, bias: bool = True,
) -> tuple[QuantizedLinear, nn.Linear, torch.Tensor | None]:  # fmt: skip
    """A quantized linear, the one it was made from, and the mask."""
    generator = torch.Generator().manual_seed(11)
    source = nn.Linear(K, N, bias=bias)
    with torch.no_grad():
        source.weight.copy_(torch.randn(N, K, generator=generator) * 0.02)
        if bias:
            source.bias.copy_(torch.randn(N, generator=generator))
    source = source.to(torch.bfloat16).to(dtype)
    values = (torch.rand(K, generator=generator) * 2 + 0.1) if mask else None
    ops = [{"op": "mask", "tensor": "mask"}] if mask else []
    ops.append({"op": "qdq", **(activation or {"format": "hif4", "profile": "ref"})})
    built = read_ops(ops, {} if values is None else {"mask": values}, (N, K), "site")
    base = source.weight.detach().bfloat16()
    restored = RestoredSite(quantize_weight(transform_weight(base, built.ops), weight or HIF4, "site"), built, "")
    return QuantizedLinear(restored, source, role="single", site="site"), source, values


def inputs(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(2, 5, K, generator=torch.Generator().manual_seed(2)) * 3).bfloat16().to(dtype)


def by_hand(x: np.ndarray) -> np.ndarray:
    """HiFloat4 of fp32 [rows, K] by the readable reference, one group at a time; float64."""
    groups = [decode_group(encode_group(row[start : start + 64].tolist())) for row in x for start in range(0, K, 64)]
    return np.array(groups).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_product_by_hand(dtype: torch.dtype) -> None:
    linear, source, mask = make(dtype=dtype)
    assert mask is not None
    x = inputs(dtype)
    # One rounding to fp32 each, then the format; everything after is exact until the product.
    m = mask.numpy()
    quantized_x = by_hand(x.float().numpy().reshape(-1, K) * m)
    quantized_w = by_hand(source.weight.detach().float().numpy() / m)
    assert np.array_equal(linear.quantize_input(x).float().numpy().reshape(-1, K), quantized_x)
    assert np.array_equal(linear.operand.float().numpy(), quantized_w)
    expected = (quantized_x @ quantized_w.T + source.bias.detach().double().numpy()).reshape(2, 5, N)
    found = linear(x)
    assert found.dtype == dtype
    tolerance = 2**-8 if dtype == torch.bfloat16 else 2**-20
    size = (np.abs(quantized_x) @ np.abs(quantized_w).T + 1).reshape(2, 5, N)
    assert float((np.abs(found.detach().double().numpy() - expected) / size).max()) < tolerance


def test_hif8_and_unquantized_activations() -> None:
    linear, source, _ = make(
        mask=False, weight={"format": "hif8", "scale": "row", "saturate": False},
        activation={"format": "hif8", "scale": "none", "saturate": False},
    )  # fmt: skip
    x = inputs()
    w = hif8.quantize(source.weight.detach(), scale="row").dequantize(torch.bfloat16)
    assert torch.equal(linear(x), nn.functional.linear(hif8.qdq(x), w, source.bias))
    linear, source, _ = make(mask=False, activation={"format": "bf16"})
    assert torch.equal(linear.quantize_input(x.float() * 1.001), (x.float() * 1.001).bfloat16())


def test_activations_are_cast_to_bf16_before_anything_else() -> None:
    linear, _, _ = make(dtype=torch.float32)
    x = inputs(torch.float32) * 1.0009
    assert torch.equal(linear(x), linear(x.bfloat16().float()))


def test_the_weight_is_effective_and_in_the_original_basis() -> None:
    linear, source, mask = make(dtype=torch.float32)
    assert mask is not None
    effective = by_hand(source.weight.detach().float().numpy() / mask.numpy()).astype(np.float32) * mask.numpy()
    assert np.array_equal(linear.weight.numpy(), effective)
    assert linear.weight.shape == (N, K)
    error = float((linear.weight - source.weight.detach()).norm() / source.weight.detach().norm())
    assert 0 < error < 0.3
    assert torch.equal(make()[0].weight, torch.from_numpy(effective).bfloat16())
    assert isinstance(linear, nn.Linear)
    assert "site=site" in repr(linear)


WRITES: dict[str, Callable[[Any], object]] = {
    "assign": lambda linear: setattr(linear, "weight", nn.Parameter(torch.zeros(N, K))),
    "assign data": lambda linear: setattr(linear.weight, "data", torch.zeros(N, K)),
    "write into data": lambda linear: linear.weight.data.zero_(),
    "item": lambda linear: linear.weight.__setitem__((0, 0), 1.0),
    "item of a view": lambda linear: linear.weight.view(-1).__setitem__(0, 1.0),
    "item of a row": lambda linear: linear.weight[3].fill_(1.0),
    "item of a detached": lambda linear: linear.weight.detach().T.mul_(2),
    "add_": lambda linear: linear.weight.add_(1),
    "augmented": lambda linear: linear.weight.__iadd__(1),
    "copy_": lambda linear: linear.weight.copy_(torch.zeros(N, K)),
    "out": lambda linear: torch.add(torch.ones(N, K), 1, out=linear.weight),
    "foreach": lambda linear: torch._foreach_add_([linear.weight], 1.0),
    "init": lambda linear: nn.init.zeros_(linear.weight),
    "operator": lambda linear: torch.ops.aten.mul_.Scalar(linear.weight, 2.0),
    "set_": lambda linear: linear.weight.set_(torch.zeros(N, K)),
    "resize_": lambda linear: linear.weight.resize_(1),
    "gradient": lambda linear: setattr(linear.weight, "grad", torch.zeros(N, K)),
    "parameter": lambda linear: nn.Parameter(linear.weight).data.add_(1),
    "reset_parameters": lambda linear: linear.reset_parameters(),
}


@pytest.mark.parametrize("way", WRITES)
def test_the_weight_cannot_be_written(way: str) -> None:
    linear, _, _ = make(dtype=torch.float32)
    before, product = linear.weight.clone(), linear(inputs(torch.float32))
    with torch.no_grad(), pytest.raises(UsageError, match="read-only") as caught:
        WRITES[way](linear)
    assert "convert again" in str(caught.value)
    assert torch.equal(linear.weight, before)
    assert torch.equal(linear(inputs(torch.float32)), product)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimizer_cannot_change_it(optimizer: Any, foreach: bool) -> None:
    linear, _, _ = make(dtype=torch.float32)
    weight = nn.Parameter(linear.weight)
    stepper = optimizer([weight], lr=0.1, foreach=foreach)
    with pytest.raises(UsageError, match="read-only"):
        weight.grad = torch.ones(N, K)
    stepper.step()
    assert torch.equal(weight, linear.weight)
    assert [name for name, _ in linear.named_parameters()] == ["bias"]


def test_deleting_the_weight_is_an_error() -> None:
    linear, _, _ = make()
    with pytest.raises(AttributeError):
        del linear.weight
    assert linear.weight.shape == (N, K)


def test_reading_the_weight_is_like_reading_any_tensor() -> None:
    linear, _, _ = make(dtype=torch.float32)
    weight = linear.weight
    assert type(weight + 1) is torch.Tensor
    assert type(weight.clone()) is torch.Tensor
    copied = weight.clone()
    copied.zero_()
    assert float(weight.abs().sum()) > 0
    assert torch.equal(weight.float().T @ torch.ones(N), weight.T.matmul(torch.ones(N)))
    assert torch.equal(torch.stack([weight, weight])[1], weight)
    assert weight.tolist()[0][0] == float(weight[0, 0])
    assert torch.equal(copy.deepcopy(weight), weight)
    buffer = io.BytesIO()
    torch.save(weight, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), weight)
    assert weight.to(torch.bfloat16).dtype == torch.bfloat16


def test_state_dict_has_the_keys_of_a_linear_and_goes_through_a_file() -> None:
    linear, source, _ = make()
    state = linear.state_dict()
    assert set(state) == set(source.state_dict())
    assert all(type(value) is torch.Tensor for value in state.values())
    loaded = load(save({name: value.contiguous() for name, value in state.items()}))
    assert linear.load_state_dict(loaded, strict=True).missing_keys == []
    plain = nn.Linear(K, N, dtype=torch.bfloat16)
    plain.load_state_dict(state, strict=True)
    assert torch.equal(plain.weight, linear.weight)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert set(torch.load(buffer, weights_only=True)) == {"weight", "bias"}


def test_loading_another_weight_is_refused_and_changes_nothing() -> None:
    linear, source, _ = make()
    before = linear.weight.clone()
    with pytest.raises(RuntimeError, match="read-only"):
        linear.load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="read-only"):
        linear.load_state_dict({**linear.state_dict(), "weight": torch.zeros(N, K + 1)})
    with pytest.raises(RuntimeError, match="Missing"):
        linear.load_state_dict({"bias": source.bias})
    with pytest.raises(RuntimeError, match="Unexpected"):
        linear.load_state_dict({**linear.state_dict(), "operand": linear.operand})
    assert torch.equal(linear.weight, before)
    linear.load_state_dict({"bias": torch.ones(N)}, strict=False)
    assert torch.equal(linear.bias, torch.ones(N, dtype=torch.bfloat16))


def test_float32_and_back_lose_nothing() -> None:
    linear, _, mask = make()
    assert mask is not None
    product, weight = linear(inputs()), linear.weight.clone()
    linear.to(torch.float32)
    assert linear.operand.dtype == linear.bias.dtype == torch.float32
    assert torch.equal(linear.mask, mask)
    wide = linear(inputs(torch.float32))
    assert wide.dtype == torch.float32
    linear.to(torch.float64).to(torch.bfloat16)
    assert torch.equal(linear(inputs()), product)
    assert torch.equal(linear.weight, weight)
    assert float(((wide - product.float()).abs().max() / wide.abs().max()).detach()) < 2**-7


@pytest.mark.parametrize("cast", ["half", "to", "type"])
def test_float16_rounds_the_result_and_nothing_before_it(cast: str) -> None:
    linear, _, mask = make()
    assert mask is not None
    product = linear(inputs())
    model = nn.Sequential(nn.LayerNorm(K), linear, nn.Linear(N, 4))
    {"half": model.half, "to": lambda: model.to(torch.float16), "type": lambda: model.type(torch.float16)}[cast]()
    assert linear.operand.dtype == torch.bfloat16
    assert torch.equal(linear.mask, mask)
    found = linear(inputs(torch.float16))
    assert found.dtype == torch.float16
    assert torch.equal(found, product.half())
    assert model(inputs(torch.float16)).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    linear, _, _ = make(dtype=torch.float32)
    exact = linear(inputs(torch.float32))
    with torch.autocast("cpu", dtype=dtype):
        found = linear(inputs(torch.float32))
    assert found.dtype == dtype
    if dtype == torch.float16:
        assert torch.equal(found, exact.half())
    else:
        assert float(((found.float() - exact).abs().max() / exact.abs().max()).detach()) < 2**-7


def test_deepcopy_is_independent_of_the_original() -> None:
    linear, _, _ = make()
    twin = copy.deepcopy(linear)
    assert torch.equal(twin(inputs()), linear(inputs()))
    twin.operand.zero_()
    assert float(linear.weight.abs().sum()) > 0
    assert twin.site == "site"


def test_meta_and_back() -> None:
    linear, _, _ = make()
    assert linear.to("meta").operand.is_meta
    assert linear.weight.is_meta
    assert linear.to_empty(device="cpu").operand.device.type == "cpu"


def test_a_linear_without_bias() -> None:
    linear, _, _ = make(bias=False)
    assert linear(inputs()).shape == (2, 5, N)
    assert list(linear.state_dict()) == ["weight"]
