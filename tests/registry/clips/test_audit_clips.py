"""The whole ladder on real files: what a registry says of a clip after everything that people do to it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from made_clips import A, B, document, reencode, remux, scene, write
from made_manifests import edit

from hfq.registry.clips.clip_document import ClipDocument, Variant
from hfq.registry.clips.evidence import Evidence, gather_evidence
from hfq.registry.clips.keys import anchors_pem, init_keys, load_local_key
from hfq.registry.clips.ladder import Audit, KnownClip, State, judge
from hfq.registry.clips.manifest import sign_clip
from hfq.registry.clips.match import KnownSignature, Match, match_signature
from hfq.registry.clips.signature import Signature
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import write_tag

CONFIRMED, HINT, ABSENT = State.CONFIRMED, State.HINT, State.ABSENT


@dataclass
class Shelf:
    """A registry in memory."""

    clips: list[tuple[ClipDocument, Evidence]] = field(default_factory=list)

    def by_file(self, sha256: str) -> Sequence[KnownClip]:
        return [KnownClip(e.file_sha256, d.variant) for d, e in self.clips if e.file_sha256 == sha256]

    def by_stream(self, digest: str) -> Sequence[KnownClip]:
        return [KnownClip(e.file_sha256, d.variant) for d, e in self.clips if e.stream.digest == digest]

    def has_variant(self, variant: Variant) -> bool:
        return variant in (A, B)

    def match(self, signature: Signature) -> Match:
        known = [
            KnownSignature(e.file_sha256, d.variant, d.scene, e.signature, d.settings_sha256) for d, e in self.clips
        ]
        return match_signature(signature, known)


@dataclass
class House:
    """An operator's files: stamped and signed clips of two variants, keys, registry."""

    config: Path
    stranger: Path
    a: Path
    b: Path
    shelf: Shelf

    def audit(self, path: Path) -> Audit:
        before = hashlib.sha256(path.read_bytes()).digest()
        audit = judge(gather_evidence(path, anchors_pem(self.config)), self.shelf)
        assert hashlib.sha256(path.read_bytes()).digest() == before
        return audit


def stamp(raw: Path, out: Path, config: Path, made: ClipDocument) -> Path:
    tagged = write_tag(raw, out.with_name(f"tagged-{out.name}"), made).path
    return sign_clip(tagged, out, made, load_local_key(config)).path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    config, stranger = folder / "config", folder / "stranger"
    init_keys(config)
    init_keys(stranger)
    made = House(config, stranger, folder / "a.mp4", folder / "b.mp4", Shelf())
    for variant, path, number in ((A, made.a, 1), (B, made.b, 2)):
        raw = write(folder / f"raw-{path.name}", scene(1, variant=number))
        stamp(raw, path, config, document(variant.id))
        made.shelf.clips.append((document(variant.id), gather_evidence(path, anchors_pem(config))))
    return made


def states(audit: Audit) -> list[State]:
    return [rung.state for rung in audit.rungs]


def nearest(audit: Audit) -> Variant:
    return audit.match.candidates[0].variant


def test_the_file_itself(house: House) -> None:
    audit = house.audit(house.a)
    assert states(audit) == [CONFIRMED, CONFIRMED, CONFIRMED, HINT, HINT]
    assert (audit.exit_code, audit.variant, nearest(audit)) == (0, A, A)


def test_the_other_variant_of_the_same_prompt_and_seed(house: House) -> None:
    audit = house.audit(house.b)
    assert (audit.exit_code, audit.variant, nearest(audit)) == (0, B, B)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_remuxed(suffix: str, house: House, tmp_path: Path) -> None:
    audit = house.audit(remux(house.a, tmp_path / f"copy.{suffix}"))
    assert states(audit) == [ABSENT, ABSENT, CONFIRMED, HINT, HINT]
    assert (audit.exit_code, audit.variant) == (0, A)


def test_metadata_stripped(house: House, tmp_path: Path) -> None:
    audit = house.audit(remux(house.a, tmp_path / "copy.mp4", keep_tags=False))
    assert states(audit) == [ABSENT, ABSENT, CONFIRMED, ABSENT, HINT]
    assert (audit.exit_code, audit.variant) == (0, A)


@pytest.mark.parametrize(("crf", "divide"), [(28, 1), (23, 2), (28, 2)])
@pytest.mark.parametrize("keep_tags", [True, False])
def test_reencoded(crf: int, divide: int, keep_tags: bool, house: House, tmp_path: Path) -> None:
    """Tag and pictures agree, and are still no proof."""
    for path, variant in ((house.a, A), (house.b, B)):
        copy = reencode(path, tmp_path / path.name, crf=crf, divide=divide, keep_tags=keep_tags)
        audit = house.audit(copy)
        assert states(audit) == [ABSENT, ABSENT, ABSENT, HINT if keep_tags else ABSENT, HINT]
        assert (audit.exit_code, audit.variant, nearest(audit)) == (5, None, variant)
        assert audit.match.margin is not None
        assert {candidate.variant for candidate in audit.match.candidates} == {A, B}


