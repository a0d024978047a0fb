"""What a pass over an expert works with: files, tensors and chunks on their way, and memory that is used again."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from .bf16 import round_into, stored_floats
from .finite import NonFinite, find_non_finite
from .identity import TensorDigest
from .safetensors_file import SafetensorsFile, TensorEntry

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["CHUNK_BYTES", "FED_BYTES", "Buffers", "Chunk", "FilePass", "Lane", "Order", "TensorPass"]

CHUNK_BYTES: Final = 2 << 20  # a multiple of every element size; fits a core's cache with its neighbour
FED_BYTES: Final = 4 << 20  # where tensors are fed: every call costs Python, too

Bytes = npt.NDArray[np.uint8]
Order = tuple[int, int]
"""Place in the pass: number of the file, first byte."""


@dataclass(eq=False)
class TensorPass:
    """One tensor of the pass.

    Attributes:
        name: canonical.
        entry: place, dtype and shape in its file.
        order: place in the pass.
        digest: known beforehand, or set when the last chunk is hashed.
        values: its values rounded to BF16, as bits [elements]; while it is worked on, else None.
        feed: takes the same bits a few rows at a time, in order; such a tensor is never held as a whole.
        refuse: called with the first NaN or infinity that is found, and raises; None: what there is, is noted.
        non_finite: known beforehand, or what has been found.
        result: what the work returned.
    """

    name: str
    entry: TensorEntry
    order: Order
    digest: TensorDigest | None = None
    values: npt.NDArray[np.uint16] | None = None
    feed: Callable[[npt.NDArray[np.uint16]], None] | None = None
    refuse: Callable[[NonFinite], None] | None = None
    non_finite: NonFinite | None = None
    result: Any = None
    buffer: Bytes | None = None
    users: int = 0
    left: int = 0
    exact: _Hash = field(default_factory=hashlib.sha256)
    rounded: _Hash = field(default_factory=hashlib.sha256)
    chunks: deque[Chunk] = field(default_factory=deque)

    @property
    def rounded_bytes(self) -> int:
        """Size in BF16."""
        return self.entry.size_bytes // 2 if self.entry.dtype == "F32" else self.entry.size_bytes

    @property
    def row_bytes(self) -> int:
        """Size of a row, along the first axis, as stored."""
        shape = self.entry.shape
        return self.entry.size_bytes // shape[0] if shape and shape[0] else self.entry.size_bytes

    def digest_chunk(self, chunk: Chunk) -> None:
        """Hash the next chunk as stored and rounded, and look for NaN and infinity; who works on the tensor gets its
        values. Of a tensor that is known nothing is hashed, and nothing looked for.

        Raises:
            what `refuse` raises
        """
        assert chunk.data is not None
        is_known = self.digest is not None
        if not is_known:
            self.exact.update(chunk.data.data)
        element = 4 if self.entry.dtype == "F32" else 2
        first, count = (chunk.order[1] - self.entry.begin) // element, chunk.size // element
        if self.entry.dtype == "BF16":
            stored, target = None, chunk.data.view(np.uint16)
        else:
            stored = stored_floats(chunk.data, self.entry.dtype)
            target = np.empty(count, np.uint16) if self.values is None else self.values[first : first + count]
            round_into(stored, target)
            if not is_known:
                self.rounded.update(target.data)
        if not is_known:
            self._look(find_non_finite(target, self.entry.shape, first, stored))
        if self.feed is not None:
            self.feed(target)

    def _look(self, found: NonFinite | None) -> None:
        if found is None:
            return
        if self.refuse is not None:
            self.refuse(found)
        self.non_finite = found if self.non_finite is None else self.non_finite.and_more(found.count)

    def end(self) -> None:
        """Set the digest, when all chunks have been hashed."""
        if self.digest is None:
            exact = self.exact.hexdigest()
            rounded = exact if self.entry.dtype == "BF16" else self.rounded.hexdigest()
            self.digest = TensorDigest(self.entry.dtype, self.entry.shape, exact, rounded)


@dataclass(eq=False)
class FilePass:
    """One file of the pass.

    Attributes:
        file: open.
        tensors: those of the expert, in file order.
        hashed: whether the file's SHA-256 is wanted.
        sha256: of the whole file, when the pass is over.
    """

    file: SafetensorsFile
    tensors: Sequence[TensorPass]
    hashed: bool
    sha256: str | None = None
    hash_state: _Hash = field(default_factory=hashlib.sha256)
    pending: deque[Chunk] = field(default_factory=deque)


@dataclass(eq=False)
class Lane:
    """Chunks of one file that are read one after another: all of them where the file is hashed, else a share.

    Attributes:
        chunks: not read yet.
        is_read: by a thread, now.
        held: chunks that are being read, or are there because somebody needs them.
    """

    owner: FilePass
    chunks: deque[Chunk]
    is_read: bool = False
    held: int = 0


@dataclass(eq=False)
class Chunk:
    """A part of a file: at most `FED_BYTES`, of one tensor or of none. `data` is there while somebody needs it;
    `in_file` says that it has been hashed as a part of its file."""

    tensor: TensorPass | None
    order: Order
    size: int
    data: Bytes | None = None
    buffer: Bytes | None = None
    users: int = 0
    in_file: bool = False
    lane: Lane = field(init=False)

    @property
    def owner(self) -> FilePass:
        """Its file."""
        return self.lane.owner


class Buffers:
    """Memory that is used again and again: fresh memory costs half as much as hashing what is read into it."""

    def __init__(self, size: int, count: int) -> None:
        self._size, self._unmade, self._free = size, count, list[Bytes]()

    def __bool__(self) -> bool:
        return bool(self._free) or self._unmade > 0

    def take(self) -> Bytes:
        if self._free:
            return self._free.pop()
        self._unmade -= 1
        raw = np.empty(self._size + 64, dtype=np.uint8)
        # The alignment of a weight decides how a library divides a product, and so its last bits.
        start = -raw.ctypes.data % 64
        return raw[start : start + self._size]

    def give(self, buffer: Bytes) -> None:
        self._free.append(buffer)
