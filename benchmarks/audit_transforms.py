"""What people do to clips, with PyAV as ffmpeg's command does it: re-encodes keep the tags and lose the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

from hfq.convert.video import read_clip
from hfq.registry.clips.clip_document import ClipDocument
from hfq.registry.clips.tag import write_tag

__all__ = ["FORGED", "TRANSFORMS", "forge"]

FORGED: Final = "forged tag"

Frames = npt.NDArray[np.uint8]


def _itself(source: Path, folder: Path) -> Path:
    return source


def _remux(source: Path, out: Path, *, keep_tags: bool = True) -> Path:
    with av.open(str(source)) as reader, av.open(str(out), "w") as writer:
        writer.metadata.update(dict(reader.metadata) if keep_tags else {})
        copies = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                writer.mux(packet)
    return out


def _encode(source: Path, out: Path, *, crf: int, divide: int = 1, first: int = 0) -> Path:
    with av.open(str(source)) as reader:
        tags, rate = dict(reader.metadata), reader.streams.video[0].average_rate
    frames = read_clip(source)
    frames = frames[first : len(frames) - first]
    with av.open(str(out), "w") as writer:
        writer.metadata.update(tags)
        stream: Any = writer.add_stream("libx264", rate=Fraction(rate or 16))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2] // divide, frames.shape[1] // divide, "yuv420p"
        stream.options = {"crf": str(crf)}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            writer.mux(stream.encode(picture.reformat(width=stream.width, height=stream.height)))
        writer.mux(stream.encode())
    return out


TRANSFORMS: Final[Mapping[str, Callable[[Path, Path], Path]]] = {
    "the file": _itself,
    "remuxed, mp4": lambda source, folder: _remux(source, folder / "copy.mp4"),
    "remuxed, mkv": lambda source, folder: _remux(source, folder / "copy.mkv"),
    "metadata stripped": lambda source, folder: _remux(source, folder / "bare.mp4", keep_tags=False),
    "CRF 28": lambda source, folder: _encode(source, folder / "crf28.mp4", crf=28),
    "half size, CRF 23": lambda source, folder: _encode(source, folder / "half.mp4", crf=23, divide=2),
    "half size, CRF 32": lambda source, folder: _encode(source, folder / "small.mp4", crf=32, divide=2),
    "trimmed, CRF 18": lambda source, folder: _encode(source, folder / "trimmed.mp4", crf=18, first=1),
}
"""Trimmed: without the first and the last frame, of nine."""


def forge(source: Path, folder: Path, claim: ClipDocument) -> Path:
    """A re-encoded clip (CRF 28) with somebody else's comment tag."""
    return write_tag(_encode(source, folder / "plain.mp4", crf=28), folder / "forged.mp4", claim).path
