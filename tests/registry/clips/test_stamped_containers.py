"""A stamped copy is the clip with another comment: whatever else the file holds is in it, or it is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from made_clips import B, document, scene

from hfq.registry.clips import matroska_comment, mp4_comment
from hfq.registry.clips.edits import write_edited
from hfq.registry.clips.keys import init_keys, load_local_key
from hfq.registry.clips.manifest import Trust, read_manifest, stored_manifest
from hfq.registry.clips.stamp import stamp_clip
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag, write_tag
from hfq.schema.errors import RemuxError, TooLargeError, UsageError


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
    "apple.mov": ("libx265", {"change": hvc1, "tags": {"comment": "a résumé", "title": "x"}, "x265-params": "log-level=none"}),
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


# What no encoder here writes, byte by byte.


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def positions(data: bytes, name: bytes) -> list[int]:
    return [at for at in range(len(data)) if data.startswith(name, at)]


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


def edited(data: bytes, comment: str, tmp_path: Path) -> bytes:
    out = tmp_path / "edited"
    out.unlink(missing_ok=True)
    file = io.BytesIO(data)
    write_edited(
        file, len(data), out, mp4_comment.comment_edits(file, len(data), comment, is_quicktime=False, where="x")
    )
    return out.read_bytes()


def table(kind: bytes, form: str, *entries: int) -> bytes:
    return box(kind, struct.pack(f">II{len(entries)}{form}", 0, len(entries), *entries))


def index(*tables: bytes) -> bytes:
    return box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", *tables)))))


def test_positions_behind_a_grown_index_are_corrected(tmp_path: Path) -> None:
    head = box(b"ftyp", b"isom" + bytes(4))
    start = len(head) + len(index(table(b"stco", "I", 0, 0), table(b"co64", "Q", 0)))
    moof = len(head) + len(index(table(b"stco", "I", 0, 0), table(b"co64", "Q", 0))) + len(box(b"mdat", bytes(20)))
    moov = index(table(b"stco", "I", start + 8, 3), table(b"co64", "Q", start + 9))
    fragment = box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">IIQ", 1, 1, moof), b"")))
    plain = box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">IIQ", 0, 1, moof), b"")))
    access = [
        box(b"tfra", struct.pack(">IIII", 0, 1, 0b00_01_10, 1) + struct.pack(">II", 5, moof) + b"abcdef"),
        box(b"tfra", struct.pack(">IIII", 1 << 24, 1, 0, 1) + struct.pack(">QQ", 5, moof) + b"abc"),
    ]
    data = head + moov + box(b"mdat", bytes(20)) + fragment + plain + box(b"mfra", *access)
    out = edited(data, "hello", tmp_path)
    grown = len(out) - len(data)
    assert grown > 0
    assert table(b"stco", "I", start + 8 + grown, 3) in out  # 3 lies before the index, and stays
    assert table(b"co64", "Q", start + 9 + grown) in out
    assert struct.pack(">IIQ", 1, 1, moof + grown) in out
    assert plain in out
    assert struct.pack(">II", 5, moof + grown) + b"abcdef" in out
    assert struct.pack(">QQ", 5, moof + grown) + b"abc" in out


@pytest.mark.parametrize(("moov", "message"), [
    (index(table(b"saio", "I", 1)), "box saio"),
    (index() + box(b"meta", bytes(4), box(b"hdlr", bytes(25)), box(b"iloc", bytes(8))), "box iloc"),
    (index(box(b"meta", bytes(4), box(b"hdlr", bytes(25)), box(b"iloc", bytes(8)))), "box iloc"),
    (index(table(b"stco", "I", 2**32 - 1)), "behind 4 GiB"),
    (index(struct.pack(">I", 16) + b"stco" + struct.pack(">II", 0, 9)), "malformed"),
    (box(b"moov", box(b"cmov", b"x")), "compressed"),
    (index() + index(), "not one index"),
    (box(b"udta"), "not one index"),
])  # fmt: skip
def test_an_index_that_cannot_be_corrected_is_refused_by_name(moov: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(RemuxError, match=message):
        edited(box(b"ftyp", bytes(8)) + moov + box(b"mdat", bytes(40)), "hello", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_index_at_the_end_needs_no_correction(tmp_path: Path) -> None:
    data = box(b"ftyp", bytes(8)) + box(b"mdat", bytes(40)) + index(table(b"saio", "I", 1), table(b"stco", "I", 24))
    assert table(b"saio", "I", 1) in edited(data, "hello", tmp_path)


def ebml(number: int, *parts: bytes, width: int = 0) -> bytes:
    body = b"".join(parts)
    width = width or next(count for count in range(1, 9) if len(body) < (1 << 7 * count) - 1)
    return (
        number.to_bytes((number.bit_length() + 7) // 8, "big")
        + (len(body) | 1 << 7 * width).to_bytes(width, "big")
        + body
    )


def summed(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return ebml(0xBF, zlib.crc32(body).to_bytes(4, "little")) + body


def segment_of(data: bytes) -> bytes:
    """The segment's data, by its own size."""
    at = data.index(b"\x18\x53\x80\x67") + 4
    width = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    body = data[at + width :]
    assert len(body) == size
    return body


