"""Clips in the registry: recorded once, found again by file, frames and pictures, never under a wrong name."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from factory import make_delta

from hfq.registry import Registry
from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256
from hfq.registry.clips.match import SCENE_DISTANCE
from hfq.registry.clips.signature import Signature
from hfq.registry.clips.sketch import sketch_of
from hfq.registry.clips.stamp import stamp_clip
from hfq.registry.clips.store import RegisteredClips
from hfq.registry.upgrade import upgrade
from hfq.schema.errors import ContradictedClaimError, RegistryDamagedError, UnknownIdError

Frames = npt.NDArray[np.uint8]


def frames_of(seed: int, *, drift: int = 0) -> Frames:
    """A drifting pattern of large patches, uint8 [20, 96, 128, 3]; `drift` is what another variant does to it."""
    patches = np.random.default_rng(seed).integers(40, 215, (12, 16, 3))
    other = np.random.default_rng(1000 + drift).integers(-12, 13, (12, 16, 3)) * bool(drift)
    picture = np.clip(patches + other, 0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(picture, index, axis=1) for index in range(20)])


def write(path: Path, frames: Frames, *, crf: int = 12, scale: int = 1) -> Path:
    height, width = frames.shape[1] // scale, frames.shape[2] // scale
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf)}
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width=width, height=height)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def deltas(registry: Registry, tmp_path: Path) -> list[str]:
    for name in "ab":
        make_delta(tmp_path / name, seed=name)
        registry.register(tmp_path / name)
    return [registry.identify(tmp_path / name) for name in "ab"]


def document(registry: Registry, delta: str, seed: int = 7) -> ClipDocument:
    base = {expert.role: expert.bf16_root for expert in registry.get(delta).base.experts}
    return ClipDocument(delta, base, prompt_sha256("a prompt"), seed=seed, settings={"steps": 6})


def recorded(registry: Registry, path: Path, delta: str, frames: Frames, seed: int = 7) -> Path:
    made_by = document(registry, delta, seed)
    stamped = path.with_stem(f"{path.stem}-stamped")
    stamp_clip(write(path, frames), stamped, made_by)
    registry.record_clip(stamped, made_by)
    return stamped


def states(found: Any) -> dict[str, str]:
    return {rung.name: str(rung.state) for rung in found.rungs}


def test_a_recorded_clip_is_proven_by_its_file_and_its_frames(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    clip = recorded(registry, tmp_path / "a.mp4", deltas[0], frames_of(1))
    found = registry.audit(clip)
    assert (found.exit_code, found.variant and found.variant.id) == (0, deltas[0])
    assert states(found) == {
        "attested": "absent", "exact-file": "confirmed", "exact-stream": "confirmed", "claimed": "hint",
        "similar": "hint",
    }  # fmt: skip
    plain = registry.audit(tmp_path / "a.mp4")  # the same frames, without the tag
    assert (plain.exit_code, states(plain)["exact-file"], states(plain)["exact-stream"]) == (0, "absent", "confirmed")


def test_recording_twice_is_one_row(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    clip = recorded(registry, tmp_path / "a.mp4", deltas[0], frames_of(1))
    again = registry.record_clip(clip, document(registry, deltas[0]))
    assert not again.is_new
    assert registry.status().counts["clips"] == 1
    assert [event.kind for event in registry.get(deltas[0]).events] == ["registered", "clip"]


def test_a_re_encoded_clip_gets_candidates_and_no_name(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    for delta, drift in zip(deltas, (0, 5), strict=True):
        recorded(registry, tmp_path / f"{drift}.mp4", delta, frames_of(1, drift=drift))
    found = registry.audit(write(tmp_path / "half.mp4", frames_of(1), crf=28, scale=2))
    assert (found.exit_code, found.variant) == (5, None)
    assert [candidate.variant.id for candidate in found.match.candidates] == deltas
    unknown = registry.audit(write(tmp_path / "unknown.mp4", frames_of(99)))
    assert (unknown.exit_code, unknown.match.candidates) == (5, ())


def test_frames_registered_under_two_variants_prove_neither(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    """Two deltas can give the same clip; the registry then says so instead of choosing."""
    for number, delta in enumerate(deltas):
        recorded(registry, tmp_path / f"{number}.mp4", delta, frames_of(1))
    found = registry.audit(tmp_path / "0.mp4")
    assert (found.exit_code, found.variant, states(found)["exact-stream"]) == (5, None, "ambiguous")


def test_a_claim_about_registered_frames_is_refused(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    recorded(registry, tmp_path / "a.mp4", deltas[0], frames_of(1))
    with pytest.raises(ContradictedClaimError, match=f"registered as delta:{deltas[0][:12]}, you said") as caught:
        registry.refuse_contradicted(tmp_path / "a.mp4", document(registry, deltas[1]))
    assert caught.value.exit_code == 3
    registry.refuse_contradicted(tmp_path / "a.mp4", document(registry, deltas[0]))
    registry.refuse_contradicted(write(tmp_path / "new.mp4", frames_of(2)), document(registry, deltas[1]))


def test_a_forged_tag_on_registered_frames_is_a_contradiction(
    registry: Registry, deltas: list[str], tmp_path: Path
) -> None:
    recorded(registry, tmp_path / "a.mp4", deltas[0], frames_of(1))
    stamp_clip(tmp_path / "a.mp4", tmp_path / "forged.mp4", document(registry, deltas[1]))
    found = registry.audit(tmp_path / "forged.mp4")
    assert (found.exit_code, found.variant) == (3, None)
    assert any("claimed" in line and "exact-stream" in line for line in found.contradictions)


def test_an_unregistered_delta_is_not_recorded(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    clip = write(tmp_path / "a.mp4", frames_of(1))
    stranger = ClipDocument("f" * 64, {"single": "e" * 64})
    with pytest.raises(UnknownIdError):
        registry.record_clip(clip, stranger)
    assert registry.status().counts["clips"] == 0


def test_an_audit_without_a_registry_writes_none(registry: Registry, tmp_path: Path) -> None:
    found = registry.audit(write(tmp_path / "a.mp4", frames_of(1)))
    assert (found.exit_code, found.variant) == (5, None)
    assert not registry.path.exists()


def test_the_database_is_asked_for_few_signatures(
    registry: Registry, deltas: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sketches of all clips, signatures of those that may be near, and of the nearest clip's scene."""
    for seed in range(6):
        recorded(registry, tmp_path / f"{seed}.mp4", deltas[0], frames_of(seed), seed)
    recorded(registry, tmp_path / "rival.mp4", deltas[1], frames_of(50), 3)  # the same prompt and seed, another picture
    read: list[int] = []
    clips = RegisteredClips.clips

    def counted(self: RegisteredClips, keys: Sequence[int]) -> Any:
        read.extend(keys)
        return clips(self, keys)

    monkeypatch.setattr(RegisteredClips, "clips", counted)
    found = registry.audit(write(tmp_path / "small.mp4", frames_of(3), crf=28, scale=2))
    assert [candidate.variant.id for candidate in found.match.candidates] == deltas
    assert found.match.candidates[1].distance > SCENE_DISTANCE
    assert read == [4]


