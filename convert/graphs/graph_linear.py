"""A quantized linear as it is traced: the steps of `QuantizedLinear` in float32, with placeholders for its ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfq.convert.ops import ColumnsOp, LowRankOp, MaskOp, Op, RotateOp
from hfq.convert.site_ops import SiteOps
from hfq.formats.hif4_spec import CODE_BYTES, GROUP

from .torch_ops import TorchOps

__all__ = ["GraphLinear", "op_names"]


def op_names(ops: Sequence[Op]) -> list[dict[str, str]]:
    """For each op of a site, its tensors' names inside the linear (`mask` -> `mask`, of a second mask `mask_2`)."""
    seen: dict[str, int] = {}
    named = []
    for op in ops:
        kinds = {MaskOp: ("mask",), RotateOp: ("signs",), ColumnsOp: ("columns", "rest", "kept")}
        locals_ = kinds.get(type(op), ("down", "up"))
        count = seen[locals_[0]] = seen.get(locals_[0], 0) + 1
        named.append({name: name if count == 1 else f"{name}_{count}" for name in locals_})
    return named


class GraphLinear(nn.Module):
    """The traced twin of a `QuantizedLinear`.

    Its buffers have no values; they stand for the initializers `SITE.NAME` of the graph (see `payload`). Made under a
    FakeTensorMode, it takes no memory.

    Args:
        site: original Wan name.
        sizes: (out_features, in_features).
        ops: of the site.
        weight: the recipe's `weight` table, normalised.
        torch_ops: see there.
    """

    def __init__(
        self, site: str, sizes: tuple[int, int], ops: SiteOps, weight: Mapping[str, Any], torch_ops: TorchOps
    ) -> None:
        super().__init__()
        self.site, self._do, self._activation = site, torch_ops, dict(ops.activation)
        self._format = str(weight["format"])
        self._headroom = [1.0] if ops.clip is None else list(ops.clip.headroom)
        out_features, width = sizes
        self._steps: list[tuple[Op, dict[str, str]]] = []
        for op, names in zip(ops.ops, op_names(ops.ops), strict=True):
            self._steps.append((op, names))
            for kind, name in names.items():
                shape, dtype = _outline(op, kind, out_features, width)
                self.register_buffer(name, torch.empty(shape, dtype=dtype))
            width -= len(op.columns) if isinstance(op, ColumnsOp) else 0
        self._columns = width
        if self._format == "hif4":
            groups = -(-width // GROUP)
            self.register_buffer("w_codes", torch.empty(out_features, groups * CODE_BYTES, dtype=torch.uint8))
            self.register_buffer("w_scale", torch.empty(out_features, groups, 4, dtype=torch.uint8))
        else:
            self.register_buffer("w_codes", torch.empty(out_features, width, dtype=torch.uint8))
            self.register_buffer("w_scale", torch.empty((out_features, 1) if weight["scale"] == "row" else ()))
        self.register_buffer("bias", torch.empty(out_features))

    def _held(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        do = self._do
        x, branches = do.round(do.mark(x, self.site, "input")), []
        for op, names in self._steps:
            branch = self._branch(op, names, x)
            if branch is not None:
                branches.append(branch)
            x = self._on_activation(op, names, x)
        x = do.mark(self._quantize(x), self.site, "qdq")
        dequantize = do.hif4_dequantize if self._format == "hif4" else do.hif8_dequantize
        weight = dequantize(self._held("w_codes"), self._held("w_scale"), self._columns)
        y = do.mark(F.linear(x, weight), self.site, "product") + self._held("bias")
        for branch in branches:
            y = y + branch
        return do.mark(y, self.site, "output")

    def _quantize(self, x: Tensor) -> Tensor:
        match self._activation["format"]:
            case "hif4":
                return self._do.hif4_qdq(x, self._activation["profile"], self._headroom)
            case "hif8":
                return self._do.hif8_qdq(x, self._activation["scale"], int(self._activation["saturate"]))
        return self._do.round(x)

    def _on_activation(self, op: Op, names: Mapping[str, str], x: Tensor) -> Tensor:
        match op:
            case MaskOp():
                return x * self._held(names["mask"])
            case RotateOp():
                return self._do.hadamard(x, self._held(names["signs"]), op.block)
            case ColumnsOp():
                return x.index_select(-1, self._held(names["rest"]))
        return x

    def _branch(self, op: Op, names: Mapping[str, str], x: Tensor) -> Tensor | None:
        match op:
            case ColumnsOp():
                chosen = self._do.round(x.index_select(-1, self._held(names["columns"])))
                return F.linear(chosen, self._held(names["kept"]))
            case LowRankOp():
                return F.linear(F.linear(x, self._held(names["down"])), self._held(names["up"]))
        return None


def _outline(op: Op, kind: str, out_features: int, width: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype, as computed with, of one of an op's tensors."""
    match op, kind:
        case (ColumnsOp(), "kept"):
            return (out_features, len(op.columns)), torch.float32
        case (ColumnsOp(), _):
            return tuple(getattr(op, kind).shape), torch.int32
        case (LowRankOp(), _):
            return tuple(getattr(op, kind).shape), torch.float32
    return (width,), torch.float32