def children(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, position and data of elements."""
    at = 0
    while at < len(data):
        begin, length = at, 9 - data[at].bit_length()
        number, at = int.from_bytes(data[at : at + length], "big"), at + length
        width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
        yield number, begin, data[at + width : at + width + size]
        at += width + size


def matroska(*, tags_last: bool, cluster_sum: bool = False) -> bytes:
    """SeekHead, Tracks, Cues, two clusters with Position; tags before or behind them; numbers as short as can be."""
    tag = ebml(0x7373, ebml(0x63C0), ebml(0x67C8, ebml(0x45A3, b"Comment"), ebml(0x4487, b"theirs")))
    track = ebml(
        0x7373, ebml(0x63C0, ebml(0x63C5, b"\1")), ebml(0x67C8, ebml(0x45A3, b"COMMENT"), ebml(0x4487, b"of a track"))
    )
    tags = ebml(0x1254C367, summed(tag, track))
    tracks = ebml(0x1654AE6B, bytes(20).replace(b"\0", b"\xec\x80"))
    wanted = [0, 0, 0, 0]
    while True:

        def head(number: int, position: int) -> bytes:
            return ebml(0x4DBB, ebml(0x53AB, number.to_bytes(4, "big")), ebml(0x53AC, bytes([position])))

        seek = ebml(0x114D9B74, summed(head(0x1654AE6B, wanted[0]), head(0x1254C367, wanted[1])))
        cues = ebml(0x1C53BB6B, summed(*(
            ebml(0xBB, ebml(0xB3, b"\0"), ebml(0xB7, ebml(0xF7, b"\1"), ebml(0xF1, bytes([at])))) for at in wanted[2:]
        )))  # fmt: skip
        clusters = []
        for at in wanted[2:]:
            inside = ebml(0xE7, b"\0"), ebml(0xA7, bytes([at])), ebml(0xA3, b"block")
            clusters.append(ebml(0x1F43B675, summed(*inside) if cluster_sum else b"".join(inside)))
        parts = [seek, tracks, cues, *([] if tags_last else [tags]), *clusters, *([tags] if tags_last else [])]
        starts = [sum(map(len, parts[:number])) for number in range(len(parts))]
        places = [
            parts.index(tracks),
            parts.index(tags),
            parts.index(clusters[0]),
            parts.index(clusters[1], parts.index(clusters[0]) + 1),
        ]
        found = [starts[place] for place in places]
        if found == wanted:
            return ebml(0x1A45DFA3, b"") + ebml(0x18538067, *parts)
        wanted = found


@pytest.mark.parametrize("tags_last", [True, False])
@pytest.mark.parametrize("cluster_sum", [True, False])
def test_positions_in_matroska_lead_where_they_led(tags_last: bool, cluster_sum: bool, tmp_path: Path) -> None:
    data = matroska(tags_last=tags_last, cluster_sum=cluster_sum)
    file = io.BytesIO(data)
    edits = matroska_comment.comment_edits(file, len(data), "x" * 300, where="x")
    write_edited(file, len(data), tmp_path / "out", edits)
    body = segment_of((tmp_path / "out").read_bytes())
    top = {begin: (number, inside) for number, begin, inside in children(body)}
    assert [number for number, _ in top.values()].count(0x1254C367) == 1

    def checked(inside: bytes) -> bytes:
        if inside[:2] != b"\xbf\x84":
            return inside
        assert zlib.crc32(inside[6:]).to_bytes(4, "little") == inside[2:6]
        return inside[6:]

    leads = []
    for number, begin, inside in children(body):
        parts = list(children(checked(inside))) if number in (0x114D9B74, 0x1C53BB6B, 0x1F43B675, 0x1254C367) else []
        for part, _, raw in parts:
            if part == 0x4DBB:
                what, where = (raw2 for _, _, raw2 in children(raw))
                leads.append((int.from_bytes(what, "big"), top[int.from_bytes(where, "big")][0]))
            elif part == 0xBB:
                cue = dict((n, r) for n, _, r in children(dict((n, r) for n, _, r in children(raw))[0xB7]))
                leads.append((0x1F43B675, top[int.from_bytes(cue[0xF1], "big")][0]))
            elif part == 0xA7:
                assert begin == int.from_bytes(raw, "big")
        if number == 0x1F43B675:
            # One byte cannot say where the clusters stand now: Position is left out, in its own place.
            assert [part for part, _, _ in parts] == [0xE7, 0xEC, 0xA3]
            assert len(inside) == len(next(i for n, _, i in children(segment_of(data)) if n == number))
    assert len(leads) == 4
    assert all(expected == found for expected, found in leads)
    assert b"HFQ_PREVIOUS_COMMENT" in body
    assert body.count(b"of a track") == body.count(b"theirs") == 1
    assert ebml(0x45A3, b"COMMENT") + ebml(0x4487, b"of a track") in body


def broken_cue(data: bytes) -> bytes:
    at = data.index(b"\xf1\x81")
    return data[: at + 2] + bytes([data[at + 2] + 1]) + data[at + 3 :]


@pytest.mark.parametrize("change", [
    broken_cue, lambda data: data + ebml(0x18538067, b""), lambda data: data[:20], lambda data: ebml(0x1A45DFA3, b""),
    lambda data: ebml(0x1A45DFA3, b"") + ebml(0x18538067, ebml(0x1F43B675, bytes(5))),
])  # fmt: skip
def test_elements_that_make_no_sense_are_refused(change: Callable[[bytes], bytes]) -> None:
    data = change(matroska(tags_last=True))
    with pytest.raises(RemuxError):
        matroska_comment.comment_edits(io.BytesIO(data), len(data), "x", where="x")


def test_more_elements_than_any_clip_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matroska_comment, "_MAX_ELEMENTS", 100)
    data = ebml(0x1A45DFA3, b"") + ebml(0x18538067, ebml(0xEC) * 200)
    with pytest.raises(TooLargeError, match="too many elements"):
        matroska_comment.comment_edits(io.BytesIO(data), len(data), "x", where="x")


def test_the_tag_can_be_read_from_every_kind(made: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("av1.webm", "workflow.mov", "fragments.mp4"):
        source = made(name)
        with open_clip(write_tag(source, tmp_path / name, document()).path) as clip:
            assert read_tag(clip) == document()
