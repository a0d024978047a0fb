"""Decoded frames of a clip, and the clips of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hfq.registry.clips.containers import PICTURES
from hfq.registry.clips.stream import open_clip
from hfq.schema.errors import ClipStreamError, MalformedFileError, MissingPathError, TooLargeError

from .names import match_key

__all__ = ["MAX_DECODED_BYTES", "SUFFIXES", "ClipFolder", "Frames", "list_clips", "read_frames"]

Frames = npt.NDArray[np.uint8]
"""[frames, height, width, 3], RGB."""

SUFFIXES: Final = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".m4v"})
MAX_DECODED_BYTES: Final = 1024**3
"""388 frames of 1280x720; a few kilobytes of video can decode to any size."""


@dataclass(frozen=True, slots=True)
class ClipFolder:
    """The clips directly in a folder, by file name without suffix, in name order.

    `left_over`: files that a program which is still at work, or was killed, has left behind.
    """

    clips: dict[str, Path]
    left_over: tuple[Path, ...]


def list_clips(folder: Path) -> ClipFolder:
    """What of a folder is a clip: every name with a suffix of a video that is neither hidden nor unfinished.

    Raises:
        MissingPathError: no folder. MalformedFileError: two names that scores cannot tell apart; both are given.
    """
    if not folder.is_dir():
        raise MissingPathError("no such folder", where=folder)
    clips: dict[str, Path] = {}
    names: dict[str, Path] = {}
    left_over: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.is_dir():
            continue
        if path.name.startswith(".") or ".partial" in (suffix.lower() for suffix in path.suffixes):
            left_over.append(path)
            continue
        before = names.setdefault(match_key(path.stem), path)
        if before != path:
            raise MalformedFileError(
                "two clips of one name", where=folder, found=f"{before.name} and {path.name}",
                todo="rename or move one of them; scores do not tell apart suffixes, a space from an underscore, or "
                "`videos` from `frames`",
            )  # fmt: skip
        clips[path.stem] = path
    return ClipFolder(clips, tuple(left_over))


def read_frames(path: Path, *, limit: int = MAX_DECODED_BYTES) -> Frames:
    """All frames of a clip, uint8 RGB [frames, height, width, 3].

    Raises:
        what `open_clip` and `Clip.frames` raise.
        ClipStreamError: frames of changing size. TooLargeError: more than `limit` bytes of frames.
    """
    frames: list[Frames] = []
    held = 0
    with open_clip(path, PICTURES) as clip:
        for frame in clip.frames():
            held += frame.width * frame.height * 3
            if held > limit:
                raise TooLargeError(
                    "a clip of too many pixels", where=path, expected=f"at most {limit} bytes of frames"
                )
            picture = frame.to_ndarray(format="rgb24")
            if frames and picture.shape != frames[0].shape:
                raise ClipStreamError("frames of changing size", where=path)
            frames.append(picture)
    return np.stack(frames)
