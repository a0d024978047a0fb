"""Files that are called clips and are something else: none is measured, and none makes FFmpeg open anything else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import scene, write

from hfq.convert.video import read_clip
from hfq.registry.clips.evidence import gather_evidence
from hfq.registry.scores.frames import list_clips, read_frames
from hfq.registry.scores.measure import measure_folders
from hfq.schema.errors import ClipStreamError, MalformedFileError, NotAClipError, TooLargeError


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", scene(1, frames=3, width=64, height=48))


BEGINNINGS = {
    "bare": b"", "bom": b"\xef\xbb\xbf", "ftyp": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "mkv": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\xff\0\0\0AVI LIST", "gif": b"GIF89a",
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "gif", "mov"])
@pytest.mark.parametrize("wrap", sorted(BEGINNINGS))
def test_a_script_is_no_clip(wrap: str, suffix: str, clip: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for text in (
            f"ffconcat version 1.0\nfile {clip}\n",
            f"ffconcat version 1.0\nfile '{address}'\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            f"#EXTM3U\n#EXTINF:9,\n{clip.as_uri()}\n",
            f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}</BaseURL></MPD>',
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
            f"[playlist]\nFile1={address}\n",
            "SMIL <smil></smil>",
        ):
            path = tmp_path / f"list.{suffix}"
            path.write_bytes(BEGINNINGS[wrap] + text.encode())
            with pytest.raises((NotAClipError, ClipStreamError, TooLargeError)) as caught:
                read_frames(path)
            assert str(path) in str(caught.value)
            assert str(caught.value).isprintable()
            with pytest.raises(MalformedFileError):
                gather_evidence(path)
            if suffix in ("mp4", "gif"):
                with pytest.raises((av.FFmpegError, ValueError)):
                    read_clip(path)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_message_says_what_it_is(clip: Path, tmp_path: Path) -> None:
    for text, word in ((f"ffconcat version 1.0\nfile {clip}\n", "concat"), ("#EXTM3U\nx\n", "playlist")):
        (tmp_path / "a.mp4").write_text(text)
        with pytest.raises(NotAClipError, match=word):
            read_frames(tmp_path / "a.mp4")


NAMES = ("concat:a|b.mp4", "file:a.mp4", "pipe:0.mp4", "subfile,,start,0,end,9,,:a.mp4", "frame%03d.mp4", "-.mp4",
         "http:x.mp4", "data:,x.mp4", "*.mp4")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_name_of_a_file(name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("ours", "theirs"):
        Path(folder).mkdir()
        (Path(folder) / name).write_bytes(clip.read_bytes())
    Path(name).write_bytes(clip.read_bytes())
    assert np.array_equal(read_frames(Path(name)), read_frames(clip))
    assert np.array_equal(read_clip(Path(name)), read_frames(clip))
    assert gather_evidence(name).file_sha256 == gather_evidence(clip).file_sha256
    assert measure_folders(Path("ours"), Path("theirs")).identical == (name.removesuffix(".mp4"),)


def test_links_to_what_is_no_file_do_not_vanish(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert list(list_clips(tmp_path).clips) == ["fifo", "gone"]
