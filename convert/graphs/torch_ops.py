"""Placeholders for the ops of a graph while torch traces and the exporter optimizes it.

Nothing here computes: tracing sees shapes and dtypes alone. Each torch op is translated to a node of a private domain,
which no optimizer knows and so none changes; `nodes.py` turns these into what a graph holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor

__all__ = ["PLACEHOLDERS", "TorchOps", "torch_ops"]

PLACEHOLDERS: Final = "hfq.export"
"""Domain of the private nodes; no finished graph has one."""

_FLOAT: Final = "tensor(float)"
_BYTES: Final = "tensor(uint8)"


class TorchOps:
    """The ops, for modules that are traced, and their translations, for `torch.onnx.export`."""

    def __init__(self) -> None:
        self.translations: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.mark = self._define("Mark", _mark, _same, {"site": "STRING", "place": "STRING"})
        self.round = self._define("Round", _round, _same, {})
        self.hif4_qdq = self._define("Hif4Qdq", _hif4_qdq, _same, {"profile": "STRING", "headroom": "FLOATS"})
        self.hif8_qdq = self._define("Hif8Qdq", _hif8_qdq, _same, {"scale": "STRING", "saturate": "INT"})
        self.hif4_dequantize = self._define(
            "Hif4Dequantize", _hif4_dequantize, _weight, {"columns": "INT"}, (_BYTES, _BYTES)
        )
        self.hif8_dequantize = self._define(
            "Hif8Dequantize", _hif8_dequantize, _weight, {"columns": "INT"}, (_BYTES, _FLOAT)
        )
        self.hadamard = self._define("Hadamard", _hadamard, _first, {"block": "INT"}, (_FLOAT, _FLOAT))

    def _define(
        self,
        name: str,
        signature: Callable[..., Tensor],
        shape: Callable[..., Tensor],
        attributes: dict[str, str],
        inputs: tuple[str, ...] = (_FLOAT,),
    ) -> Callable[..., Tensor]:
        import onnx
        from onnxscript import values

        op = torch.library.custom_op(f"hfq::{name.lower()}", signature, mutates_args=())
        op.register_fake(shape)
        schema = onnx.defs.OpSchema
        onnx.defs.register_schema(
            schema(
                name,
                PLACEHOLDERS,
                1,
                inputs=[schema.FormalParameter(f"x{number}", kind) for number, kind in enumerate(inputs)],
                outputs=[schema.FormalParameter("y", _FLOAT)],
                attributes=[schema.Attribute(key, getattr(schema.AttrType, kind)) for key, kind in attributes.items()],
            )
        )
        domain = values.Opset(PLACEHOLDERS, 1)
        names = list(attributes)

        def translate(*arguments: Any) -> Any:
            tensors, rest = arguments[: len(inputs)], arguments[len(inputs) :]
            return getattr(domain, name)(*tensors, **dict(zip(names, rest, strict=True)))

        self.translations[getattr(torch.ops.hfq, name.lower()).default] = translate
        return cast(Callable[..., Tensor], op)


@functools.cache
def torch_ops() -> TorchOps:
    """The ops, registered with torch and onnx on first use."""
    return TorchOps()


def _never() -> Tensor:
    raise AssertionError("a placeholder has no values")


def _mark(x: Tensor, site: str, place: str) -> Tensor:
    return _never()


def _round(x: Tensor) -> Tensor:
    return _never()


def _hif4_qdq(x: Tensor, profile: str, headroom: list[float]) -> Tensor:
    return _never()


def _hif8_qdq(x: Tensor, scale: str, saturate: int) -> Tensor:
    return _never()


def _hif4_dequantize(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return _never()


def _hif8_dequantize(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return _never()


def _hadamard(x: Tensor, signs: Tensor, block: int) -> Tensor:
    return _never()


def _same(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _first(x: Tensor, signs: Tensor, block: int) -> Tensor:
    return torch.empty_like(x)


def _weight(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    return codes.new_empty((codes.shape[0], columns), dtype=torch.float32)
