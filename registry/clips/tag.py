"""The `comment` tag: a clip's document as JSON in the container. A hint that anyone can write, never a proof."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.errors import RemuxError, UsageError

from .clip_document import ClipDocument, parse_clip_document
from .output import new_file
from .stream import Clip, StreamFacts, open_clip, require_av

__all__ = ["SUFFIXES", "TaggedClip", "check_suffix", "read_tag", "write_tag"]

SUFFIXES: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska"}
"""What an output may be called, and the container of its input: the container is never changed."""

_COPIED: Final = ("video", "audio", "subtitle")


@dataclass(frozen=True, slots=True)
class TaggedClip:
    """A copy with a tag.

    Attributes:
        path: the copy.
        stream: facts of its decoded video stream, equal to those of the input.
        dropped: kinds of streams that were not copied, such as "data" (time codes, chapters as a track).
        replaced: the comment that the input had, None when it had none.
    """

    path: Path
    stream: StreamFacts
    dropped: tuple[str, ...]
    replaced: str | None


def read_tag(clip: Clip) -> ClipDocument | None:
    """The document in the comment tag; None without a comment, or with one that is not this package's.

    A comment that calls itself `hfq.clip` must be one.

    Raises:
        MalformedFileError and its subclasses: it is not.
        NotAClipError, MissingDependencyError
    """
    comment = clip.tags().get("comment")
    if comment is None or "hfq.clip/" not in comment[:100_000] or not comment.lstrip().startswith("{"):
        return None
    return parse_clip_document(comment.encode("utf-8", "replace"), f"{clip.path}: comment tag")


def write_tag(source: str | os.PathLike[str], out: str | os.PathLike[str], document: ClipDocument) -> TaggedClip:
    """Copy a clip's packets into a new file of the same container with `document` as its comment. Nothing is
    re-encoded: packets and decoded stream are compared before the file gets its name. A signed manifest
    in the input is left behind.

    Raises:
        OutputExistsError, UsageError: the output is there, or its suffix means another container.
        TooLargeError: a document over its limit.
        RemuxError: FFmpeg cannot write the packets, or the copy has other packets or decodes to other frames.
        and what `open_clip` and `Clip.frames` raise.
    """
    data, target = document.to_bytes(), Path(out)
    with open_clip(source) as clip:
        check_suffix(clip, target)
        with new_file(target) as temporary:
            before, packets = clip.stream_facts(), _packet_digests(clip)
            dropped, replaced = _remux(clip, temporary, target.suffix.lower(), data.decode())
            with open_clip(temporary) as copy:
                after = copy.stream_facts()
                same = after == before and read_tag(copy) == document and _packet_digests(copy) == packets
            if not same:
                raise RemuxError(
                    "the copy is not the same clip",
                    where=clip.path,
                    expected=f"{before.frames} frames, digest {before.digest[:12]}…",
                    found=f"{after.frames} frames, digest {after.digest[:12]}…",
                    todo="convert the clip to a plain MP4 first (ffmpeg -i CLIP -c copy OUT.mp4)",
                )
    return TaggedClip(target, after, dropped, replaced)


def check_suffix(clip: Clip, target: Path) -> None:
    """Check that a copy of a clip may be called so.

    Raises:
        UsageError: the suffix means another container.
    """
    if SUFFIXES.get(target.suffix.lower()) != clip.container:
        wanted = [suffix for suffix, container in SUFFIXES.items() if container == clip.container]
        raise UsageError(
            "the copy keeps the container of its input",
            where=target,
            expected=" or ".join(wanted),
            found=target.suffix or "no suffix",
        )


def _remux(clip: Clip, out: Path, suffix: str, comment: str) -> tuple[tuple[str, ...], str | None]:
    """Returns the kinds of streams that were dropped, and the comment that was replaced."""
    av = require_av()
    muxer = {".mov": "mov", ".mkv": "matroska", ".webm": "webm"}.get(suffix, "mp4")
    with clip.demuxer() as source:
        try:
            with av.open(str(out), "w", format=muxer) as target:
                replaced = _copy_tags(source.metadata, target.metadata, comment)
                copies = {s.index: target.add_stream_from_template(s) for s in source.streams if s.type in _COPIED}
                for packet in _packets(source):
                    if packet.stream_index in copies:
                        packet.stream = copies[packet.stream_index]
                        target.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            raise RemuxError("the packets cannot be copied", where=clip.path, found=error) from None
        return tuple(s.type for s in source.streams if s.index not in copies), replaced


def _packets(source: Any) -> Iterator[Any]:
    for packet in source.demux():
        if packet.size:  # PyAV ends every stream with an empty packet
            yield packet


def _packet_digests(clip: Clip) -> list[str]:
    """SHA-256 over the packets of each stream that can be copied, each after its size."""
    with clip.demuxer() as container:
        digests = {stream.index: hashlib.sha256() for stream in container.streams if stream.type in _COPIED}
        for packet in _packets(container):
            if packet.stream_index in digests:
                digests[packet.stream_index].update(packet.size.to_bytes(8, "little"))
                digests[packet.stream_index].update(packet)
        return [digest.hexdigest() for digest in digests.values()]


def _copy_tags(found: dict[str, str], target: dict[str, str], comment: str) -> str | None:
    replaced = None
    for name, value in found.items():
        if name.lower() == "comment":
            replaced = value
        elif name.lower() not in ("major_brand", "minor_version", "compatible_brands", "encoder"):
            target[name] = value
    target["comment"] = comment
    return replaced
