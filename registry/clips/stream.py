"""Opening a clip that may be hostile, and decoding it: the file's SHA-256, the digest of the decoded planes.

FFmpeg guesses a file's kind from its bytes, and some kinds are lists of further files or addresses to open. So the kind
is decided here, from the first bytes; FFmpeg gets that demuxer by name, and an open file instead of a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import (
    ClipStreamError,
    MissingDependencyError,
    MissingPathError,
    NotAClipError,
    TooLargeError,
    TruncatedFileError,
    UnreadableFileError,
)

from .containers import DEMUXERS, EVIDENCE, START_BYTES, Accepted, container_of

__all__ = [
    "MAX_CLIP_BYTES",
    "MAX_FRAMES",
    "MAX_FRAME_PIXELS",
    "MAX_TOTAL_PIXELS",
    "Clip",
    "FrameWatcher",
    "Luma",
    "StreamDigest",
    "StreamFacts",
    "open_clip",
]

MAX_CLIP_BYTES: Final = 4 * 1024**3
"""A Wan clip of five seconds is a few MB, lossless about 100 MB. Hashing 4 GiB takes ten seconds."""

MAX_FRAMES: Final = 20_000
"""Fourteen minutes at 24 frames per second; Wan makes 81 or 121."""

MAX_FRAME_PIXELS: Final = 7680 * 4320
MAX_TOTAL_PIXELS: Final = 25_000_000_000
"""18 minutes of 720p at 24 frames per second: a small file that decodes to black costs minutes, not days."""

_BLOCK_BYTES: Final = 1 << 20
_ESSENTIAL: Final = frozenset({b"moov", b"mdat", b"moof"})
_MAX_BOXES: Final = 100_000
Luma = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """The decoded video stream.

    Attributes:
        digest: 64 hex digits; see `StreamDigest`.
        frames: how many.
        width, height: of the first frame, in pixels.
    """

    digest: str
    frames: int
    width: int
    height: int


class FrameWatcher(Protocol):
    """What wants to see every frame."""

    def update(self, frame: Any) -> None:
        """Take the next `av.VideoFrame`."""


class StreamDigest:
    """SHA-256 over the decoded frames: per frame the line `pixel format<TAB>width<TAB>height` and LF, then the samples
    of every plane row by row without padding; at last the line `frames<TAB>count` and LF.

    Planes as the decoder gives them, not RGB: no conversion, so no library's rounding. The full-range twins of FFmpeg's
    formats (`yuvj420p`) count as the plain ones, because the mark belongs to the container as well.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._frames = 0

    def update(self, frame: Any) -> None:
        """Add one `av.VideoFrame`."""
        name = frame.format.name.replace("yuvj", "yuv")
        self._hash.update(f"{name}\t{frame.width}\t{frame.height}\n".encode())
        for index, plane in enumerate(frame.planes):
            self._hash.update(np.ascontiguousarray(_rows(frame, index, plane)).data)
        self._frames += 1

    def hexdigest(self) -> str:
        """64 hex digits; frames may be added afterwards."""
        final = self._hash.copy()
        final.update(f"frames\t{self._frames}\n".encode())
        return final.hexdigest()


