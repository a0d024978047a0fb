"""Reading an expert's tensors one after another, each in memory of its own: digests, rounding, NaN and infinity."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from .bf16 import round_into, stored_floats
from .finite import NonFinite, find_non_finite
from .identity import TensorDigest
from .safetensors_file import SafetensorsFile, TensorEntry
from .witness_store import FileRecord

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch import Tensor

__all__ = ["ScannedTensor", "TensorReader"]

_CHUNK_BYTES: Final = 4 << 20  # a multiple of every element size


@dataclass(frozen=True, eq=False)
class ScannedTensor:
    """One tensor of the pass: canonical `name`, `dtype` as stored, `shape`, hex digests as in `TensorDigest`, and
    `bf16`, its values rounded to BF16 [shape]."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    exact_sha256: str
    bf16_sha256: str
    bf16: Tensor


class TensorReader:
    """Reads tensors of one file after another and feeds the digests."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._scratch = np.empty(_CHUNK_BYTES, dtype=np.uint8)
        self._file: SafetensorsFile
        self._file_hash: _Hash | None
        self._record: FileRecord | None

    def begin_file(self, file: SafetensorsFile, record: FileRecord | None, *, hashed: bool) -> None:
        """Go on with a file; what is known of it is in `record`, and its own SHA-256 is made if it is `hashed`."""
        self._file, self._record = file, record
        self._file_hash = hashlib.sha256() if hashed else None
        # Read again and not from memory: these are the bytes on disk, as for every tensor.
        self._feed_file(0, file.header_bytes)

    def file_sha256(self) -> str | None:
        """Of the file that is over."""
        return None if self._file_hash is None else self._file_hash.hexdigest()

    def pass_over(self, entry: TensorEntry) -> None:
        """Hash a tensor that is not the expert's."""
        self._feed_file(entry.begin, entry.end)

    def _feed_file(self, begin: int, end: int) -> None:
        if self._file_hash is None:
            return
        for offset in range(begin, end, _CHUNK_BYTES):
            view = self._scratch.data[: min(_CHUNK_BYTES, end - offset)]
            self._file.pread_into(view, offset)
            self._file_hash.update(view)

    def read(self, entry: TensorEntry, name: str) -> tuple[ScannedTensor, NonFinite | None]:
        """A tensor, and what it holds that is not a finite number; of a known one that is not looked for."""
        import torch

        known = None if self._record is None else self._record.tensors[entry.name]
        stored_bf16 = entry.dtype == "BF16"
        values = torch.empty(prod(entry.shape), dtype=torch.bfloat16)
        bits = values.view(torch.uint16).numpy()
        exact, rounded = hashlib.sha256(), hashlib.sha256()
        element = 4 if entry.dtype == "F32" else 2
        non_finite: NonFinite | None = None
        for offset in range(0, entry.size_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, entry.size_bytes - offset)
            target = bits[offset // element : (offset + size) // element]
            chunk = target.view(np.uint8) if stored_bf16 else self._scratch[:size]
            view = chunk.data
            self._file.pread_into(view, entry.begin + offset)
            running: list[Future[None]] = [] if known is not None else [self._pool.submit(exact.update, view)]
            if self._file_hash is not None:
                running.append(self._pool.submit(self._file_hash.update, view))
            stored = None if stored_bf16 else stored_floats(chunk, entry.dtype)
            if stored is not None:
                round_into(stored, target)
                if known is None:
                    rounded.update(target.data)
            more = None if known is not None else find_non_finite(target, entry.shape, offset // element, stored)
            if more is not None:
                non_finite = more if non_finite is None else non_finite.and_more(more.count)
            for future in running:
                future.result()
        if known is None:
            exact_sha256 = exact.hexdigest()
            found = exact_sha256 if stored_bf16 else rounded.hexdigest()
            known = TensorDigest(entry.dtype, entry.shape, exact_sha256, found)
        tensor = ScannedTensor(name, entry.dtype, entry.shape, known.exact, known.bf16, values.reshape(entry.shape))
        return tensor, non_finite
