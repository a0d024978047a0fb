"""The bytes of a file whose comment changes, for forms that no encoder here writes: every position still leads where it
led, and what cannot be corrected is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hfq.registry.clips import matroska_comment, mp4_comment
from hfq.registry.clips.edits import write_edited
from hfq.schema.errors import RemuxError, TooLargeError


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


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
    shot = ebml(0x67C8, ebml(0x45A3, b"COMMENT"), ebml(0x4487, b"of a shot"))
    level = ebml(0x7373, ebml(0x63C0, ebml(0x63CA, b"SHOT")), shot)
    tags = ebml(0x1254C367, summed(tag, track, level))
    tracks = ebml(0x1654AE6B, b"\xec\x80" * 4)
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
                track = {n: r for n, _, r in children(raw)}[0xB7]
                cue = {n: r for n, _, r in children(track)}
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
    for kept in (b"of a track", b"of a shot"):
        assert ebml(0x45A3, b"COMMENT") + ebml(0x4487, kept) in body


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


def test_a_position_that_is_not_the_clusters_own_stays(tmp_path: Path) -> None:
    """Live streams write what they like there."""
    data = bytearray(matroska(tags_last=True))
    data[data.index(b"\xa7\x81") + 2] = 1
    edits = matroska_comment.comment_edits(io.BytesIO(data), len(data), "x", where="x")
    write_edited(io.BytesIO(data), len(data), tmp_path / "out", edits)
    assert (tmp_path / "out").read_bytes().count(b"\xa7\x81\x01") == 1


def test_a_list_of_tags_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """A box of user data holds one such list: the comment then stands beside it."""
    other = box(b"meta", bytes(4), box(b"hdlr", bytes(8) + b"ID32" + bytes(13)), box(b"ID32", b"\0\0\0\0und"))
    data = box(b"ftyp", bytes(8)) + box(b"mdat", bytes(8)) + box(b"moov", box(b"udta", other))
    out = edited(data, "hello", tmp_path)
    assert other + box(b"\xa9cmt", struct.pack(">HH", 5, 0x55C4) + b"hello") in out
