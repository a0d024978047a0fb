"""The boxes at the top level of an MP4 or MOV (ISO 14496-12, 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["TopBox", "identity", "read_user_box", "top_level"]


@dataclass(frozen=True, slots=True)
class TopBox:
    """A box: bytes `start` to `end` of the file."""

    kind: bytes
    start: int
    end: int


def top_level(file: BinaryIO, size_bytes: int) -> Iterator[TopBox]:
    """The boxes in order; what follows the last one, such as padding, is none."""
    position = 0
    while position + 8 <= size_bytes:
        file.seek(position)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            (size,) = struct.unpack(">Q", header[8:])
        end = size_bytes if size == 0 else position + size
        if end > size_bytes or end < position + 8:
            return
        yield TopBox(kind, position, end)
        position = end


def identity(file: BinaryIO, box: TopBox) -> bytes:
    """The 16 bytes that say what a `uuid` box is."""
    file.seek(box.start)
    header = file.read(32)
    length = 16 if header[:4] == b"\0\0\0\1" else 8
    return header[length : length + 16]


def read_user_box(file: BinaryIO, size_bytes: int, wanted: bytes, limit: int) -> bytes | None:
    """The body, behind the identity, of the first `uuid` box of an identity; None without one of at most `limit`."""
    for box in top_level(file, size_bytes):
        if box.kind == b"uuid" and identity(file, box) == wanted and box.end - box.start <= limit:
            file.seek(box.start)
            data = file.read(box.end - box.start)
            return data[data.index(wanted) + 16 :]
    return None
