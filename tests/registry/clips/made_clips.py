"""Small clips: scenes of soft moving shapes, variants of a scene, and what people do to files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from hfq.registry.clips.clip_document import ClipDocument, Variant, prompt_sha256

Frames = npt.NDArray[np.uint8]

BASE = {"high_noise": "1" * 64, "low_noise": "2" * 64}
DELTA_A, DELTA_B, DELTA_C = "a" * 64, "b" * 64, "c" * 64
A, B, C = Variant("delta", DELTA_A), Variant("delta", DELTA_B), Variant("delta", DELTA_C)


SETTINGS = {
    "width": 160, "height": 96, "frames": 17, "steps": 4, "shift": None, "guidance": 5.5, "negative_prompt": "",
    "scheduler": "UniPC", "offload": None, "cfg": True,
}  # fmt: skip
"""All that decides the frames is known."""


def document(delta: str | None = DELTA_A, **changes: Any) -> ClipDocument:
    fields: dict[str, Any] = {
        "base": BASE,
        "prompt_sha256": prompt_sha256("a red circle"),
        "seed": 7,
        "settings": SETTINGS,
        "expert_steps": {"high_noise": 1, "low_noise": 3},
    }
    return ClipDocument(delta, **(fields | changes))


def scene(seed: int, *, variant: int = 0, frames: int = 17, width: int = 160, height: int = 96) -> Frames:
    """uint8 [frames, height, width, 3]. A variant is the scene under a weak smooth field of its own."""
    rng = np.random.default_rng(seed)
    other = np.random.default_rng(1000 * seed + variant)
    y, x = np.mgrid[0:height, 0:width] / height
    field = 4.0 * np.sin(x * other.uniform(3, 9) + other.uniform(0, 6)) * np.cos(y * other.uniform(3, 9))
    shapes = [(rng.uniform(0, 1.6), rng.uniform(0, 1), *rng.uniform(-0.5, 0.5, 2), rng.uniform(-200, 200, 3))
              for _ in range(5)]  # fmt: skip
    made = []
    for index in range(frames):
        t = index / max(frames - 1, 1)
        picture = np.full((height, width, 3), 120.0)
        for left, top, dx, dy, colour in shapes:
            blob = np.exp(-((x - left - dx * t) ** 2 + (y - top - dy * t) ** 2) / 0.05)
            picture += blob[..., None] * colour
        if variant:
            picture += field[..., None]
        made.append(picture)
    return np.stack(made).clip(0, 255).astype(np.uint8)


def write(path: Path, frames: Frames, *, codec: str = "libx264", pixels: str = "yuv420p", sound: bool = False,
          tags: dict[str, str] | None = None, **options: str) -> Path:  # fmt: skip
    with av.open(str(path), "w") as container:
        container.metadata.update(tags or {})
        stream: Any = container.add_stream(codec, rate=Fraction(16))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        stream.options = {"crf": "18"} | options if codec.startswith("lib") else options
        audio: Any = container.add_stream("aac", rate=48_000) if sound else None
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            tone = (np.sin(np.arange(48_000) / 20)[None] * 0.3).astype(np.float32)
            heard: Any = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            heard.sample_rate = 48_000
            container.mux(audio.encode(heard))
            container.mux(audio.encode())
    return path


def remux(source: Path, out: Path, *, keep_tags: bool = True, tags: dict[str, str] | None = None,
          frames: int | None = None) -> Path:  # fmt: skip
    """As `ffmpeg -c copy` does it; `frames` keeps the first ones."""
    with av.open(str(source)) as reader, av.open(str(out), "w") as writer:
        writer.metadata.update((dict(reader.metadata) if keep_tags else {}) | (tags or {}))
        copies = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        packets = [packet for packet in reader.demux() if packet.size]
        for packet in packets[:frames]:
            packet.stream = copies[packet.stream_index]
            writer.mux(packet)
    return out


def reencode(source: Path, out: Path, *, crf: int = 28, divide: int = 1, first: int = 0, last: int | None = None,
             keep_tags: bool = True) -> Path:  # fmt: skip
    with av.open(str(source)) as reader:
        tags = dict(reader.metadata) if keep_tags else {}
        pictures = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)][first:last]
    height, width = (extent // divide for extent in pictures[0].shape[:2])
    small = [
        av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height).to_ndarray(format="rgb24")
        for picture in pictures
    ]
    return write(out, np.stack(small), crf=str(crf), tags=tags)
