"""Writing safetensors files: the same tensors give the same bytes, and a killed writer leaves no half of a file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import torch
from torch import Tensor

from hfq.schema.atomic import atomic_file
from hfq.schema.errors import UsageError

from .tensor_bytes import TORCH_DTYPES, tensor_bytes

__all__ = ["SafetensorsWriter", "TensorPlan", "write_safetensors"]

_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor before its values are known: what the header needs."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class SafetensorsWriter:
    """Writes planned tensors one at a time, in the order of the plan; the file appears, whole, when the block ends.

    After the block, `sha256` is the hex digest of the file and `size_bytes` its size.

    Args:
        path: replaced when it exists.
        plans: in the order of the bytes. A reader that maps the file wants large elements first.
        metadata: the header's strings.

    Raises:
        UsageError: a dtype that the format does not have, an impossible name or one that occurs twice; on `write`, not
            the planned tensor; at the end, a planned tensor that was not written.
    """

    def __init__(
        self, path: str | os.PathLike[str], plans: Sequence[TensorPlan], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._path = Path(path)
        self._plans = list(plans)
        self._header = _header(plans, metadata or {})
        self._digest = hashlib.sha256()
        self._written = 0
        self._stack = ExitStack()
        self._file: BinaryIO
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what has been written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> SafetensorsWriter:
        self._file = self._stack.enter_context(atomic_file(self._path))
        self._put(self._header)
        return self

    def write(self, name: str, value: Tensor) -> None:
        """Write the next planned tensor: `value` of the planned dtype and shape, on any device."""
        plan = self._plans[self._written] if self._written < len(self._plans) else None
        if plan != TensorPlan(name, value.dtype, tuple(value.shape)):
            raise UsageError(
                "not the tensor that was planned",
                where=f"{self._path}: {name}",
                expected=plan or "no more tensors",
                found=f"{value.dtype} {tuple(value.shape)}",
            )
        self._written += 1
        self._put(tensor_bytes(value))

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.size_bytes += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._written < len(self._plans):
            error = UsageError(
                "a planned tensor was not written", where=f"{self._path}: {self._plans[self._written].name}"
            )
            self._stack.__exit__(UsageError, error, None)
            raise error
        self._stack.__exit__(kind, value, trace)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write `tensors` to `path`, atomically, and return the hex SHA-256 of the file.

    The bytes depend on names, dtypes, shapes, values and `metadata` alone: tensors stand in the order of element size
    (largest first, so that each is aligned to its own elements), then of name. `tensors` may be lazy: each value is
    asked for twice and held one at a time.

    Raises:
        UsageError: a dtype that the format does not have, or an impossible name.
    """
    plans = []
    for name in tensors:
        value = tensors[name]
        plans.append(TensorPlan(name, value.dtype, tuple(value.shape)))
    plans.sort(key=lambda plan: (-plan.dtype.itemsize, plan.name.encode(errors="surrogatepass")))
    with SafetensorsWriter(path, plans, metadata) as writer:
        for plan in plans:
            writer.write(plan.name, tensors[plan.name])
    return writer.sha256


def _header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    offset = 0
    for plan in plans:
        possible = plan.name and plan.name != "__metadata__" and plan.name.isprintable()
        if plan.dtype not in _NAMES or not possible or plan.name in header:
            raise UsageError("a tensor that cannot be stored", where=repr(plan.name), found=plan.dtype)
        end = offset + plan.size_bytes
        header[plan.name] = {"dtype": _NAMES[plan.dtype], "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
