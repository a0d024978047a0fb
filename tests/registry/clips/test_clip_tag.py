"""The comment tag: written without touching a picture, read from what people make of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import pytest
from made_clips import document, reencode, remux, scene, write

from hfq.registry.clips import tag
from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_earlier_tags, read_tag, write_tag
from hfq.schema.errors import ClipDocumentError, OutputExistsError, RemuxError, TooLargeError, UsageError


def tag_of(path: Path) -> ClipDocument | None:
    with open_clip(path) as clip:
        return read_tag(clip)


def packets(path: Path) -> dict[str, list[bytes]]:
    with av.open(str(path)) as container:
        found: dict[str, list[bytes]] = {}
        for packet in container.demux():
            if packet.size:
                found.setdefault(packet.stream.type, []).append(bytes(packet))
        return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(1), sound=True, bf="2", tags={"title": "a clip"})


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov", "mkv"])
def test_every_packet_is_copied(suffix: str, clip: Path, tmp_path: Path) -> None:
    source = remux(clip, tmp_path / f"in.{suffix}")
    before = source.read_bytes()
    made = write_tag(source, tmp_path / f"out.{suffix}", document())
    assert source.read_bytes() == before
    assert packets(made.path) == packets(source)
    assert set(packets(made.path)) == {"video", "audio"}
    assert made.previous == {}
    assert tag_of(made.path) == document()
    with open_clip(made.path) as opened:
        assert opened.stream_facts() == made.stream
        assert opened.tags()["title"] == "a clip"
    assert sorted(os.listdir(tmp_path)) == [f"in.{suffix}", f"out.{suffix}"]


def test_any_program_can_read_it(clip: Path, tmp_path: Path) -> None:
    made = document(prompt="Ein Köter 🐕", prompt_sha256=prompt_sha256("Ein Köter 🐕"))
    write_tag(clip, tmp_path / "out.mp4", made)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == made.to_json()


def test_it_survives_what_people_do(clip: Path, tmp_path: Path) -> None:
    stamped = write_tag(clip, tmp_path / "stamped.mp4", document()).path
    assert tag_of(remux(stamped, tmp_path / "a.mkv")) == document()
    assert tag_of(remux(stamped, tmp_path / "a.mov")) == document()
    assert tag_of(remux(remux(stamped, tmp_path / "b.mkv"), tmp_path / "b.mp4")) == document()
    assert tag_of(reencode(stamped, tmp_path / "c.mp4", divide=2)) == document()
    assert tag_of(remux(stamped, tmp_path / "d.mp4", keep_tags=False)) is None


def test_a_comment_that_was_there(clip: Path, tmp_path: Path) -> None:
    holiday = remux(clip, tmp_path / "holiday.mp4", tags={"comment": "my holiday, made with hfq.clip/1?"})
    assert tag_of(holiday) is None
    made = write_tag(holiday, tmp_path / "out.mp4", document())
    assert made.previous == {"hfq_previous_comment": "my holiday, made with hfq.clip/1?"}
    again = write_tag(made.path, tmp_path / "again.mp4", document(None))
    assert again.previous == {"hfq_previous_comment_2": document().to_bytes().decode()}
    assert tag_of(again.path) == document(None)
    with open_clip(again.path) as opened:
        assert opened.tags().items() >= {**made.previous, **again.previous}.items()
        assert read_earlier_tags(opened) == (document(),)
    # The same words again are no earlier comment.
    assert write_tag(again.path, tmp_path / "same.mp4", document(None)).previous == {}


def test_webm(tmp_path: Path) -> None:
    source = write(tmp_path / "in.webm", scene(2, frames=5), codec="libvpx-vp9", deadline="realtime")
    assert tag_of(write_tag(source, tmp_path / "out.webm", document()).path) == document()


@pytest.mark.parametrize("name", ["out.mkv", "out.mov", "out.gif", "out"])
def test_the_container_is_kept(name: str, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="container"):
        write_tag(clip, tmp_path / name, document())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"mine")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    for name in ("out.mp4", "dangling.mp4"):
        with pytest.raises(OutputExistsError):
            write_tag(clip, tmp_path / name, document())
    with pytest.raises(OutputExistsError):
        write_tag(clip, clip, document())
    with pytest.raises(UsageError):
        write_tag(clip, tmp_path / "no" / "out.mp4", document())
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_document_that_cannot_be_written_makes_no_file(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(TooLargeError):
        write_tag(clip, tmp_path / "out.mp4", document(settings={f"s{i}": "x" * 1000 for i in range(40)}))
    with pytest.raises(ClipDocumentError):
        write_tag(clip, tmp_path / "out.mp4", document(prompt="another"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_copy_in_which_a_packet_differs_is_refused(
    kind: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tag.write_edited

    def broken(*arguments: Any) -> None:
        write(*arguments)
        with av.open(str(arguments[2])) as container:
            place = [packet.pos for packet in container.demux() if packet.size and packet.stream.type == kind][-1]
        data = bytearray(arguments[2].read_bytes())
        data[place + 20] ^= 1
        arguments[2].write_bytes(data)

    monkeypatch.setattr(tag, "write_edited", broken)
    with pytest.raises(RemuxError, match="would not be the same clip; expected stream"):
        write_tag(remux(clip, tmp_path / "in.mp4"), tmp_path / "out.mp4", document())
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_copy_without_the_comment_is_refused(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as where another box than the one that was written decides what FFmpeg calls the comment."""
    monkeypatch.setattr(tag, "_edits", lambda clip, comment: [])
    with pytest.raises(RemuxError, match="no comment"):
        write_tag(clip, tmp_path / "out.mp4", document())
    assert list(tmp_path.iterdir()) == []
