"""A site's ops as a delta lists them, read and checked: on weight and input, stored codes, clip, quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfq.schema.errors import (
    InconsistentDeltaError,
    MaskValueError,
    MissingTensorError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

from .clip import Clip
from .ops import ColumnsOp, LowRankOp, MaskOp, Op, RotateOp

__all__ = ["SiteOps", "StoredCodes", "read_ops"]


@dataclass(frozen=True)
class StoredCodes:
    """Weight codes that are stored because they cannot be re-derived.

    Attributes:
        codes: uint8 [bytes], see `hfq.convert.code_difference`.
        scale: uint8 [bytes], likewise for the scale words; None when the words are those of plain rounding.
    """

    codes: Tensor
    scale: Tensor | None


@dataclass
class SiteOps:
    """What a site does, in order.

    Attributes:
        ops: on weight and input.
        codes: stored weight codes, or None when the weight is rounded plainly.
        clip: headroom per timestep bin, or None.
        activation: options of the activation quantizer.
    """

    ops: list[Op] = field(default_factory=list)
    codes: StoredCodes | None = None
    clip: Clip | None = None
    activation: Mapping[str, Any] = field(default_factory=dict)


class _State:
    """A site's tensors by local name, each to be consumed once."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self._state, self._where, self._left = state, where, set(state)

    def take(self, name: str, dtype: torch.dtype, shape: Sequence[int | None]) -> Tensor:
        """A tensor of this dtype and shape; None stands for any size.

        Raises:
            MissingTensorError, InconsistentDeltaError, ShapeMismatchError
        """
        where = f"{self._where}: {name}"
        if name not in self._state:
            raise MissingTensorError("a tensor that an op needs is not there", where=where)
        if name not in self._left:
            raise InconsistentDeltaError("two ops use one tensor", where=where)
        self._left.remove(name)
        tensor = self._state[name]
        fits = len(tensor.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise ShapeMismatchError(
                "not a tensor that this op of this site can have",
                where=where,
                expected=f"{_name(dtype)} [{sizes}]",
                found=f"{_name(tensor.dtype)} {list(tensor.shape)}",
            )
        return tensor

    def refuse_rest(self) -> None:
        """Raises UnexpectedTensorError: a tensor that no op consumes."""
        if self._left:
            raise UnexpectedTensorError("a state tensor that no op consumes", where=f"{self._where}: {min(self._left)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_ops(
    ops: Sequence[Mapping[str, Any]], state: Mapping[str, Tensor], sizes: tuple[int, int], where: str
) -> SiteOps:
    """Build a site's ops from a delta.

    Args:
        ops: the site's `ops`; the last one, and no other, is `qdq`.
        state: the site's tensors by local name.
        sizes: (out_features, in_features) of the linear.

    Raises:
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError, MaskValueError, InconsistentDeltaError
    """
    kinds = [op["op"] for op in ops]
    if kinds.count("qdq") != 1 or kinds[-1] != "qdq":
        raise InconsistentDeltaError("the ops do not end with one qdq", where=where, found=", ".join(kinds))
    tensors, found = _State(state, where), SiteOps()
    out_features, width = sizes
    for op in ops:
        done = found.codes is not None or found.clip is not None
        match op["op"]:
            case "codes" if not done:
                scale = None if op["scale"] is None else tensors.take(op["scale"], torch.uint8, (None,))
                found.codes = StoredCodes(tensors.take(op["codes"], torch.uint8, (None,)), scale)
            case "clip" if found.clip is None:
                found.clip = Clip.from_op(op, where)
            case "qdq":
                found.activation = {key: value for key, value in op.items() if key != "op"}
            case _ if done:
                raise InconsistentDeltaError(
                    "an op on the weight after its codes or the clip", where=where, found=", ".join(kinds)
                )
            case _:
                built = _read_op(op, tensors, out_features, width, where)
                width -= len(built.columns) if isinstance(built, ColumnsOp) else 0
                found.ops.append(built)
    tensors.refuse_rest()
    return found


def _read_op(op: Mapping[str, Any], tensors: _State, out_features: int, width: int, where: str) -> Op:
    """One op on weight and input.

    Raises:
        as `read_ops`
    """
    match op["op"]:
        case "mask":
            mask = tensors.take(op["tensor"], torch.float32, (width,))
            return MaskOp(_checked_mask(mask, f"{where}: {op['tensor']}"))
        case "rotate":
            if width % op["block"]:
                raise InconsistentDeltaError(
                    "a rotation that does not fit the width", where=where, expected=f"a divisor of {width}",
                    found=op["block"],
                )  # fmt: skip
            return RotateOp(int(op["block"]), int(op["seed"]), width)
        case "columns":
            columns = tensors.take(op["tensor"], torch.int32, (None,))
            return ColumnsOp(_checked_columns(columns, width, f"{where}: {op['tensor']}"), width)
        case _:
            down = tensors.take(op["down"], torch.bfloat16, (None, width))
            up = tensors.take(op["up"], torch.bfloat16, (out_features, down.shape[0]))
            for name, factor in ((op["down"], down), (op["up"], up)):
                if not bool(torch.isfinite(factor).all()):
                    raise MaskValueError(
                        "a low-rank factor that is not finite", where=f"{where}: {name}", expected="finite numbers"
                    )
            return LowRankOp(down, up)


def _checked_mask(mask: Tensor, where: str) -> Tensor:
    # Subnormal numbers are flushed to zero on some devices: a mask of them would divide by zero there.
    good = torch.isfinite(mask) & (mask >= torch.finfo(torch.float32).smallest_normal)
    if not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise MaskValueError(
            "a mask value that cannot be divided by",
            where=f"{where}[{first}]",
            expected="a positive normal number",
            found=float(mask[first]),
        )
    return mask


def _checked_columns(columns: Tensor, width: int, where: str) -> Tensor:
    rising = bool((columns[1:] > columns[:-1]).all()) if len(columns) > 1 else True
    inside = len(columns) > 0 and int(columns[0]) >= 0 and int(columns[-1]) < width and len(columns) < width
    if not (rising and inside):
        expected = f"rising, from 0 to {width - 1}"
        raise InconsistentDeltaError("not columns of this linear", where=where, expected=expected)
    return columns
