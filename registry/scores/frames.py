"""Decoded frames of a clip, through PyAV."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hfq.registry.clips.stream import StreamDigest
from hfq.schema.errors import (
    MalformedFileError,
    MissingDependencyError,
    MissingPathError,
    TooLargeError,
    UnreadableFileError,
)

__all__ = ["MAX_DECODED_BYTES", "SUFFIXES", "Frames", "decoded_digest", "list_clips", "read_frames"]

Frames = npt.NDArray[np.uint8]
"""[frames, height, width, 3], RGB."""

SUFFIXES: Final = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".m4v"})
MAX_DECODED_BYTES: Final = 1024**3
"""388 frames of 1280x720; a few kilobytes of video can decode to any size."""


def list_clips(folder: Path) -> dict[str, Path]:
    """Clips directly in a folder by stem, in name order.

    Raises:
        MissingPathError: no folder. MalformedFileError: one stem twice.
    """
    if not folder.is_dir():
        raise MissingPathError("no such folder", where=folder)
    clips: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in clips:
                raise MalformedFileError("two clips of one name", where=folder, found=path.name)
            clips[path.stem] = path
    return clips


def read_frames(path: Path, *, limit: int = MAX_DECODED_BYTES) -> Frames:
    """All frames of a clip, uint8 RGB [frames, height, width, 3].

    Raises:
        MissingPathError, UnreadableFileError: not a regular file, or no permission.
        MalformedFileError: no video, or frames of changing size. TooLargeError: more than `limit` bytes of frames.
        MissingDependencyError: PyAV is not installed.
    """
    frames: list[Frames] = []
    for frame in _decode(path, limit):
        picture = frame.to_ndarray(format="rgb24")
        if frames and picture.shape != frames[0].shape:
            raise MalformedFileError("frames of changing size", where=path)
        frames.append(picture)
    if not frames:
        raise MalformedFileError("a video without frames", where=path)
    return np.stack(frames)


def decoded_digest(path: Path, *, limit: int = MAX_DECODED_BYTES) -> str:
    """The digest of a clip's decoded frames (`StreamDigest`), whatever its container.

    Raises:
        what `read_frames` raises.
    """
    digest = StreamDigest()
    for frame in _decode(path, limit):
        digest.update(frame)
    return digest.hexdigest()


def _decode(path: Path, limit: int) -> Iterator[Any]:
    """The `av.VideoFrame`s of a file."""
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            "reading clips needs PyAV", found=error, todo="install it: pip install 'hfq[video]'"
        ) from None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise MissingPathError("no such file", where=path, found=error.strerror) from None
    if not stat.S_ISREG(mode):
        raise UnreadableFileError("not a regular file", where=path)
    held = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MalformedFileError("no video stream", where=path)
            for frame in container.decode(video=0):
                held += frame.width * frame.height * 3
                if held > limit:
                    raise TooLargeError(
                        "a clip of too many pixels", where=path, expected=f"at most {limit} bytes of frames"
                    )
                yield frame
    except PermissionError as error:
        raise UnreadableFileError("cannot be opened", where=path, found=error.strerror) from None
    except av.error.FFmpegError as error:
        raise MalformedFileError("not a video that can be decoded", where=path, found=error.strerror) from None