def _rows(frame: Any, index: int, plane: Any) -> npt.NDArray[np.uint8]:
    """The bytes of a plane without the padding of its lines, uint8 [height, bytes per row]."""
    samples = sum(part.width * -(-part.bits // 8) for part in frame.format.components if part.plane == index)
    lines = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    return lines[:, :samples]


def planes_of(frame: Any) -> Iterator[npt.NDArray[np.uint8]]:
    """The planes of an `av.VideoFrame` without padding, uint8 [rows, bytes per row]."""
    return (_rows(frame, index, plane) for index, plane in enumerate(frame.planes))


def luma_of(frame: Any) -> Luma:
    """The luma plane of an `av.VideoFrame`, uint8 [height, width]; 8-bit planes as they are."""
    if frame.format.name not in ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "gray"):
        frame = frame.reformat(format="gray")
    return _rows(frame, 0, frame.planes[0])


class Clip:
    """An open video file of a known kind. Use `open_clip`.

    Attributes:
        path: as given.
        container: "mp4", "mov", "matroska" (WebM too), "avi" or "gif".
        size_bytes: of the file.
        uuids: identities (16 bytes) of the `uuid` boxes at the top level of an MP4 or MOV.
    """

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int, container: str, codecs: frozenset[str]) -> None:
        self.path = path
        self.uuids = _uuids_of(file, size_bytes, path) if container in ("mp4", "mov") else frozenset()
        self.container = container
        self.size_bytes = size_bytes
        self._file = file
        self._codecs = codecs

    def file_sha256(self) -> str:
        """Hex SHA-256 of the file's bytes.

        Raises:
            UnreadableFileError: an I/O error.
        """
        digest = hashlib.sha256()
        try:
            self._file.seek(0)
            while block := self._file.read(_BLOCK_BYTES):
                digest.update(block)
        except OSError as error:
            raise UnreadableFileError("cannot be read", where=self.path, found=error.strerror) from error
        return digest.hexdigest()

    @contextlib.contextmanager
    def rewound(self) -> Iterator[BinaryIO]:
        """The open file at its start, for a reader that wants one; it stays open."""
        self._file.seek(0)
        yield self._file

    @contextlib.contextmanager
    def demuxer(self) -> Iterator[Any]:
        """The file as an open `av.container.InputContainer`. Errors of FFmpeg in the block become this package's.

        Raises:
            NotAClipError: the demuxer refuses the file.
            ClipStreamError: a later packet or frame is broken.
            UnreadableFileError: an I/O error.
            MissingDependencyError
        """
        av = require_av()
        self._file.seek(0)
        demuxer = DEMUXERS[self.container]
        try:
            # Tags from anywhere need not be UTF-8.
            container = av.open(self._file, format=demuxer, metadata_errors="replace", io_open=_refuse_reference)
        except (av.FFmpegError, ValueError, OverflowError, PermissionError) as error:
            raise NotAClipError("no video file", where=self.path, found=_reason(error)) from None
        try:
            with container:
                yield container
        except (av.FFmpegError, OverflowError) as error:
            raise ClipStreamError("the video stream is broken", where=self.path, found=_reason(error)) from None
        except OSError as error:  # of the file itself, while FFmpeg reads it
            raise UnreadableFileError("cannot be read", where=self.path, found=error.strerror) from error

    def tags(self) -> Mapping[str, str]:
        """The container's tags, names in lower case (Matroska writes them in upper case).

        Raises:
            NotAClipError, MissingDependencyError
        """
        with self.demuxer() as container:
            return {str(name).lower(): str(value) for name, value in container.metadata.items()}

    def frames(self) -> Iterator[Any]:
        """Every frame (`av.VideoFrame`) of the only video stream, in display order.

        Raises:
            NotAClipError
            ClipStreamError: no video stream or several, a codec that is not accepted, broken packets, no frame at all.
            TooLargeError: more frames or pixels than the limits of this module.
            MissingDependencyError
        """
        with self.demuxer() as container:
            stream = self._video_stream(container)
            count = pixels = 0
            for frame in container.decode(stream):
                count += 1
                pixels += frame.width * frame.height
                self._limit("frames", count, MAX_FRAMES)
                self._limit("pixels in a frame", frame.width * frame.height, MAX_FRAME_PIXELS)
                self._limit("pixels in all", pixels, MAX_TOTAL_PIXELS)
                yield frame
        if count == 0:
            raise ClipStreamError("the video stream holds no frame", where=self.path)

    def _video_stream(self, container: Any) -> Any:
        # A cover picture is a video stream to FFmpeg; decoding it would put a stranger into the digest.
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if len(streams) != 1:
            raise ClipStreamError("not one video stream", where=self.path, expected=1, found=len(streams))
        context = streams[0].codec_context
        codec = None if context is None else context.name
        if codec not in self._codecs:
            raise ClipStreamError(
                "a codec that this release does not decode",
                where=self.path,
                expected=", ".join(sorted(self._codecs)),
                found=codec or "unknown",
            )
        self._limit("pixels in a frame", context.width * context.height, MAX_FRAME_PIXELS)
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # the size may change in the middle
        context.thread_type = "AUTO"
        return streams[0]

    def _limit(self, what: str, found: int, limit: int) -> None:
        if found > limit:
            raise TooLargeError(f"too many {what}", where=self.path, expected=f"at most {limit}", found=found)

    def stream_facts(self, *watchers: FrameWatcher) -> StreamFacts:
        """Digest, count and size of the decoded frames; watchers see every frame of the same pass.

        Raises:
            see `frames`
        """
        digest, count, width, height = StreamDigest(), 0, 0, 0
        for frame in self.frames():
            for watcher in (digest, *watchers):
                watcher.update(frame)
            if count == 0:
                width, height = frame.width, frame.height
            count += 1
        return StreamFacts(digest.hexdigest(), count, width, height)