@pytest.mark.parametrize("copied", [True, False])
def test_trimmed(copied: bool, house: House, tmp_path: Path) -> None:
    """A trimmed clip has other frames at its eighths: the tag alone is left, or nothing. Never another variant."""
    if copied:
        short = remux(house.a, tmp_path / "short.mp4", frames=11)
    else:
        short = reencode(house.a, tmp_path / "short.mp4", first=3, last=14)
    audit = house.audit(short)
    assert states(audit)[:4] == [ABSENT, ABSENT, ABSENT, HINT]
    assert (audit.exit_code, audit.variant) == (5, None)


def test_an_unknown_clip(house: House, tmp_path: Path) -> None:
    audit = house.audit(write(tmp_path / "x.mp4", scene(99)))
    assert states(audit) == [ABSENT] * 5
    assert (audit.exit_code, audit.variant, audit.match.candidates) == (5, None, ())


def test_an_unregistered_variant_of_a_known_scene(house: House, tmp_path: Path) -> None:
    audit = house.audit(write(tmp_path / "x.mp4", scene(1, variant=5)))
    assert states(audit) == [ABSENT, ABSENT, ABSENT, ABSENT, HINT]
    assert (audit.exit_code, audit.variant) == (5, None)


def test_a_forged_tag_on_known_frames(house: House, tmp_path: Path) -> None:
    forged = write_tag(remux(house.a, tmp_path / "a.mp4", keep_tags=False), tmp_path / "b.mp4", document(B.id)).path
    audit = house.audit(forged)
    assert states(audit) == [ABSENT, ABSENT, CONFIRMED, HINT, HINT]
    assert (audit.exit_code, audit.variant) == (3, None)
    assert str(A) in audit.contradictions[0]
    assert str(B) in audit.contradictions[0]


def test_a_forged_tag_on_a_reencoded_clip(house: House, tmp_path: Path) -> None:
    """Where the margin shows the other one: a contradiction; otherwise both stand there, and neither as a fact."""
    plain = reencode(house.a, tmp_path / "a.mp4", crf=20, keep_tags=False)
    audit = house.audit(write_tag(plain, tmp_path / "b.mp4", document(B.id)).path)
    assert audit.variant is None
    assert audit.exit_code == (3 if audit.match.is_decided else 5)
    assert nearest(audit) == A
    assert audit.match.is_decided


def test_a_tag_of_an_unknown_delta(house: House, tmp_path: Path) -> None:
    made = write_tag(write(tmp_path / "x.mp4", scene(98)), tmp_path / "y.mp4", document("9" * 64)).path
    audit = house.audit(made)
    assert states(audit)[3] is State.UNKNOWN
    assert audit.exit_code == 5


def test_a_manifest_of_an_unknown_authority(house: House, tmp_path: Path) -> None:
    raw = write(tmp_path / "x.mp4", scene(98))
    audit = house.audit(sign_clip(raw, tmp_path / "y.mp4", document(), load_local_key(house.stranger)).path)
    assert states(audit) == [HINT, ABSENT, ABSENT, ABSENT, ABSENT]
    assert (audit.exit_code, audit.variant) == (5, None)


def test_a_forged_manifest_of_an_unknown_authority_on_known_frames(house: House, tmp_path: Path) -> None:
    plain = remux(house.a, tmp_path / "a.mp4", keep_tags=False)
    audit = house.audit(sign_clip(plain, tmp_path / "y.mp4", document(B.id), load_local_key(house.stranger)).path)
    assert states(audit)[:3] == [HINT, ABSENT, CONFIRMED]
    assert (audit.exit_code, audit.variant) == (3, None)


def test_a_trusted_manifest_of_an_unknown_delta(house: House, tmp_path: Path) -> None:
    raw = write(tmp_path / "x.mp4", scene(98))
    audit = house.audit(sign_clip(raw, tmp_path / "y.mp4", document("9" * 64), load_local_key(house.config)).path)
    assert states(audit)[0] is State.UNKNOWN
    assert (audit.exit_code, audit.variant) == (5, None)


@pytest.mark.parametrize("signer", ["config", "stranger"])
def test_a_manifest_on_top(signer: str, house: House, tmp_path: Path) -> None:
    key = load_local_key(house.config if signer == "config" else house.stranger)
    layered = edit(house.a, tmp_path / "layered.mp4", key, document(B.id).to_json())
    audit = house.audit(layered)
    assert audit.exit_code == 3
    assert set(audit.rungs[0].variants) == {A, B}
    assert states(audit)[2] is CONFIRMED


def test_a_changed_signed_file(house: House, tmp_path: Path) -> None:
    data = bytearray(house.a.read_bytes())
    data[data.index(b"moov") + 18] ^= 1  # a creation time
    (tmp_path / "changed.mp4").write_bytes(data)
    audit = house.audit(tmp_path / "changed.mp4")
    assert states(audit)[:3] == [State.INVALID, ABSENT, CONFIRMED]
    assert audit.exit_code == 3


def test_without_the_extra(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    audit = judge(gather_evidence(house.a), house.shelf)
    assert states(audit) == [State.NOT_CHECKED, CONFIRMED, CONFIRMED, HINT, HINT]
    assert (audit.exit_code, audit.variant) == (0, A)
    assert "pip install" in audit.rungs[0].detail


def test_one_pass_sees_what_the_parts_see(house: House) -> None:
    made = gather_evidence(house.a, anchors_pem(house.config))
    with open_clip(house.a) as clip:
        assert made.stream == clip.stream_facts()
        assert made.file_sha256 == clip.file_sha256()
    assert made.tag == document()
