"""Peers of the kernels: casts from the package registry that a user would pick, and where each is nearest to ours.

No two of these formats are the same. HiFloat4 has a scale and 24 flags for 64 values, MXFP4 a scale for 32, NVFP4 one
for 16, a plain E2M1 cast none; only en-dtypes knows HiFloat8. A row says how fast the nearest equal work is.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["PEERS", "Inputs", "Peer", "fitted", "usable_peers"]

PROBE: Final = 1 << 14  # elements of the call that says how many fit the time


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a row's tensor is made of.

    Attributes:
        source: fp32 [rows, K], a weight as a checkpoint stores it; its bf16 rounding is `x`.
        x: bf16 [rows, K].
        mask: fp32 [K], positive.
    """

    source: Tensor
    x: Tensor
    mask: Tensor

    @classmethod
    def made(cls, elements: int, columns: int) -> Inputs:
        """Gaussian, sigma 0.02 as of a linear's weight; mask within about 1/4 to 4. Always the same."""
        generator = torch.Generator().manual_seed(0)
        source = torch.randn(elements // columns, columns, generator=generator) * 0.02
        return cls(source, source.to(torch.bfloat16), torch.exp2(torch.randn(columns, generator=generator) / 2))

    def head(self, elements: int) -> Inputs:
        """The leading rows, as many as hold about so many elements, one at least."""
        rows = max(1, elements // self.x.shape[1])
        return Inputs(self.source[:rows], self.x[:rows], self.mask)


Factory = Callable[[Inputs], Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A peer and its calls.

    Attributes:
        package: distribution in the package registry.
        module: imported once before anything is timed.
        call: the functions, as a user would write them.
        differs: what it does otherwise than ours.
        works: our work -> what makes the peer's call for it. What needs doing once (widening, encoded operands) is done
            outside the call.
    """

    package: str
    module: str
    call: str
    differs: str
    works: Mapping[str, Factory]

    @property
    def version(self) -> str:
        """Of the installed package."""
        return importlib.metadata.version(self.package)


def usable_peers() -> tuple[dict[str, Peer], dict[str, str]]:
    """Peers whose package can be imported, and why each of the others cannot."""
    usable, missing = {}, {}
    for name, peer in PEERS.items():
        # torchao says at length which of its GPU libraries it did not load.
        logging.disable(logging.WARNING)
        try:
            importlib.import_module(peer.module)
        except ImportError as error:
            missing[name] = str(error)
        else:
            usable[name] = peer
        finally:
            logging.disable(logging.NOTSET)
    return usable, missing


def fitted(factory: Factory, inputs: Inputs, limit_s: float) -> tuple[Callable[[], Any], int]:
    """A peer's call on the tensor, or on as many leading rows as it does in `limit_s`, and their elements.

    About a power of two of them, so that two runs mostly agree on the part.
    """
    probe = inputs.head(PROBE)
    run = factory(probe)
    run()
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    affordable = max(1, int(probe.x.numel() * limit_s / max(seconds, 1e-9)))
    if affordable < inputs.x.numel():
        inputs = inputs.head(1 << (affordable.bit_length() - 1))
    return factory(inputs), inputs.x.numel()


def _mx(element: torch.dtype, ours: str) -> Mapping[str, Factory]:
    def cast(x: Tensor) -> Any:
        mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
        return mx.MXTensor.to_mx(x, element, 32)

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        stored = cast(inputs.x)
        return lambda: stored.dequantize(torch.bfloat16)

    return {
        f"{ours}.quantize": lambda i: lambda: cast(i.x),
        f"{ours}.dequantize": dequantize,
        f"{ours}.qdq": lambda i: lambda: cast(i.x).dequantize(torch.bfloat16),
        f"{ours}.weight": lambda i: lambda: cast(i.source.to(torch.bfloat16) / i.mask),
        f"{ours}.activation": lambda i: lambda: cast(i.x * i.mask).dequantize(torch.bfloat16),
    }


def _nvfp4() -> Mapping[str, Factory]:
    def cast(x: Tensor) -> Any:
        nv = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")
        return nv.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=nv.per_tensor_amax_to_scale(x.abs().amax()))

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        stored = cast(inputs.x)
        return lambda: stored.dequantize(torch.bfloat16)

    return {
        "hif4.quantize": lambda i: lambda: cast(i.x),
        "hif4.dequantize": dequantize,
        "hif4.qdq": lambda i: lambda: cast(i.x).dequantize(torch.bfloat16),
    }


def _torch_float8() -> Mapping[str, Factory]:
    e4m3 = torch.float8_e4m3fn

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        stored = inputs.x.to(e4m3)
        return lambda: stored.to(torch.bfloat16)

    return {
        "hif8.quantize": lambda i: lambda: i.x.to(e4m3),
        "hif8.dequantize": dequantize,
        "hif8.qdq": lambda i: lambda: i.x.to(e4m3).to(torch.bfloat16),
        "hif8.weight": lambda i: lambda: (i.source.to(torch.bfloat16) / i.mask).to(e4m3),
        "hif8.activation": lambda i: lambda: (i.x * i.mask).to(e4m3).to(torch.bfloat16),
    }


def _gfloat(name: str, ours: str) -> Mapping[str, Factory]:
    def parts() -> tuple[Any, Any, Any]:
        gfloat = importlib.import_module("gfloat")
        return gfloat, getattr(importlib.import_module("gfloat.formats"), name), gfloat.RoundMode.TiesToEven

    def quantize(inputs: Inputs) -> Callable[[], Any]:
        (gfloat, info, mode), x = parts(), inputs.x.float().numpy()
        return lambda: gfloat.encode_ndarray(info, gfloat.round_ndarray(info, x, mode, True))

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        (gfloat, info, _), codes = parts(), quantize(inputs)().astype(np.uint8)
        return lambda: gfloat.decode_ndarray(info, codes)

    def qdq(inputs: Inputs) -> Callable[[], Any]:
        (gfloat, info, mode), x = parts(), inputs.x.float().numpy()
        return lambda: gfloat.round_ndarray(info, x, mode, True)

    return {f"{ours}.quantize": quantize, f"{ours}.dequantize": dequantize, f"{ours}.qdq": qdq}


def _ml_dtypes(name: str, ours: str) -> Mapping[str, Factory]:
    def parts(inputs: Inputs) -> tuple[Any, Any, Any]:
        ml_dtypes = importlib.import_module("ml_dtypes")
        x = inputs.x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x, getattr(ml_dtypes, name), ml_dtypes.bfloat16

    def quantize(inputs: Inputs) -> Callable[[], Any]:
        x, dtype, _ = parts(inputs)
        return lambda: x.astype(dtype)

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        x, dtype, bf16 = parts(inputs)
        stored = x.astype(dtype)
        return lambda: stored.astype(bf16)

    def qdq(inputs: Inputs) -> Callable[[], Any]:
        x, dtype, bf16 = parts(inputs)
        return lambda: x.astype(dtype).astype(bf16)

    return {f"{ours}.quantize": quantize, f"{ours}.dequantize": dequantize, f"{ours}.qdq": qdq}


def _ml_dtypes_bf16(inputs: Inputs) -> Callable[[], Any]:
    source, dtype = inputs.source.numpy(), importlib.import_module("ml_dtypes").bfloat16
    return lambda: source.astype(dtype)


def _en_dtypes() -> Mapping[str, Factory]:
    def parts(inputs: Inputs) -> tuple[Any, Any]:
        return inputs.x.float().numpy(), importlib.import_module("en_dtypes").hifloat8

    def quantize(inputs: Inputs) -> Callable[[], Any]:
        x, dtype = parts(inputs)
        return lambda: x.astype(dtype)

    def dequantize(inputs: Inputs) -> Callable[[], Any]:
        x, dtype = parts(inputs)
        stored = x.astype(dtype)
        return lambda: stored.astype(np.float32)

    def qdq(inputs: Inputs) -> Callable[[], Any]:
        x, dtype = parts(inputs)
        return lambda: x.astype(dtype).astype(np.float32)

    return {"hif8.quantize": quantize, "hif8.dequantize": dequantize, "hif8.qdq": qdq}


PEERS: Final[Mapping[str, Peer]] = {
    "torchao MXFP4": Peer(
        "torchao",
        "torchao.prototype.mx_formats.mx_tensor",
        "`MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32)`, `.dequantize(torch.bfloat16)`",
        "another format: E2M1 codes, packed, and an E8M0 scale per 32; eager torch operations on a CPU",
        _mx(torch.float4_e2m1fn_x2, "hif4"),
    ),
    "torchao NVFP4": Peer(
        "torchao",
        "torchao.prototype.mx_formats.nvfp4_tensor",
        "`NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().amax()))`, `.dequantize(...)`",
        "another format: E2M1 codes, packed, an E4M3 scale per 16 and one for the tensor; eager torch operations",
        _nvfp4(),
    ),
    "gfloat E2M1": Peer(
        "gfloat",
        "gfloat",
        "`encode_ndarray(info, round_ndarray(info, x, RoundMode.TiesToEven, True))`, `decode_ndarray`, `round_ndarray`",
        "elements only, no scale; fp32 in, one uint64 per code, float64 out; one thread",
        _gfloat("format_info_ocp_e2m1", "hif4"),
    ),
    "ml_dtypes E2M1": Peer(
        "ml-dtypes",
        "ml_dtypes",
        "`x.astype(ml_dtypes.float4_e2m1fn)`, `.astype(ml_dtypes.bfloat16)`",
        "elements only, no scale, not packed: one byte per code; one thread",
        _ml_dtypes("float4_e2m1fn", "hif4"),
    ),
    "en_dtypes HiF8": Peer(
        "en-dtypes",
        "en_dtypes",
        "`x.astype(en_dtypes.hifloat8)`, `.astype(numpy.float32)`",
        "the same format and codes; casts from and to fp32, as it has none for BF16; one thread",
        _en_dtypes(),
    ),
    "torch float8": Peer(
        "torch",
        "torch",
        "`x.to(torch.float8_e4m3fn)`, `.to(torch.bfloat16)`",
        "another format with a fixed exponent width (E4M3); no check for NaN and infinity",
        _torch_float8(),
    ),
    "gfloat E4M3": Peer(
        "gfloat",
        "gfloat",
        "as gfloat E2M1",
        "another format (E4M3); fp32 in, one uint64 per code, float64 out; one thread",
        _gfloat("format_info_ocp_e4m3", "hif8"),
    ),
    "ml_dtypes E4M3": Peer(
        "ml-dtypes",
        "ml_dtypes",
        "`x.astype(ml_dtypes.float8_e4m3fn)`, `.astype(ml_dtypes.bfloat16)`",
        "another format (E4M3); one thread",
        _ml_dtypes("float8_e4m3fn", "hif8"),
    ),
    "torchao MXFP8": Peer(
        "torchao",
        "torchao.prototype.mx_formats.mx_tensor",
        "`MXTensor.to_mx(x, torch.float8_e4m3fn, 32)`, `.dequantize(torch.bfloat16)`",
        "another format: E4M3 codes and an E8M0 scale per 32, where ours has one per row; eager torch operations",
        _mx(torch.float8_e4m3fn, "hif8-row"),
    ),
    "torch BF16": Peer(
        "torch",
        "torch",
        "`x.to(torch.bfloat16)`",
        "the same bits, but for those of NaN",
        {"bf16.round": lambda i: lambda: i.source.to(torch.bfloat16)},
    ),
    "ml_dtypes BF16": Peer(
        "ml-dtypes",
        "ml_dtypes",
        "`x.astype(ml_dtypes.bfloat16)`",
        "the same bits, but for those of NaN; one thread",
        {"bf16.round": _ml_dtypes_bf16},
    ),
}