@contextlib.contextmanager
def open_clip(path: str | os.PathLike[str], accepted: Accepted = EVIDENCE) -> Iterator[Clip]:
    """Open a regular file that begins like one of the accepted containers. Symbolic links are followed: what counts is
    the file that they lead to, and every later read uses the descriptor opened here. A name is a name of a file,
    whatever it would mean to FFmpeg (`concat:a|b`, `http://...`, `-`).

    Raises:
        MissingPathError: no such file, or a link to nothing.
        UnreadableFileError: a folder, FIFO, socket or device, no permission.
        NotAClipError: empty, or other first bytes.
        TruncatedFileError: an MP4 or MOV whose index or media go on behind the file's end.
        TooLargeError: over MAX_CLIP_BYTES, or of more boxes than any honest file.
    """
    place = Path(path)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(place, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPathError("no such file", where=place, expected="a video file") from None
    except (OSError, ValueError) as error:
        raise UnreadableFileError("cannot be opened", where=place, found=_reason(error)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableFileError("not a regular file", where=place, expected="a video file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MAX_CLIP_BYTES:
            raise TooLargeError(
                "too large", where=place, expected=f"at most {MAX_CLIP_BYTES} bytes", found=status.st_size
            )
        try:
            container = container_of(file.read(START_BYTES), place, accepted)
            clip = Clip(place, file, status.st_size, container, accepted.codecs)
        except OSError as error:
            raise UnreadableFileError("cannot be read", where=place, found=error.strerror) from error
        yield clip


def _uuids_of(file: BinaryIO, size_bytes: int, where: Path) -> frozenset[bytes]:
    """Walk the boxes at the top level (ISO 14496-12, 4.2), up to where a size makes no sense.

    FFmpeg plays a cut file as far as it goes; what is audited here would be another clip.
    """
    position = 0
    found: set[bytes] = set()
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(32)
        if len(header) < 8:
            return frozenset(found)
        size, kind, length = int.from_bytes(header[:4], "big"), header[4:8], 8
        if size == 1:
            size, length = int.from_bytes(header[8:16], "big"), 16
        if kind == b"uuid":
            found.add(header[length : length + 16])
        if kind in _ESSENTIAL and position + size > size_bytes:
            raise TruncatedFileError(
                "the file ends too early",
                where=where,
                expected=f"at least {position + size} bytes",
                found=size_bytes,
                todo="fetch it again from where it came",
            )
        if size < length:  # 0: up to the end of the file
            return frozenset(found)
        position += size
    raise TooLargeError("a file of too many boxes", where=where, expected=f"at most {_MAX_BOXES}")


def require_av() -> Any:
    """PyAV's module.

    Raises:
        MissingDependencyError
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            "reading clips needs PyAV", found=error, todo="install it: pip install 'hfq[video]'"
        ) from None
    return av


def _refuse_reference(url: str, flags: int, options: object) -> NoReturn:
    """A clip is one file: whatever else its bytes ask FFmpeg to open is not opened."""
    raise PermissionError("a clip that refers to another file")


def _is_cover(stream: Any) -> bool:
    return bool(int(stream.disposition) & 0x400)  # AV_DISPOSITION_ATTACHED_PIC


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