def test_a_clip_without_its_sketch_is_a_finding(registry: Registry, deltas: list[str], tmp_path: Path) -> None:
    recorded(registry, tmp_path / "a.mp4", deltas[0], frames_of(1))
    recorded(registry, tmp_path / "b.mp4", deltas[1], frames_of(2))
    assert registry.check() == ()
    for statement in ("UPDATE clip_sketch SET data = zeroblob(130) WHERE clip_key = 1",
                      "DELETE FROM clip_sketch WHERE clip_key = 2"):  # fmt: skip
        with closing(sqlite3.connect(registry.path)) as connection:
            connection.execute(statement)
            connection.commit()
    assert [(finding.code, finding.exit_code) for finding in registry.check()] == [("clip-sketch", 1)] * 2
    with pytest.raises(RegistryDamagedError, match="expected 2 sketches, found 1") as caught:
        registry.audit(write(tmp_path / "half.mp4", frames_of(1), crf=28, scale=2))
    assert caught.value.exit_code == 1


def test_an_upgrade_sketches_the_clips_that_are_there(registry: Registry) -> None:
    """By another program than the one that sketches new clips: they agree byte for byte, blank clips included."""
    upgrade(registry.database, "0004")
    random = np.random.default_rng(1)
    signatures = [random.integers(-32767, 32768, 2048) for _ in range(1030)]
    signatures += [np.zeros(2048, int), np.full(2048, 32767), random.integers(0, 2, 2048)]
    rows = [Signature(one.astype("<i2").tobytes()) for one in signatures]
    with closing(sqlite3.connect(registry.path)) as connection:
        for key, one in enumerate(rows, start=3):
            connection.execute(
                "INSERT INTO clip VALUES (?, ?, ?, 'delta', ?, NULL, 'x.mp4', 'mp4', 1, 1, 1, 1, '{}', NULL, 0, '')",
                (key, f"{key:064x}", "5" * 64, "d" * 64),
            )
            connection.execute("INSERT INTO clip_signature VALUES (?, ?)", (key, one.data))
        connection.commit()
    assert upgrade(registry.database).before == "0004"
    with closing(sqlite3.connect(registry.path)) as connection:
        found = connection.execute("SELECT clip_key, data FROM clip_sketch ORDER BY clip_key").fetchall()
    assert found == [(key, sketch_of(one)) for key, one in enumerate(rows, start=3)]
