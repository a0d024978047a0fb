"""A stamped copy is the clip with another comment: whatever else the file holds is in it, or it is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from made_clips import B, document, scene

from hfq.registry.clips.container_facts import container_facts, require_same
from hfq.registry.clips.keys import init_keys, load_local_key
from hfq.registry.clips.manifest import Trust, read_manifest, stored_manifest
from hfq.registry.clips.stamp import stamp_clip
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag, write_tag
from hfq.schema.errors import RemuxError, TruncatedFileError, UsageError


def encode(path: Path, codec: str, *, format_options: dict[str, str] | None = None, tags: dict[str, str] | None = None,
           change: Callable[[Any, Any], None] | None = None, frames: int = 9, **options: str) -> Path:  # fmt: skip
    with av.open(str(path), "w", options=format_options or {}) as container:
        container.metadata.update(tags or {})
        stream: Any = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt, stream.options = 160, 96, "yuv420p", options
        if change is not None:
            change(container, stream)
        for frame in scene(1, frames=frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def rich(path: Path, **format_options: str) -> Path:
    """Two sounds in two languages, chapters, marks and colours, a turned picture of another aspect."""
    with av.open(str(path), "w", options=format_options) as container:
        container.metadata.update(
            {"title": "a clip", "artist": "somebody", "creation_time": "2024-03-01T10:00:00.000000Z", "comment": "mine"}
        )
        video: Any = container.add_stream("libx264", rate=16, options={"bf": "2"})
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        context = video.codec_context
        context.sample_aspect_ratio = Fraction(4, 3)
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 2
        video.metadata.update({"language": "deu", "title": "Bild", "timecode": "01:00:00:00"})
        video.set_display_rotation(90)
        sounds: list[Any] = []
        for language in ("eng", "jpn"):
            sounds.append(container.add_stream("aac", rate=48_000))
            sounds[-1].metadata.update({"language": language, "title": f"sound {language}"})
        sounds[1].disposition = av.stream.Disposition.comment
        container.set_chapters(
            [
                {"id": number, "start": 300 * number, "end": 300 * number + 300, "time_base": Fraction(1, 1000),
                 "metadata": {"title": f"part {number}"}}
                for number in (1, 2)
            ]
        )  # fmt: skip
        if path.suffix == ".mkv":
            container.add_attachment("letters.ttf", "font/ttf", b"no real letters" * 9)
        for index, frame in enumerate(scene(1, frames=17)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index + 8, Fraction(1, 16)  # half a second in
            container.mux(video.encode(picture))
        container.mux(video.encode())
        for sound in sounds:
            tone: Any = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 48_000
            container.mux(sound.encode(tone))
            container.mux(sound.encode())
    return path


def dump(path: Path) -> dict[str, Any]:
    """As ffprobe would show it, and the packets from the start and after a jump."""
    with av.open(str(path)) as container:
        tags = {name.lower(): text for name, text in container.metadata.items()}
        tags = {name: text for name, text in tags.items() if name != "comment" and "hfq_previous" not in name}
        found: dict[str, Any] = {"tags": tags, "chapters": container.chapters(), "start": container.start_time}
        for stream in container.streams:
            seen: dict[str, Any] = {
                "type": stream.type, "tags": dict(stream.metadata), "start": stream.start_time,
                "duration": stream.duration, "marks": int(stream.disposition), "time base": stream.time_base,
            }  # fmt: skip
            if isinstance(stream, av.VideoStream):
                context: Any = stream.codec_context
                seen |= {"aspect": stream.sample_aspect_ratio, "rate": stream.average_rate, "codec": context.codec_tag,
                         "colours": (context.color_primaries, context.color_trc, context.color_range)}  # fmt: skip
            found[f"stream {stream.index}"] = seen
        found["packets"] = [
            (p.stream_index, p.pts, p.dts, p.is_keyframe, bytes(p)) for p in container.demux() if p.size
        ]
        container.seek(700_000)
        found["jump"] = [(p.stream_index, p.pts, bytes(p)) for p in container.demux() if p.size]
        container.seek(0)
        frame = next(container.decode(video=0))
        found["picture"] = (frame.rotation, sorted(str(entry.type) for entry in frame.side_data))
    return found


def comments(path: Path) -> dict[str, str]:
    with open_clip(path) as clip:
        return {name: text for name, text in clip.tags().items() if name.startswith(("comment", "hfq_previous"))}


def hvc1(container: Any, stream: Any) -> None:
    stream.codec_context.codec_tag = "hvc1"


def wide(container: Any, stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(4, 5)


COMFY = {"workflow": '{"nodes": [{"id": 1}]}', "prompt": '{"3": {"class_type": "KSampler"}}'}
KEYS = {"movflags": "use_metadata_tags"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "workflow.mp4": ("libx264", {"format_options": KEYS, "tags": COMFY}),
    "workflow-and-comment.mp4": ("libx264", {"format_options": KEYS, "tags": COMFY | {"comment": "VHS"}}),
    "workflow.mov": ("libx264", {"format_options": KEYS, "tags": COMFY | {"comment": "VHS"}}),
    "workflow-faststart.mp4": ("libx264", {"format_options": {"movflags": "use_metadata_tags+faststart"},
                                           "tags": COMFY}),
    "workflow.webm": ("libvpx-vp9", {"tags": COMFY | {"comment": "VHS"}}),
    "workflow.mkv": ("libx264", {"tags": COMFY}),
    "apple.mp4": ("libx265", {"change": hvc1, "x265-params": "log-level=none"}),
    "apple.mov": ("libx265", {"change": hvc1, "tags": {"comment": "a résumé", "title": "x"},
                              "x265-params": "log-level=none"}),
    "aspect.mp4": ("libx264", {"change": wide}),
    "aspect.mkv": ("libx264", {"change": wide}),
    "av1.webm": ("libsvtav1", {}),
    "av1.mp4": ("libsvtav1", {"format_options": {"movflags": "faststart"}}),
    "av1.mkv": ("libsvtav1", {"tags": {"comment": "x"}}),
    "vp9.webm": ("libvpx-vp9", {}),
    "vp9.mp4": ("libvpx-vp9", {}),
    "vp8.webm": ("libvpx", {}),
    "ffv1.mkv": ("ffv1", {}),
    "mpeg4.mp4": ("mpeg4", {}),
    "clusters.mkv": ("libx264", {"format_options": {"cluster_time_limit": "100"}, "g": "3", "frames": 40}),
    "cues-first.mkv": ("libx264", {"format_options": {"cues_to_front": "1", "cluster_time_limit": "100"}, "g": "3",
                                   "frames": 40, "tags": {"comment": "y" * 300}}),
    "live.webm": ("libvpx-vp9", {"format_options": {"live": "1", "cluster_time_limit": "100"}, "g": "3"}),
    "fragments.mp4": ("libx264", {"format_options": {"movflags": "frag_keyframe+empty_moov"}, "g": "3"}),
    "fragments-by-file.mp4": ("libx264", {"format_options": {"movflags": "frag_keyframe"}, "g": "3"}),
    "segments.mp4": ("libx264", {"format_options": {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"},
                                 "g": "3"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, found = tmp_path_factory.mktemp("made"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in found:
            codec, how = CASES[name]
            found[name] = encode(folder / name, codec, **how)
        return found[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_the_copy_has_everything(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    source, before = made(name), dump(made(name))
    bytes_before = source.read_bytes()
    copy = write_tag(source, tmp_path / f"copy{source.suffix}", document())
    assert dump(copy.path) == before
    assert source.read_bytes() == bytes_before
    had = comments(source).get("comment")
    own = document().to_bytes().decode()
    assert comments(copy.path) == {"comment": own} | ({"hfq_previous_comment": had} if had else {})
    # And again, and back: a stamp on a stamp loses nothing either.
    again = write_tag(copy.path, tmp_path / f"again{source.suffix}", document(B.id))
    assert dump(again.path) == before
    assert set(comments(again.path).values()) == {own, document(B.id).to_bytes().decode(), *filter(None, [had])}


@pytest.mark.parametrize(("suffix", "how"), [
    ("mp4", {}), ("mp4", {"movflags": "faststart"}), ("m4v", {}), ("mov", {}), ("mov", {"movflags": "faststart"}),
    ("mov", {"movflags": "use_metadata_tags"}), ("mkv", {}), ("mkv", {"cluster_time_limit": "100"}),
    ("mkv", {"cues_to_front": "1"}),
])  # fmt: skip
def test_languages_titles_marks_chapters_attachments_times(suffix: str, how: dict[str, str], tmp_path: Path) -> None:
    source = rich(tmp_path / f"in.{suffix}", **how)
    before = dump(source)
    assert len(before["chapters"]) == 2
    assert before["picture"][0] == 90
    languages = {entry["tags"].get("language") for name, entry in before.items() if "stream" in name}
    assert languages >= ({"jpn"} if suffix == "mov" else {"deu", "jpn"})  # QuickTime's own list calls German "ger"
    copy = write_tag(source, tmp_path / f"out.{suffix}", document()).path
    assert dump(copy) == before
    assert comments(copy) == {"comment": document().to_bytes().decode(), "hfq_previous_comment": "mine"}


@pytest.mark.parametrize("name", ["workflow-and-comment.mp4", "workflow.mov", "apple.mp4", "av1.mp4", "vp9.mp4"])
def test_a_signed_copy_has_everything_as_well(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    init_keys(tmp_path / "config")
    source = made(name)
    stamped = stamp_clip(source, tmp_path / f"out{source.suffix}", document(), load_local_key(tmp_path / "config"))
    assert dump(stamped.path) == dump(source)
    with open_clip(stamped.path) as clip:
        report = read_manifest(clip, "")
        assert report is not None
        assert report.trust is Trust.UNTRUSTED
        assert stored_manifest(clip) == stamped.manifest
    with open_clip(source) as clip:
        assert stored_manifest(clip) is None


def test_matroska_with_a_key_says_how_to_stamp_it(made: Callable[[str], Path], tmp_path: Path) -> None:
    init_keys(tmp_path / "config")
    key = load_local_key(tmp_path / "config")
    with pytest.raises(UsageError, match="--no-sign"):
        stamp_clip(made("workflow.webm"), tmp_path / "out.webm", document(), key)
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_the_tag_can_be_read_from_every_kind(made: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("av1.webm", "workflow.mov", "fragments.mp4"):
        source = made(name)
        with open_clip(write_tag(source, tmp_path / name, document()).path) as clip:
            assert read_tag(clip) == document()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def with_boxes(source: Path, out: Path, in_moov: bytes, last: bytes) -> Path:
    """Boxes added to an MP4 whose index stands at its end, so that nothing in it moves."""
    data = source.read_bytes()
    at = data.rindex(b"moov") - 4
    size = struct.unpack_from(">I", data, at)[0]
    assert at + size == len(data)
    out.write_bytes(data[:at] + struct.pack(">I", size + len(in_moov)) + data[at + 4 :] + in_moov + last)
    return out


def test_boxes_that_nobody_knows_are_in_the_copy(made: Callable[[str], Path], tmp_path: Path) -> None:
    strange = box(b"abcd", b"what nobody knows")
    user = box(b"udta", box(b"\xa9cmt", struct.pack(">HH", 3, 0) + b"mac"), box(b"wxyz", b"inside"), bytes(4))
    source = with_boxes(made("mpeg4.mp4"), tmp_path / "in.mp4", in_moov=strange + user, last=box(b"efgh", b"behind"))
    copy = write_tag(source, tmp_path / "out.mp4", document()).path.read_bytes()
    for kept in (strange, box(b"wxyz", b"inside"), box(b"efgh", b"behind")):
        assert kept in copy
    assert comments(tmp_path / "out.mp4")["hfq_previous_comment"] == "mac"
    media = source.read_bytes()[: source.read_bytes().index(b"moov") - 4]
    assert copy.startswith(media)


def test_a_file_that_lacks_its_last_byte_is_no_clip(made: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("mpeg4.mp4", "workflow-faststart.mp4"):
        (tmp_path / name).write_bytes(made(name).read_bytes()[:-1])
        with pytest.raises(TruncatedFileError):
            write_tag(tmp_path / name, tmp_path / "out.mp4", document())


def test_a_cover_picture_is_copied_and_is_not_the_clip(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with av.open(str(made("mpeg4.mp4"))) as found, av.open(str(source), "w") as container:
        stream = container.add_stream_from_template(found.streams.video[0])
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in found.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(cover.encode())
    before = dump(source)
    assert before["stream 1"]["marks"] & 0x400
    copy = write_tag(source, tmp_path / "out.mp4", document())
    assert dump(copy.path) == before
    with open_clip(made("mpeg4.mp4")) as plain:
        assert copy.stream == plain.stream_facts()


def marked(container: Any, stream: Any) -> None:
    stream.disposition = av.stream.Disposition.forced


def french(container: Any, stream: Any) -> None:
    stream.metadata["language"] = "fra"


@pytest.mark.parametrize(
    ("other", "named"),
    [({"change": marked}, "disposition"), ({"change": french}, "language"), ({"change": wide}, "aspect"),
     ({"frames": 8}, "packets"), ({"tags": {"x": "y"}}, "tag X")],
)  # fmt: skip
def test_a_difference_is_named(other: dict[str, Any], named: str, tmp_path: Path) -> None:
    found = []
    for name, how in (("a.mkv", {}), ("b.mkv", other)):
        with open_clip(encode(tmp_path / name, "mpeg4", **how)) as clip:
            found.append(container_facts(clip))
    require_same(found[0], found[0], "clip")
    with pytest.raises(RemuxError, match=named):
        require_same(*found, "clip")


def test_other_times_are_another_clip(tmp_path: Path) -> None:
    found = []
    for name, late in (("a.mkv", 0), ("b.mkv", 40)):
        with (
            av.open(str(encode(tmp_path / f"in-{name}", "mpeg4"))) as source,
            av.open(str(tmp_path / name), "w") as copy,
        ):
            stream = copy.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(source.demux(video=0)):
                if packet.size:
                    packet.pts, packet.dts = packet.pts + late * (number == 4), packet.dts + late * (number == 4)
                    packet.stream = stream
                    copy.mux(packet)
        with open_clip(tmp_path / name) as clip:
            found.append({n: v for n, v in container_facts(clip).items() if n == "stream 0: packets"})
    with pytest.raises(RemuxError, match="packets"):
        require_same(*found, "clip")
