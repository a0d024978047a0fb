"""Safetensors files: a strict reader for files from anywhere, and a writer that gives the same bytes every time.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes. The reader trusts nothing:
every limit is checked before memory is taken, and the tensors must tile the data exactly, so that no byte of the file
is outside the header and the tensors. Bytes are read with `pread` from a descriptor that stays open: nothing is mapped,
so a file that shrinks under us is an error and not a signal.

Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from hfq.schema.documents import parse_json
from hfq.schema.errors import (
    MalformedFileError,
    MissingPathError,
    ShapeMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPE_BITS", "MAX_HEADER_BYTES", "FileStamp", "SafetensorsFile", "TensorEntry"]

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""

MAX_TENSORS: Final = 100_000
"""A Wan expert has under 1,500 tensors, a delta of two experts under 10,000."""

_MAX_COMMAS: Final = 4_000_000
_MAX_NAME_LENGTH: Final = 1_024
_MAX_DIMENSIONS: Final = 16
_MAX_EXTENT: Final = 2**48
_HASH_BYTES: Final = 4 << 20

DTYPE_BITS: Final = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Every dtype of the format, with the bits of one element."""

_PICKLE_SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes as stored."""
        return self.end - self.begin


@dataclass(frozen=True)
class FileStamp:
    """What says that a file is still the same one: bytes, times in ns, and where it is."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int


class SafetensorsFile:
    """An open safetensors file whose header has been checked.

    Attributes:
        path: as given.
        tensors: name -> entry, in the order of the bytes.
        metadata: the `__metadata__` strings, empty when absent.
        size_bytes: of the whole file.
        header_bytes: offset of the first tensor byte (8 + header length).
        stamp: size, times and place at opening.

    Raises:
        MissingPathError: no such file, or a link to nothing.
        UnreadableFileError: a directory, FIFO, socket or device, or no permission.
        UnsupportedModelError: a pickle or a GGUF file.
        TruncatedFileError, TrailingBytesError: the file is shorter or longer than its header says.
        TooLargeError: a header over the format's limit, or of more parts than any honest one has.
        DuplicateKeyError: a name that occurs twice.
        UnsupportedDtypeError: a dtype that the format does not have.
        ShapeMismatchError: dtype and shape do not make the tensor's bytes.
        MalformedFileError: anything else: no JSON, ill-typed fields, overlapping tensors, holes, impossible names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor = _open_regular(self.path)
        try:
            status = os.fstat(self._descriptor)
            self.size_bytes = status.st_size
            self.stamp = _stamp(status)
            header = self._read_header()
            self.header_bytes = 8 + len(header)
            self.metadata, self.tensors = _parse_header(header, self.size_bytes, str(self.path))
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> bytes:
        where = str(self.path)
        head = self._read_some(0, min(9, self.size_bytes))
        _refuse_other_formats(self.path, head)
        if len(head) < 8:
            raise TruncatedFileError(
                "not even a header length", where=where, expected="8 bytes or more", found=len(head)
            )
        (length,) = struct.unpack("<Q", head[:8])
        if length > MAX_HEADER_BYTES:
            raise TooLargeError(
                "header too large, or not a safetensors file",
                where=where,
                expected=f"at most {MAX_HEADER_BYTES} bytes",
                found=length,
            )
        if 8 + length > self.size_bytes:
            raise TruncatedFileError(
                "the file ends inside its header",
                where=where,
                expected=f"{8 + length} bytes or more",
                found=self.size_bytes,
            )
        return self._read_some(8, length)

    def _read_some(self, offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        self.pread_into(memoryview(buffer), offset)
        return bytes(buffer)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from file offset `offset`.

        Raises:
            TruncatedFileError: the file ended before the buffer was full.
            UnreadableFileError: an I/O error, or the file is closed.
        """
        if self._descriptor < 0:
            raise UnreadableFileError("the checkpoint is closed", where=self.path)
        view = buffer.cast("B")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise UnreadableFileError("cannot be read", where=self.path, found=error.strerror) from error
            if count == 0:
                raise TruncatedFileError(
                    "the file became shorter while it was read",
                    where=self.path,
                    expected=f"{len(view) - done} more bytes at offset {offset + done}",
                )
            done += count

    def sha256(self) -> str:
        """Hex SHA-256 of the whole file, read through the descriptor that the tensors come from."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(self.size_bytes, _HASH_BYTES)))
        for offset in range(0, self.size_bytes, _HASH_BYTES):
            part = buffer[: min(_HASH_BYTES, self.size_bytes - offset)]
            self.pread_into(part, offset)
            digest.update(part)
        return digest.hexdigest()

    def read_bytes(self, name: str) -> Tensor:
        """The bytes of a tensor as stored: uint8 [size_bytes], in memory of its own."""
        from .tensor_bytes import empty_bytes

        entry = self.tensors[name]
        data = empty_bytes(entry.size_bytes)
        self.pread_into(data.numpy().data, entry.begin)
        return data

    def read(self, name: str) -> Tensor:
        """A tensor in its stored dtype and shape, in memory of its own.

        Raises:
            UnsupportedDtypeError: a dtype outside `hfq.convert.tensor_bytes.TORCH_DTYPES`.
        """
        from .tensor_bytes import TORCH_DTYPES, tensor_from_bytes

        entry = self.tensors[name]
        if entry.dtype not in TORCH_DTYPES:
            raise UnsupportedDtypeError(
                "no tensor of this dtype can be read",
                where=f"{self.path}: {name}",
                expected=" ".join(TORCH_DTYPES),
                found=entry.dtype,
            )
        return tensor_from_bytes(self.read_bytes(name), entry.dtype, entry.shape)

    def check_unchanged(self) -> None:
        """Compare size, time of change and inode with those at opening.

        Raises:
            UnreadableFileError: somebody wrote to the file meanwhile, so what was read is of no one version.
        """
        status = os.fstat(self._descriptor)
        before, now = self.stamp, _stamp(status)
        # Not the time of change: a link to the file or another mode changes it, and no byte.
        if (now.size_bytes, now.modified_ns, now.inode) != (before.size_bytes, before.modified_ns, before.inode):
            raise UnreadableFileError(
                "the file changed while it was read", where=self.path, todo="run again when nothing writes to it"
            )

    def close(self) -> None:
        """Close the descriptor; twice is once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def _open_regular(path: Path) -> int:
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        what = "a symbolic link to nothing" if path.is_symlink() else "no such file"
        raise MissingPathError(what, where=path) from None
    except OSError as error:
        what = "a symbolic link in a circle" if error.errno == errno.ELOOP else "cannot be opened"
        raise UnreadableFileError(what, where=path, found=error.strerror) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableFileError("not a regular file", where=path)
    return descriptor


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if head[8:] == b"{":
        return
    if head.startswith(b"GGUF") or path.suffix.lower() == ".gguf":
        raise UnsupportedModelError(
            "a GGUF file is quantized already",
            where=path,
            expected="a safetensors file",
            todo="give the checkpoint that it was made from",
        )
    # The same bytes could be the header length of a safetensors file, whose ninth byte is always a brace.
    by_content = head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    if by_content or path.suffix.lower() in _PICKLE_SUFFIXES:
        raise UnsupportedModelError(
            "a pickle can run any program when it is opened; hfq reads none",
            where=path,
            expected="a safetensors file",
            todo="convert it with a tool that you trust",
        )


