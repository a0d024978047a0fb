"""The weights of a graph as they come, one tensor after the other, in a file beside it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from hfq.convert.tensor_bytes import tensor_bytes

__all__ = ["WeightsFile"]

_ALIGNMENT: Final = 4096
_SMALL: Final = 1 << 16
_SMALL_ALIGNMENT: Final = 64


@functools.cache
def _dtypes() -> dict[torch.dtype, Any]:
    import onnx_ir as ir

    return {
        torch.uint8: ir.DataType.UINT8,
        torch.int32: ir.DataType.INT32,
        torch.bfloat16: ir.DataType.BFLOAT16,
        torch.float32: ir.DataType.FLOAT,
    }


@dataclass(frozen=True)
class _Span:
    """Where a tensor lies in the file."""

    offset: int
    size_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightsFile:
    """Writes tensors, and makes a graph refer to them, so that a graph of any size takes the memory of one tensor.

    Args:
        path: the file to make.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size_bytes = path, 0
        self._spans: dict[str, _Span] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> WeightsFile:
        self._file = open(self.path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor."""
        assert self._file is not None
        data = tensor_bytes(tensor)
        # Whole pages, so that a runtime can map large tensors instead of reading them.
        alignment = _ALIGNMENT if len(data) >= _SMALL else _SMALL_ALIGNMENT
        offset = -(-self.size_bytes // alignment) * alignment
        self._file.seek(offset)
        self._file.write(data)
        self.size_bytes = offset + len(data)
        self._spans[name] = _Span(offset, len(data), tensor.dtype, tuple(tensor.shape))

    def attach(self, graph: Any) -> None:
        """Give every initializer without values its tensor; BF16 where the graph computes in float32 is cast there.

        Args:
            graph: an onnx_ir graph.
        """
        import onnx_ir as ir

        first = graph[0]
        for name, span in self._spans.items():
            value, dtype = graph.initializers[name], _dtypes()[span.dtype]
            assert tuple(value.shape.numpy()) == span.shape, f"{name}: {value.shape} is not {list(span.shape)}"
            if value.dtype != dtype:
                value = _cast_up(graph, first, value, dtype)
            value.const_value = ir.ExternalTensor(
                self.path.name,
                span.offset,
                span.size_bytes,
                dtype,
                shape=ir.Shape(span.shape),
                name=name,
                base_dir=self.path.parent,
            )
        empty = [name for name, value in graph.initializers.items() if value.const_value is None]
        assert not empty, f"weights without values: {empty[:5]}"


def _cast_up(graph: Any, first: Any, value: Any, dtype: Any) -> Any:
    """Store an initializer in another dtype and cast it before the first node; returns the stored one."""
    import onnx_ir as ir

    name = value.name
    stored = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
    wide = cast.outputs[0]
    wide.name, wide.shape, wide.type = f"{name}/float", value.shape, ir.TensorType(ir.DataType.FLOAT)
    value.replace_all_uses_with(wide)
    del graph.initializers[name]
    graph.insert_before(first, cast)
    graph.initializers[name] = stored
    return stored
