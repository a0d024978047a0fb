"""The dtypes of safetensors files as torch has them, and the bytes of a tensor in either direction.

Apart from the reader, which needs no torch: importing it takes longer than hashing a gigabyte.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["TORCH_DTYPES", "empty_bytes", "tensor_bytes", "tensor_from_bytes"]

TORCH_DTYPES: Final = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
"""The dtypes that this package reads into tensors and writes."""


def empty_bytes(size: int) -> Tensor:
    """Unset memory: uint8 [size]."""
    return torch.empty(size, dtype=torch.uint8)


def tensor_from_bytes(data: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Reinterpret uint8 [bytes] as a tensor of a safetensors dtype and a shape; no copy."""
    return data.view(TORCH_DTYPES[dtype]).reshape(shape)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major, in the machine's byte order (little-endian wherever this package runs); no copy
    when it is contiguous and on the CPU."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
