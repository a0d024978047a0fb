"""Everything that a demuxer tells of a clip's file besides its size: what a copy must have as well.

Read through FFmpeg, and so by another program than the ones that write copies: what these lose without knowing it, is
a difference here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

from hfq.schema.errors import RemuxError

from .stream import Clip

__all__ = ["Facts", "container_facts", "require_same"]

Facts = Mapping[str, object]
"""Name of a fact, such as `stream 0: codec tag`, to its value; values are compared and shown."""

_STREAM: Final = ("id", "type", "time_base", "start_time", "duration", "frames", "language", "profile")
_VIDEO: Final = ("average_rate", "base_rate", "guessed_rate", "sample_aspect_ratio", "display_aspect_ratio")
_CODEC: Final = ("name", "codec_tag", "level", "bits_per_coded_sample")
_PICTURE: Final = (
    "width", "height", "coded_width", "coded_height", "pix_fmt", "color_primaries", "color_range", "color_trc",
    "colorspace", "field_order", "sample_aspect_ratio",
)  # fmt: skip
_SHOWN: Final = 4
_SOUND: Final = ("sample_rate", "layout", "format")


def container_facts(clip: Clip) -> Facts:
    """Tags, chapters, of every stream its kind, codec, timing, marks, tags, and a digest of its packets with their
    times and side data; of the first picture how it is turned and the kinds of its side data.

    Raises:
        what `Clip.frames` raises.
    """
    with clip.demuxer() as container:
        facts: dict[str, object] = {"start time": container.start_time, "duration": container.duration}
        facts |= {f"tag {name}": str(value) for name, value in container.metadata.items()}
        facts["chapters"] = repr(container.chapters())
        facts["streams"] = len(container.streams)
        for stream in container.streams:
            facts |= {f"stream {stream.index}: {name}": value for name, value in _stream(stream)}
        digests: dict[int, Any] = {stream.index: hashlib.sha256() for stream in container.streams}
        counts = dict.fromkeys(digests, 0)
        for packet in container.demux():
            if packet.size:  # PyAV ends every stream with an empty packet
                digests[packet.stream_index].update(_packet(packet))
                counts[packet.stream_index] += 1
    for index, digest in digests.items():
        facts[f"stream {index}: packets"] = f"{counts[index]}, digest {digest.hexdigest()}"
    for frame in clip.frames():
        facts["rotation"] = frame.rotation
        facts["side data"] = ", ".join(sorted(str(entry.type) for entry in frame.side_data))
        break
    return facts


def require_same(before: Facts, after: Facts, where: object) -> None:
    """Check that a copy has everything that its source has.

    Raises:
        RemuxError: it names what differs.
    """
    found = _differences(before, after)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RemuxError(
            "a copy would not be the same clip",
            where=where,
            expected=", ".join(f"{name} {old}" for name, old, _ in found[:_SHOWN]) + more,
            found=", ".join(f"{name} {new}" for name, _, new in found[:_SHOWN]) + more,
            todo="convert the clip to a plain MP4 first (ffmpeg -i CLIP -c copy OUT.mp4)",
        )


def _differences(before: Facts, after: Facts) -> list[tuple[str, object, object]]:
    """Name, before, after; None where there is no such fact."""
    return [
        (name, before.get(name), after.get(name))
        for name in {**before, **after}
        if (name in before, before.get(name)) != (name in after, after.get(name))
    ]


def _stream(stream: Any) -> Iterator[tuple[str, object]]:
    yield from _read(stream, _STREAM)
    yield "disposition", int(stream.disposition)
    yield from ((f"tag {name}", str(value)) for name, value in stream.metadata.items())
    if stream.type == "video":
        yield from _read(stream, _VIDEO)
    if stream.type == "attachment":
        yield "data", hashlib.sha256(stream.data or b"").hexdigest()
        yield from _read(stream, ("name", "mimetype"))
    context = stream.codec_context
    if context is None:
        return
    yield from _read(context, _CODEC)
    yield "extradata", hashlib.sha256(context.extradata or b"").hexdigest()
    if stream.type == "video":
        yield from _read(context, _PICTURE)
    elif stream.type == "audio":
        yield from _read(context, _SOUND)


def _read(source: Any, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    for name in names:
        try:
            value = getattr(source, name)
        except (AttributeError, TypeError, ValueError, RuntimeError):  # not of this kind of stream
            continue
        yield name.replace("_", " "), value if isinstance(value, int | str | Fraction | None) else str(value)


def _packet(packet: Any) -> bytes:
    """Times, marks and side data of a packet, and its bytes."""
    head = f"{packet.pts}\t{packet.dts}\t{packet.duration}\t{packet.is_keyframe}\t{packet.is_discard}\t{packet.size}\n"
    side = [f"{entry.data_type}\t".encode() + hashlib.sha256(bytes(entry)).digest() for entry in packet.iter_sidedata()]
    return head.encode() + b"".join(side) + b"\n" + bytes(packet)
