"""One pass over an expert: every byte of its files read once, in file order, hashed and rounded on the way.

Memory: one tensor in BF16 plus a few megabytes. Two helper threads hash (hashlib lets go of the interpreter); the
results do not depend on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from .bf16 import round_into
from .identity import FileWitness, Identity, TensorDigest
from .progress import Progress
from .safetensors_file import SafetensorsFile, TensorEntry

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Scan", "ScanPart", "ScannedTensor"]

_CHUNK_BYTES: Final = 4 << 20  # a multiple of every element size


@dataclass(frozen=True, eq=False)
class ScannedTensor:
    """One tensor of the pass: canonical `name`, `dtype` as stored, `shape`, hex digests as in `TensorDigest`, and
    `bf16`, its values rounded to BF16 [shape], in memory of its own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    exact_sha256: str
    bf16_sha256: str
    bf16: Tensor


@dataclass(frozen=True)
class ScanPart:
    """One file of the pass: the open file, its name for the witness, and stored name -> canonical name of the tensors
    that belong to the expert."""

    file: SafetensorsFile
    witness_name: str
    names: Mapping[str, str]


class Scan(Iterator[ScannedTensor]):
    """The iterator that `Expert.scan` returns. After its last tensor, `identity` and `witnesses` are there.

    A read that comes back short, an I/O error or a file that changes under the pass ends it with an error; a pass that
    ended early has no identity.
    """

    def __init__(
        self,
        parts: Sequence[ScanPart],
        label: str,
        progress: Progress,
        hash_files: bool,
        remember: Callable[[Identity], None],
    ) -> None:
        self._parts = parts
        self._label = label
        self._progress = progress
        self._hash_files = hash_files
        self._remember = remember
        self._identity: Identity | None = None
        self._witnesses: list[FileWitness] = []
        self._steps = self._run()

    def __next__(self) -> ScannedTensor:
        return next(self._steps)

    @property
    def finished(self) -> bool:
        """Whether every tensor has been read."""
        return self._identity is not None

    @property
    def identity(self) -> Identity:
        """The expert's identity.

        Raises:
            RuntimeError: before the last tensor.
        """
        if self._identity is None:
            raise RuntimeError("the identity is known when every tensor has been read")
        return self._identity

    @property
    def witnesses(self) -> tuple[FileWitness, ...]:
        """Size and SHA-256 of each file, in the order of their names; empty with `hash_files=False`.

        Raises:
            RuntimeError: before the last tensor.
        """
        if self._identity is None:
            raise RuntimeError("the file hashes are known when every tensor has been read")
        return tuple(self._witnesses)

    def run(self) -> Identity:
        """Read what is left, keep nothing of it but the digests, and return the identity."""
        for _ in self:
            pass
        return self.identity

    def close(self) -> None:
        """Give the pass up; nothing more comes."""
        self._steps.close()

    def _run(self) -> Generator[ScannedTensor, None, None]:
        digests: dict[str, TensorDigest] = {}
        total = sum(part.file.size_bytes for part in self._parts)
        self._progress.start(self._label, total, "B")
        try:
            with ThreadPoolExecutor(2, thread_name_prefix="hfq-hash") as pool:
                reader = _Reader(pool, self._hash_files)
                for part in self._parts:
                    reader.begin_file(part.file)
                    self._progress.advance(part.file.header_bytes)
                    for entry in part.file.tensors.values():
                        name = part.names.get(entry.name)
                        if name is None:
                            reader.pass_over(entry)
                        else:
                            scanned = reader.read(entry, name)
                            digests[name] = TensorDigest(
                                entry.dtype, entry.shape, scanned.exact_sha256, scanned.bf16_sha256
                            )
                            yield scanned
                            del scanned  # the consumer decides how long a tensor lives
                        self._progress.advance(entry.size_bytes)
                    part.file.check_unchanged()
                    if self._hash_files:
                        self._witnesses.append(
                            FileWitness(part.witness_name, part.file.size_bytes, reader.file_sha256())
                        )
        finally:
            self._progress.finish()
        self._identity = Identity.of(digests)
        self._remember(self._identity)


class _Reader:
    """Reads tensors of one file after another and feeds the digests."""

    def __init__(self, pool: ThreadPoolExecutor, hash_files: bool) -> None:
        self._pool = pool
        self._hash_files = hash_files
        self._scratch = np.empty(_CHUNK_BYTES, dtype=np.uint8)
        self._file: SafetensorsFile
        self._file_hash: _Hash

    def begin_file(self, file: SafetensorsFile) -> None:
        self._file = file
        self._file_hash = hashlib.sha256()
        if self._hash_files:
            # Read again and not from memory: these are the bytes on disk, as for every tensor.
            self._feed_file(0, file.header_bytes)

    def file_sha256(self) -> str:
        return self._file_hash.hexdigest()

    def pass_over(self, entry: TensorEntry) -> None:
        """Hash a tensor that is not the expert's."""
        if self._hash_files:
            self._feed_file(entry.begin, entry.end)

    def _feed_file(self, begin: int, end: int) -> None:
        for offset in range(begin, end, _CHUNK_BYTES):
            view = self._scratch.data[: min(_CHUNK_BYTES, end - offset)]
            self._file.pread_into(view, offset)
            self._file_hash.update(view)

    def read(self, entry: TensorEntry, name: str) -> ScannedTensor:
        stored_bf16 = entry.dtype == "BF16"
        values = torch.empty(prod(entry.shape), dtype=torch.bfloat16)
        bits = values.view(torch.uint16).numpy()
        exact, rounded = hashlib.sha256(), hashlib.sha256()
        element = 4 if entry.dtype == "F32" else 2
        for offset in range(0, entry.size_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, entry.size_bytes - offset)
            target = bits[offset // element : (offset + size) // element]
            chunk = target.view(np.uint8) if stored_bf16 else self._scratch[:size]
            view = chunk.data
            self._file.pread_into(view, entry.begin + offset)
            running: list[Future[None]] = [self._pool.submit(exact.update, view)]
            if self._hash_files:
                running.append(self._pool.submit(self._file_hash.update, view))
            if not stored_bf16:
                round_into(chunk.view(np.float16) if entry.dtype == "F16" else chunk.view(np.float32), target)
                rounded.update(target.data)
            for future in running:
                future.result()
        exact_sha256 = exact.hexdigest()
        bf16_sha256 = exact_sha256 if stored_bf16 else rounded.hexdigest()
        return ScannedTensor(name, entry.dtype, entry.shape, exact_sha256, bf16_sha256, values.reshape(entry.shape))
