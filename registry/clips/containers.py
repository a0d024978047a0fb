"""Which files are opened as clips. The first bytes decide: FFmpeg, left to guess, takes a text for a list of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hfq.schema.errors import NotAClipError

__all__ = ["CODECS", "DEMUXERS", "EVIDENCE", "PICTURES", "START_BYTES", "Accepted", "container_of"]

CODECS: Final = frozenset(
    {"av1", "ffv1", "h264", "hevc", "libdav1d", "libvpx-vp9", "mpeg4", "prores", "vp8", "vp9"}
)  # fmt: skip
"""Decoders that meet a clip's bytes; FFmpeg has hundreds, and every one is a parser of somebody else's data."""

DEMUXERS: Final = {"mp4": "mp4", "mov": "mp4", "matroska": "matroska", "avi": "avi", "gif": "gif"}
"""FFmpeg's demuxer of each container. None of these is a list of other files."""

_NAMES: Final = {"mp4": "MP4", "mov": "MOV", "matroska": "Matroska or WebM", "avi": "AVI", "gif": "GIF"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """Which files are opened: `containers` are keys of FFmpeg's demuxers here, `codecs` names of its decoders."""

    containers: frozenset[str]
    codecs: frozenset[str]

    def __str__(self) -> str:
        names = [name for container, name in _NAMES.items() if container in self.containers]
        *first, last = ", ".join(names).replace(" or ", ", ").split(", ")
        return f"{', '.join(first)} or {last}"


EVIDENCE: Final = Accepted(frozenset({"mp4", "mov", "matroska"}), CODECS)
"""Clips that can say what made them."""

PICTURES: Final = Accepted(
    EVIDENCE.containers | {"avi", "gif"},
    CODECS
    | {
        "dnxhd", "dvvideo", "ffvhuff", "gif", "huffyuv", "mjpeg", "mpeg1video", "mpeg2video", "msmpeg4", "msmpeg4v2",
        "png", "qtrle", "rawvideo", "theora", "utvideo", "vc1", "wmv1", "wmv2", "wmv3",
    },
)  # fmt: skip
"""Clips whose pixels are compared, whatever another program kept them in."""

_MP4_BOXES: Final = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
_EBML: Final = b"\x1a\x45\xdf\xa3"
START_BYTES: Final = 64
"""Enough to tell a container by."""

_SCRIPTS: Final = {
    b"ffconcat": "a list for FFmpeg's concat",
    b"#extm3u": "a playlist",
    b"<?xml": "an XML document",
    b"<mpd": "a DASH manifest",
    b"v=0": "a session description",
}
"""What FFmpeg would take for a video by its content, and open whatever it names. For the message alone."""


def container_of(start: bytes, where: Path, accepted: Accepted) -> str:
    """The container of a file that begins with these bytes (START_BYTES, or all of a shorter one).

    Raises:
        NotAClipError: none that is accepted.
    """
    container = _probe(start)
    if container is not None and container in accepted.containers:
        return container
    raise NotAClipError(
        "not a video file that is opened here",
        where=where,
        expected=str(accepted),
        found=_NAMES[container] if container is not None else _describe(start),
    )


def _probe(start: bytes) -> str | None:
    if start[:4] == _EBML:
        return "matroska"
    if start[4:8] == b"ftyp" and start[8:12] != b"qt  ":
        return "mp4"
    if start[4:8] in _MP4_BOXES:
        return "mov"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    return "gif" if start[:6] in (b"GIF87a", b"GIF89a") else None


def _describe(start: bytes) -> str:
    if not start:
        return "an empty file"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = next((name for mark, name in _SCRIPTS.items() if text.startswith(mark)), None)
    return f"{found}, which names other files" if found else f"first bytes {start[:12].hex(' ')}"
