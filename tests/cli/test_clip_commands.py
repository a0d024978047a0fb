"""`hfq generate`, `stamp`, `audit` and `keys`, as they are typed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import hfq
from hfq.cli import run

PROMPT = "a red circle moving left over a black background"


def made(path: Path, seed: int = 1) -> Path:
    patches = np.random.default_rng(seed).integers(40, 215, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(17):
            frame = av.VideoFrame.from_ndarray(np.roll(patches, index, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def strip(source: Path, out: Path) -> Path:
    """Copy the packets alone: no tag, no manifest."""
    with av.open(str(source)) as found, av.open(str(out), "w") as copy:
        stream = copy.add_stream_from_template(found.streams.video[0])
        for packet in found.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return out


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def delta(home: Path, small_delta: Path) -> str:
    return hfq.open_registry().register(small_delta, aliases=["small@test"])


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_stamped_clip_is_known_again_without_its_tag(
    home: Path, delta: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = made(home / "clip.mp4"), home / "stamped.mp4"
    before = clip.read_bytes()
    code, found = document(
        capsys, "stamp", str(clip), "--variant", "small@test", "--prompt", PROMPT, "--seed", "7", "--setting",
        "steps=40", "-o", str(out),
    )  # fmt: skip
    assert (code, found["variant"], found["signed"]) == (0, delta, False)
    assert clip.read_bytes() == before
    code, found = document(capsys, "audit", str(strip(out, home / "stripped.mp4")))
    assert (code, found["variant"]) == (0, {"kind": "delta", "id": delta})
    assert [rung["state"] for rung in found["rungs"]] == ["absent", "absent", "confirmed", "absent", "hint"]
    assert PROMPT.encode() not in out.read_bytes()


def test_keys_sign_what_is_stamped_and_trust_is_asked_for(
    home: Path, delta: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, keys = document(capsys, "keys", "init")
    assert code == 0
    private = list((home / "config").rglob("*.key.pem"))
    assert private
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert run(["keys", "init"]) == 2
    out = home / "signed.mp4"
    code, found = document(capsys, "stamp", str(made(home / "clip.mp4")), "--variant", delta, "-o", str(out))
    assert (code, found["signed"]) == (0, True)
    code, found = document(capsys, "audit", str(out))
    assert (code, found["rungs"][0]["state"], found["variant"]["id"]) == (0, "confirmed", delta)
    # A copy of a signed clip would lose its manifest.
    assert run(["stamp", str(out), "--variant", delta, "-o", str(home / "again.mp4")]) == 2
    # Somebody else knows the delta, and neither the clip nor the signer.
    authority = keys["authority"]["path"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "other"))
    monkeypatch.setenv("HFQ_REGISTRY", str(home / "other.sqlite"))
    hfq.open_registry().register(hfq.open_registry(str(home / "registry.sqlite")).locate(delta))
    code, found = document(capsys, "audit", str(out))
    assert (code, found["rungs"][0]["state"], found["variant"]) == (5, "hint", None)
    assert document(capsys, "keys", "trust", authority)[0] == 0
    code, found = document(capsys, "audit", str(out))
    assert (code, found["rungs"][0]["state"], found["variant"]["id"]) == (0, "confirmed", delta)


def test_another_name_for_registered_frames_is_refused(
    home: Path, delta: str, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hfq.open_checkpoint(small_base) as base, hfq.quantize(base, "rtn-hif8", out=home / "other") as other:
        hfq.open_registry().register(other.path)
    clip = made(home / "clip.mp4")
    assert run(["stamp", str(clip), "--variant", delta, "-o", str(home / "a.mp4")]) == 0
    assert run(["stamp", str(clip), "--variant", str(home / "other"), "-o", str(home / "b.mp4")]) == 3
    err = capsys.readouterr().err
    assert "contradicted-claim" in err
    assert f"these frames are registered as delta:{delta[:12]}, you said delta:" in err
    assert not (home / "b.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["audit", "no-such.mp4"], 2),
        (["audit", "."], 1),
        (["stamp", "clip.mp4", "--variant", "nobody@here", "-o", "a.mp4"], 5),
        (["stamp", "clip.mp4", "--variant", "small@test", "--setting", "steps", "-o", "a.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "--setting", "n=4", "--setting", "n=8", "-o", "a.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "--store-prompt", "-o", "a.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "--sign", "-o", "a.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "--key", "k.pem", "-o", "a.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "-o", "clip.mp4"], 2),
        (["stamp", "clip.mp4", "--variant", "small@test", "-o", "a.mkv"], 2),
    ],
)
def test_bad_input_gets_its_exit_code_and_leaves_nothing(
    arguments: list[str], code: int, home: Path, delta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(home / "clip.mp4")
    monkeypatch.chdir(home)
    before = sorted(path.name for path in home.iterdir())
    assert run(arguments) == code
    assert sorted(path.name for path in home.iterdir()) == before


def test_a_generated_clip_says_what_made_it_and_is_recorded(
    home: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hfq.open_checkpoint(tiny_weights) as base, hfq.quantize(base, "rtn-hif8", out=home / "delta") as delta:
        delta_id = hfq.open_registry().register(delta.path)
    common = ["generate", "--base", str(tiny_weights), "--prompt", PROMPT, "--seed", "3", "--steps", "4"]
    code, found = document(capsys, *common, "--delta", delta_id, "-o", str(home / "q.mp4"))
    assert (code, found["recorded"], found["signed"]) == (0, True, False)
    code, found = document(capsys, *common, "-o", str(home / "base.mp4"), "--no-record")
    assert (code, found["recorded"]) == (0, False)
    assert found["kept"] is False
    code, found = document(capsys, "audit", str(home / "q.mp4"))
    assert (code, found["variant"]) == (0, {"kind": "delta", "id": delta_id})
    code, found = document(capsys, "audit", str(home / "base.mp4"))
    assert (code, found["rungs"][3]["variants"][0]["kind"]) == (5, "base")


def test_an_output_of_another_container_is_named_as_it_was_typed(
    home: Path, delta: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "init"]) == 0
    clip, out = made(home / "clip.mp4"), home / "a.mkv"
    before = sorted(home.iterdir())
    capsys.readouterr()
    assert run(["stamp", str(clip), "--variant", delta, "-o", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hfq: {out}: the copy keeps the container of its input")
    assert ".hfq-stamp-" not in err
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("broken", ["folder", "file"])
def test_an_audit_without_its_trusted_authorities_climbs_the_other_rungs(
    broken: str, home: Path, delta: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "init"]) == 0
    out = home / "signed.mp4"
    assert run(["stamp", str(made(home / "clip.mp4")), "--variant", delta, "-o", str(out)]) == 0
    anchors = home / "config" / "hfq" / "anchors"
    if broken == "folder":
        anchors.write_text("no folder")
    else:
        anchors.mkdir()
        (anchors / "a.pem").write_text("no certificate")
    capsys.readouterr()
    code, found = document(capsys, "audit", str(out))
    assert (code, found["variant"]) == (0, {"kind": "delta", "id": delta})
    assert [rung["state"] for rung in found["rungs"]] == ["not-checked", "confirmed", "confirmed", "hint", "hint"]
    assert str(anchors) in found["rungs"][0]["detail"]
    # Unsigned, there is nothing to check; changed, no authority is needed to see that.
    code, found = document(capsys, "audit", str(strip(out, home / "stripped.mp4")))
    assert (code, found["rungs"][0]["state"]) == (0, "absent")
    data = bytearray(out.read_bytes())
    data[data.rindex(b"mdat") + 40] ^= 1
    (home / "changed.mp4").write_bytes(data)
    code, found = document(capsys, "audit", str(home / "changed.mp4"))
    assert (code, found["rungs"][0]["state"]) == (3, "invalid")


def test_a_clip_that_may_not_be_read_is_unreadable(
    home: Path, delta: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = made(home / "clip.mp4")
    access, opened = os.access, os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path) == clip:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    # Whoever runs the tests as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, *a, **k: Path(path) != clip and access(path, *a, **k))
    monkeypatch.setattr(os, "open", refuse)
    for arguments in (["audit", str(clip)], ["stamp", str(clip), "--variant", delta, "-o", str(home / "a.mp4")]):
        assert run(arguments) == 1
        assert "[unreadable]" in capsys.readouterr().err


def test_what_is_no_certificate_is_named_in_our_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "init"]) == 0
    (home / "note.txt").write_text("hello")
    key = home / "config" / "hfq" / "keys" / "ca.key.pem"
    for path, found in ((key, "a private key"), (home / "note.txt", "no PEM file")):
        capsys.readouterr()
        assert run(["keys", "trust", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"hfq: {path}: no certificate; expected PEM certificates, found {found}")
        assert "http" not in err
        assert "cryptography" not in err.lower()
