"""`hfq stamp` on clips that other programs made: nothing is lost, nothing laundered, nothing left behind unrecorded."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import av
import pytest
from test_clip_commands import document, made, strip

import hfq
from hfq.cli import run
from hfq.registry import database
from hfq.registry.upgrade import upgrade

WORKFLOW = '{"nodes": []}'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    monkeypatch.setenv("HFQ_CONFIG", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def deltas(home: Path, small_base: Path, small_delta: Path) -> tuple[str, str]:
    registry = hfq.open_registry()
    with hfq.open_checkpoint(small_base) as base, hfq.quantize(base, "rtn-hif8", out=home / "other") as other:
        return registry.register(small_delta), registry.register(other.path)


def with_workflow(path: Path, **tags: str) -> Path:
    """As ComfyUI saves it."""
    plain = made(path.with_name("plain.mp4"))
    with av.open(str(plain)) as found, av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as copy:
        copy.metadata.update({"workflow": WORKFLOW, **tags})
        stream = copy.add_stream_from_template(found.streams.video[0])
        for packet in found.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    plain.unlink()
    return path


def tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


def test_a_workflow_and_another_programs_comment_are_in_the_copy(
    home: Path, deltas: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = with_workflow(home / "comfy.mp4", comment="made at home"), home / "out.mp4"
    code = run(["stamp", str(clip), "--variant", deltas[0], "-o", str(out)])
    assert code == 0
    assert "the comment that the clip had is kept in the copy as hfq_previous_comment" in capsys.readouterr().err
    found = tags(out)
    assert found.pop("comment").startswith("{")
    assert found.pop("hfq_previous_comment") == "made at home"
    assert found == {name: text for name, text in tags(clip).items() if name != "comment"}
    assert found["workflow"] == WORKFLOW


def test_a_clip_that_names_another_variant_is_stamped_anyway_or_not_at_all(
    home: Path, deltas: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = deltas
    clip, out, plain = home / "theirs.mp4", home / "ours.mp4", made(home / "clip.mp4")
    monkeypatch.setenv("HFQ_REGISTRY", str(home / "their.sqlite"))
    hfq.open_registry().register(home / "other")
    assert run(["stamp", str(plain), "--variant", theirs, "-o", str(clip)]) == 0
    monkeypatch.setenv("HFQ_REGISTRY", str(home / "registry.sqlite"))
    capsys.readouterr()
    stamp = ["stamp", str(clip), "--variant", ours, "-o", str(out)]
    assert run(stamp) == 3
    err = capsys.readouterr().err
    assert f"its tag names delta:{theirs[:12]}, you said delta:{ours[:12]}" in err
    assert "--anyway" in err
    assert "[contradicted-claim]" in err
    assert not out.exists()
    code, found = document(capsys, *stamp, "--anyway")
    assert (code, found["variant"]) == (0, ours)
    assert found["despite"] == [{"evidence": "tag", "variant": {"kind": "delta", "id": theirs}}]
    # The honest original is nobody's victim.
    code, found = document(capsys, "audit", str(clip))
    assert (code, found["contradictions"]) == (5, [])
    assert document(capsys, "audit", str(out))[0] == 0


def test_anyway_on_a_clip_that_nothing_speaks_against_says_nothing(
    home: Path, deltas: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = home / "out.mp4"
    code, found = document(
        capsys, "stamp", str(made(home / "clip.mp4")), "--variant", deltas[0], "--anyway", "-o", str(out)
    )
    assert (code, found["despite"]) == (0, [])
    assert "despite" not in tags(out)["comment"]


def test_matroska_with_a_local_key_names_the_option(
    home: Path, deltas: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "init"]) == 0
    clip = strip(made(home / "clip.mp4"), home / "clip.mkv")
    arguments = ["stamp", str(clip), "--variant", deltas[0], "-o", str(home / "out.mkv")]
    assert run(arguments) == 2
    assert "--no-sign" in capsys.readouterr().err
    assert run([*arguments, "--no-sign"]) == 0


def read_only(path: Path, **_: object) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def not_reached(*_: object, **__: object) -> Any:
    raise AssertionError("work before it is known whether its result can be recorded")


@pytest.mark.parametrize("reason", ["read-only", "older"])
@pytest.mark.parametrize("command", ["stamp", "generate", "measure"])
def test_what_cannot_be_recorded_is_not_begun(
    command: str, reason: str, home: Path, deltas: tuple[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whoever runs the tests as root may write everything, so SQLite itself is told to open the file for reading."""
    clip = made(home / "clip.mp4")
    if reason == "read-only":
        monkeypatch.setattr(database, "connect_for_writing", read_only)
    else:
        monkeypatch.setenv("HFQ_REGISTRY", str(home / "old.sqlite"))
        upgrade(hfq.open_registry().database, "0008")
    monkeypatch.setattr("hfq.registry.clips.stamp.stamp_clip", not_reached)
    monkeypatch.setattr("hfq.registry.clips.registry.gather_evidence", not_reached)
    monkeypatch.setattr("hfq.clip_maker.ClipMaker", not_reached)
    monkeypatch.setattr("hfq.registry.measured_clips.measure_clips", not_reached)
    before = {path.name for path in home.iterdir()}
    arguments = {
        "stamp": ["stamp", str(clip), "--variant", deltas[0], "-o", str(home / "out.mp4")],
        "generate": ["generate", "--base", str(home), "--delta", deltas[0], "--prompt", "x", "-o", str(home / "g.mp4")],
        "measure": ["score", "measure", deltas[0], "--clips", str(home), "--reference", str(home)],
    }[command]
    assert run(arguments) == 1
    assert f"[registry-{'version' if reason == 'older' else reason}]" in capsys.readouterr().err
    # SQLite's own, which a connection for reading may not remove.
    assert {path.name for path in home.iterdir()} - before <= {"registry.sqlite-shm", "registry.sqlite-wal"}


def test_a_copy_that_cannot_be_recorded_after_all_is_not_left_behind(
    home: Path, deltas: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = made(home / "clip.mp4"), home / "out.mp4"
    check = database.Database.check_writable

    def and_then_closed(self: database.Database) -> None:
        check(self)
        monkeypatch.setattr(database, "connect_for_writing", read_only)

    monkeypatch.setattr(database.Database, "check_writable", and_then_closed)
    assert run(["stamp", str(clip), "--variant", deltas[0], "-o", str(out)]) == 1
    assert "[registry-read-only]" in capsys.readouterr().err
    assert not out.exists()


def test_looking_whether_the_registry_can_be_written_changes_nothing(home: Path, deltas: tuple[str, str]) -> None:
    registry = hfq.open_registry()
    before = registry.path.read_bytes()
    registry.check_writable()
    assert registry.path.read_bytes() == before
    nowhere = hfq.open_registry(home / "none.sqlite")
    nowhere.check_writable()
    assert not nowhere.path.exists()
