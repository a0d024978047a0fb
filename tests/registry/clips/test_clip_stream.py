"""Opening clips, and the digest of the decoded stream: the same for the same pictures, whatever carries them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import reencode, remux, scene, write

from hfq.registry.clips import stream
from hfq.registry.clips.stream import open_clip
from hfq.schema.errors import ClipStreamError, TooLargeError


def digest(path: Path) -> str:
    with open_clip(path) as clip:
        return clip.stream_facts().digest


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(1), bf="2")


def test_the_digest_is_what_its_definition_says(original: Path) -> None:
    expected = hashlib.sha256()
    with av.open(str(original)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]  # PyAV's own packing of yuv420p
    for frame in frames:
        expected.update(b"yuv420p\t160\t96\n" + frame.tobytes())
    expected.update(b"frames\t17\n")
    with open_clip(original) as clip:
        facts = clip.stream_facts()
        assert clip.file_sha256() == hashlib.sha256(original.read_bytes()).hexdigest()
        assert clip.size_bytes == original.stat().st_size
    assert facts.digest == expected.hexdigest()
    assert (facts.frames, facts.width, facts.height) == (17, 160, 96)


@pytest.mark.parametrize(("suffix", "container"), [("mp4", "mp4"), ("m4v", "mp4"), ("mov", "mov"), ("mkv", "matroska")])
def test_another_container_has_the_same_stream(suffix: str, container: str, original: Path, tmp_path: Path) -> None:
    copy = remux(original, tmp_path / f"copy.{suffix}", keep_tags=False)
    assert copy.read_bytes() != original.read_bytes()
    with open_clip(copy) as clip:
        assert clip.container == container
        assert clip.stream_facts().digest == digest(original)


def test_other_pictures_have_another_digest(original: Path, tmp_path: Path) -> None:
    lossless = write(tmp_path / "a.mkv", scene(1), codec="ffv1", pixels="yuv444p")
    dot = scene(1)
    dot[8, 40, 40] ^= 64
    others = [
        lossless,
        write(tmp_path / "b.mkv", dot, codec="ffv1", pixels="yuv444p"),
        reencode(original, tmp_path / "c.mp4"),
        remux(original, tmp_path / "d.mp4", frames=12),
    ]
    assert len({digest(original), *map(digest, others)}) == 5


def test_size_and_count_are_in_the_digest(tmp_path: Path) -> None:
    """The same grey bytes in another shape, and twice as many frames of half the size."""
    shapes = [(4, 32, 64), (4, 64, 32), (8, 32, 32), (2, 64, 64)]
    flat = [np.full((*shape, 3), 128, np.uint8) for shape in shapes]
    found = {digest(write(tmp_path / f"{i}.mkv", f, codec="ffv1", pixels="gray")) for i, f in enumerate(flat)}
    assert len(found) == 4


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "gray", "yuv420p10le", "bgr0"])
def test_lossless_pixel_formats_and_odd_sizes(pixels: str, tmp_path: Path) -> None:
    """The padding of a line is memory that nobody wrote: twice decoded, once digested."""
    path = write(tmp_path / "odd.mkv", scene(2, frames=4, width=51, height=37), codec="ffv1", pixels=pixels)
    with open_clip(path) as clip:
        facts = clip.stream_facts()
    assert facts.digest == digest(path) == digest(remux(path, tmp_path / "copy.mkv"))
    assert (facts.frames, facts.width, facts.height) == (4, 51, 37)


def test_vp9_in_webm_and_mkv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", scene(3, frames=5), codec="libvpx-vp9", deadline="realtime")
    assert digest(path) == digest(remux(path, tmp_path / "a.mkv"))


def test_a_link_is_followed(original: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(original)
    assert digest(tmp_path / "link.mp4") == digest(original)


def test_sound_is_no_part_of_the_digest(tmp_path: Path) -> None:
    with_sound = write(tmp_path / "sound.mp4", scene(1), sound=True)
    silent = tmp_path / "silent.mp4"
    with av.open(str(with_sound)) as reader, av.open(str(silent), "w") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    assert digest(silent) == digest(with_sound)


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_FRAMES", 16), ("MAX_FRAME_PIXELS", 160 * 96 - 1), ("MAX_TOTAL_PIXELS", 17 * 160 * 96 - 1),
     ("MAX_CLIP_BYTES", 1000)],
)  # fmt: skip
def test_limits(limit: str, value: int, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, limit, value)
    with pytest.raises(TooLargeError):
        digest(original)
    monkeypatch.setattr(stream, limit, value + 10**6)
    assert digest(original)


def test_other_codecs_are_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", scene(1, frames=2), codec="mjpeg", pixels="yuvj420p")
    with pytest.raises(ClipStreamError, match="codec"):
        digest(path)
