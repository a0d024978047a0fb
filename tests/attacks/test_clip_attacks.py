"""Hostile clips: each is refused with an error of its own or reported as broken, and opens nothing besides itself."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from made_clips import document, remux, scene, write

from hfq.registry.clips.evidence import Evidence, gather_evidence
from hfq.registry.clips.manifest import Trust
from hfq.registry.clips.stream import MAX_CLIP_BYTES
from hfq.registry.clips.tag import write_tag
from hfq.schema.errors import (
    ClipDocumentError,
    ClipStreamError,
    DuplicateKeyError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    NotAClipError,
    SchemaViolationError,
    TooLargeError,
    TruncatedFileError,
    UnknownSchemaVersionError,
    UnreadableFileError,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(1, frames=9), bf="2")


def refused(path: Path, *errors: type[HfqError]) -> None:
    """Both verbs refuse it, with little work, with one line."""
    is_readable = path.is_file() and path.stat().st_size < 10**6
    start = path.read_bytes()[:8] if is_readable else b""
    new = path.with_name("new.mkv" if start[:1] == b"\x1a" else "new.mp4" if start[4:] in (b"ftyp", b"") else "new.mov")
    for verb in (gather_evidence, lambda p: write_tag(p, new, document())):
        started = time.process_time()
        with pytest.raises(errors) as caught:
            verb(path)
        assert caught.type in errors
        assert time.process_time() - started < 5  # of this process: a busy machine does not count
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()
    assert not new.exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "to-fifo.mp4").symlink_to(tmp_path / "fifo.mp4")
    (tmp_path / "to-device.mp4").symlink_to("/dev/zero")
    for name in ("fifo.mp4", "folder.mp4", "loop.mp4", "to-fifo.mp4", "to-device.mp4"):
        refused(tmp_path / name, UnreadableFileError)
    refused(tmp_path / "dangling.mp4", MissingPathError)
    refused(tmp_path / "none.mp4", MissingPathError)
    refused(tmp_path / "none.mp4" / "below", MissingPathError)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"ftyp", b"junk" * 1000, bytes(100_000), b"GIF89a" + bytes(100), b"\x89PNG\r\n\x1a\n",
     b"RIFF\0\0\0\0AVI "],
)  # fmt: skip
def test_junk(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(data)
    refused(tmp_path / "junk.mp4", NotAClipError)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + os.urandom(50_000),
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
        b"\0\0\0\x08moov",
        b"\xff\xff\xff\xffmoov" + bytes(1000),
        b"\0\0\0\1mdat\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(1000),
        b"\x1a\x45\xdf\xa3" + os.urandom(50_000),
        b"\x1a\x45\xdf\xa3\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(1000),
    ],
)
def test_junk_behind_a_right_beginning(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(data)
    refused(tmp_path / "junk.mp4", NotAClipError, ClipStreamError, TruncatedFileError)


def test_a_large_file(clip: Path, tmp_path: Path) -> None:
    for name, start in (("junk.mp4", b""), ("clip.mp4", clip.read_bytes())):
        with open(tmp_path / name, "wb") as file:
            file.write(start)
            file.truncate(MAX_CLIP_BYTES + 1)
        refused(tmp_path / name, TooLargeError)
    with open(tmp_path / "below.mp4", "wb") as file:
        file.truncate(MAX_CLIP_BYTES)
    refused(tmp_path / "below.mp4", NotAClipError)


@pytest.mark.parametrize("wrap", ["bare", "ftyp", "mkv"])
def test_a_list_of_other_files_opens_none_of_them(wrap: str, clip: Path, tmp_path: Path) -> None:
    """FFmpeg would take each of these for a playlist, by content, and open what it names."""
    beginnings = {"bare": b"", "ftyp": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "mkv": b"\x1a\x45\xdf\xa3"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for text in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {clip}\n",
            f"#EXTM3U\n#EXTINF:9,\n{clip.as_uri()}\n",
            f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}</BaseURL></MPD>',
        ):
            (tmp_path / "list.mp4").write_bytes(beginnings[wrap] + text.encode())
            refused(tmp_path / "list.mp4", NotAClipError, ClipStreamError)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_every_cut_of_a_clip(clip: Path, tmp_path: Path) -> None:
    front = tmp_path / "front.mp4"  # the index before the media, where players take what there is
    with av.open(str(clip)) as reader, av.open(str(front), "w", options={"movflags": "faststart"}) as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux():
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    for whole in (clip, front):
        data = whole.read_bytes()
        assert (data.index(b"moov") < data.index(b"mdat")) == (whole is front)
        for end in range(0, len(data), len(data) // 25):
            (tmp_path / "cut.mp4").write_bytes(data[:end])
            refused(tmp_path / "cut.mp4", NotAClipError, ClipStreamError, TruncatedFileError)


def test_flipped_bytes_end_in_an_answer(clip: Path, tmp_path: Path) -> None:
    """Any byte may be anything: evidence or an error of ours, never another exception."""
    import random

    rng, data = random.Random(0), clip.read_bytes()
    answers = set()
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / "changed.mp4").write_bytes(changed)
        try:
            answers.add(type(gather_evidence(tmp_path / "changed.mp4")))
        except HfqError as error:
            answers.add(type(error))
    assert len(answers) > 1
    assert all(issubclass(answer, Evidence | MalformedFileError) for answer in answers)


def tagged(clip: Path, out: Path, comment: str) -> Path:
    return remux(clip, out, tags={"comment": comment})


GOOD = json.dumps(document().to_json())


@pytest.mark.parametrize(
    ("comment", "error"),
    [
        (GOOD[:-20], TruncatedFileError),
        (GOOD.replace("hfq.clip/1", "hfq.clip/2"), UnknownSchemaVersionError),
        (GOOD.replace('"seed": 7', '"seed": 7, "seed": 8'), DuplicateKeyError),
        (GOOD.replace('"seed": 7', '"seed": 1e999'), MalformedFileError),
        (GOOD.replace('"seed": 7', '"seed": NaN'), MalformedFileError),
        (GOOD.replace('"seed": 7', '"seed": 7, "../x": 1'), SchemaViolationError),
        (GOOD.replace('"seed": 7', '"seed": 7, "prompt": "forged"'), ClipDocumentError),
        (GOOD.replace('"seed": 7', '"seed": 7, "prompt": "\\ud800"'), MalformedFileError),
        (GOOD.replace('"seed": 7', '"seed": ' + "[" * 3000 + "]" * 3000), MalformedFileError),
        ('{"schema": "hfq.clip/1", "x": "' + "x" * 200_000 + '"}', TooLargeError),
        ('{"schema": "hfq.clip/1", "delta": "\x1b[2J"}', MalformedFileError),
    ],
)
def test_hostile_tags_are_broken_tags(comment: str, error: type[HfqError], clip: Path, tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        found = gather_evidence(tagged(clip, tmp_path / f"x.{suffix}", comment))
        assert found.tag is None
        assert type(found.tag_error) is error
        assert str(found.tag_error).isprintable()


@pytest.mark.parametrize(
    "comment", ["", "{", "[]", "null", "made with hfq.clip/1", '{"a": 1}', "\u202e{", "x" * 300_000]
)
def test_other_peoples_comments_are_no_tags(comment: str, clip: Path, tmp_path: Path) -> None:
    found = gather_evidence(tagged(clip, tmp_path / "x.mp4", comment))
    assert (found.tag, found.tag_error) == (None, None)


def test_a_tag_that_is_not_utf8(clip: Path, tmp_path: Path) -> None:
    path = tagged(clip, tmp_path / "x.mp4", GOOD.replace("guidance", "guidanc\u00e9"))
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    found = gather_evidence(path)
    assert found.tag is None
    assert isinstance(found.tag_error, MalformedFileError)


def box(kind: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


@pytest.mark.parametrize(
    "make",
    [
        lambda: box(b"uuid", C2PA),
        lambda: box(b"uuid", C2PA + bytes(4) + b"manifest\0" + bytes(8)),
        lambda: box(b"uuid", C2PA + bytes(4) + b"manifest\0" + bytes(8) + os.urandom(5000)),
        lambda: box(b"uuid", C2PA + bytes(4) + b"manifest\0" + bytes(8) + box(b"jumb", box(b"jumd", bytes(17)))),
    ],
)
def test_a_junk_manifest_is_an_invalid_one(make: Callable[[], bytes], clip: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(clip.read_bytes() + make())
    found = gather_evidence(tmp_path / "x.mp4")
    assert found.manifest is not None
    assert found.manifest.trust is Trust.INVALID
    assert found.manifest.claims == ()


def test_a_million_boxes(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(clip.read_bytes() + box(b"free", b"") * 1_000_000)
    refused(tmp_path / "x.mp4", TooLargeError)
    (tmp_path / "y.mp4").write_bytes(clip.read_bytes() + box(b"free", b"") * 10_000)
    assert gather_evidence(tmp_path / "y.mp4").manifest is None