def _parse_header(header: bytes, file_size: int, where: str) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    if not header.startswith(b"{"):
        raise MalformedFileError(
            "the header is not a JSON object",
            where=where,
            expected="'{' as its first byte",
            found=header[:1] or "an empty header",
        )
    # Python objects are twenty times larger than their JSON text: bound their number before parsing.
    for mark, limit in ((b"{", MAX_TENSORS), (b",", _MAX_COMMAS), (b"[", 4 * MAX_TENSORS)):
        count = header.count(mark)
        if count > limit:
            raise TooLargeError(
                "a header of too many parts", where=where, expected=f"at most {limit} {mark!r}", found=count
            )
    document = parse_json(header, f"{where}: header")
    if not isinstance(document, dict):
        raise MalformedFileError("the header is not a JSON object", where=where)
    metadata = _checked_metadata(document.pop("__metadata__", {}), where)
    start = 8 + len(header)
    entries = [_checked_entry(name, value, start, where) for name, value in document.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end, entry.name))
    _check_tiling(entries, start, file_size, where)
    return metadata, {entry.name: entry for entry in entries}


def _checked_metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise MalformedFileError("__metadata__ is not a map of strings to strings", where=where)
    return value


def _checked_entry(name: str, value: Any, start: int, where: str) -> TensorEntry:
    place = f"{where}: {name!r}"
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise MalformedFileError(
            "an impossible tensor name",
            where=place,
            expected=f"1 to {_MAX_NAME_LENGTH} printable characters",
            found=f"{len(name)}",
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise MalformedFileError(
            "not a tensor entry", where=place, expected="dtype, shape and data_offsets", found=found
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise UnsupportedDtypeError("unknown dtype", where=place, found=dtype)
    if not _is_sizes(shape, _MAX_DIMENSIONS):
        raise MalformedFileError(
            "a shape that is none", where=place, expected=f"at most {_MAX_DIMENSIONS} whole numbers from 0", found=shape
        )
    if not _is_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFileError(
            "data_offsets that are none", where=place, expected="[begin, end], begin <= end", found=offsets
        )
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise ShapeMismatchError(
            "dtype and shape do not make the tensor's bytes",
            where=place,
            expected=f"{dtype} {shape} = {bits / 8:g} bytes",
            found=offsets[1] - offsets[0],
        )
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_sizes(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _MAX_EXTENT for size in value)
    )


def _check_tiling(entries: list[TensorEntry], start: int, file_size: int, where: str) -> None:
    end, before = start, "the header"
    for entry in entries:
        if entry.begin < end:
            raise MalformedFileError(
                f"the tensor overlaps {before}",
                where=f"{where}: {entry.name}",
                expected=f"begin {end - start}",
                found=entry.begin - start,
            )
        if entry.begin > end:
            raise MalformedFileError(
                f"unused bytes between the tensor and {before}",
                where=f"{where}: {entry.name}",
                expected=f"begin {end - start}",
                found=entry.begin - start,
            )
        end, before = entry.end, entry.name
    if end > file_size:
        raise TruncatedFileError(
            "the file ends inside its tensors",
            where=where,
            expected=f"{end} bytes",
            found=file_size,
            todo="download it again",
        )
    if end < file_size:
        raise TrailingBytesError("bytes after the last tensor", where=where, expected=f"{end} bytes", found=file_size)
