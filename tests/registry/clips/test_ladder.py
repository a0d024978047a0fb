"""The ladder's logic alone: made-up evidence, made-up registries, every kind of answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from made_clips import SETTINGS, A, B, C, document

from hfq.registry.clips.clip_document import Variant
from hfq.registry.clips.evidence import Evidence
from hfq.registry.clips.ladder import RUNGS, Audit, KnownClip, State, Verdict, judge
from hfq.registry.clips.manifest import Claim, ManifestReport, Trust
from hfq.registry.clips.match import KnownSignature, Match, match_signature
from hfq.registry.clips.signature import BLANK_SIGNATURE, Signature
from hfq.registry.clips.stream import StreamFacts
from hfq.schema.errors import MissingDependencyError, SchemaViolationError

D = Variant("delta", "d" * 64)
"""Registered nowhere."""


@dataclass
class Shelf:
    """A registry of three variants."""

    files: dict[str, list[KnownClip]] = field(default_factory=dict)
    streams: dict[str, list[KnownClip]] = field(default_factory=dict)
    pictures: list[KnownSignature] = field(default_factory=list)

    def by_file(self, sha256: str) -> Sequence[KnownClip]:
        return self.files.get(sha256, [])

    def by_stream(self, digest: str) -> Sequence[KnownClip]:
        return self.streams.get(digest, [])

    def has_variant(self, variant: Variant) -> bool:
        return variant in (A, B, C)

    def match(self, signature: Signature) -> Match:
        return match_signature(signature, self.pictures)


def at(distance: float) -> Signature:
    vector = np.zeros(2048)
    vector[0], vector[1] = 1 - distance, (1 - (1 - distance) ** 2) ** 0.5
    return Signature(np.rint(vector * 32767).astype("<i2").tobytes())


def evidence(**found: Any) -> Evidence:
    facts: dict[str, Any] = {
        "file_sha256": "f" * 64, "size_bytes": 1, "container": "mp4", "stream": StreamFacts("5" * 64, 17, 64, 64),
        "signature": at(0.0),
    }  # fmt: skip
    return Evidence(**(facts | found))


def manifest(
    *variants: Variant, trust: Trust = Trust.TRUSTED, manifests: int = 1, failures: str = ""
) -> ManifestReport:
    claims = tuple(
        Claim(document(variant.id), index == 0, index == len(variants) - 1, trust is Trust.TRUSTED, "signer")
        for index, variant in enumerate(variants)
    )
    return ManifestReport(trust, manifests, claims, tuple(failures.split()))


def _picture(variant: Variant, distance: float) -> KnownSignature:
    """A clip of the prompt, seed and settings of `document()`."""
    made = document(variant.id)
    return KnownSignature("3", variant, made.scene, at(distance), made.settings_sha256)


def shelf(*, file: str = "", stream: str = "", **pictures: float) -> Shelf:
    """Letters name variants; `A=0.004` is a clip of A at that distance."""
    named = {"A": A, "B": B, "C": C}
    return Shelf(
        {"f" * 64: [KnownClip("1", named[letter]) for letter in file]},
        {"5" * 64: [KnownClip("2", named[letter]) for letter in stream]},
        [_picture(named[letter], distance) for letter, distance in pictures.items()],
    )


def states(audit: Audit) -> list[State]:
    assert tuple(rung.name for rung in audit.rungs) == RUNGS
    assert (audit.verdict is Verdict.CONTRADICTED) == bool(audit.contradictions)
    assert (audit.variant is not None) == (audit.verdict is Verdict.CONFIRMED)
    assert json.loads(json.dumps(audit.to_json(), allow_nan=False))["exit_code"] == audit.exit_code
    return [rung.state for rung in audit.rungs]


NO, YES, HINT = State.ABSENT, State.CONFIRMED, State.HINT
TAG_A = {"tag": document(A.id)}
BLANK = {"is_blank": True, "signature": BLANK_SIGNATURE}
BROKEN_TAG = {"tag_error": SchemaViolationError("no seed")}


@pytest.mark.parametrize(
    ("found", "known", "expected", "variant", "code"),
    [
        # Nothing, and hints alone.
        ({}, shelf(), [NO, NO, NO, NO, NO], None, 5),
        (TAG_A, shelf(), [NO, NO, NO, HINT, NO], None, 5),
        ({"tag": document(D.id)}, shelf(), [NO, NO, NO, State.UNKNOWN, NO], None, 5),
        (BROKEN_TAG, shelf(), [NO, NO, NO, State.INVALID, NO], None, 5),
        ({}, shelf(A=0.004, B=0.016), [NO, NO, NO, NO, HINT], None, 5),
        (TAG_A, shelf(A=0.004, B=0.016), [NO, NO, NO, HINT, HINT], None, 5),
        # One proof.
        ({"manifest": manifest(A)}, shelf(), [YES, NO, NO, NO, NO], A, 0),
        ({}, shelf(file="A"), [NO, YES, NO, NO, NO], A, 0),
        ({}, shelf(stream="A"), [NO, NO, YES, NO, NO], A, 0),
        # Proofs and hints that agree.
        ({"manifest": manifest(A)} | TAG_A, shelf(file="A", stream="A", A=0.0), [YES, YES, YES, HINT, HINT], A, 0),
        (BROKEN_TAG, shelf(stream="A"), [NO, NO, YES, State.INVALID, NO], A, 0),
        ({"manifest": manifest(A, trust=Trust.UNTRUSTED)}, shelf(stream="A"), [HINT, NO, YES, NO, NO], A, 0),
        ({"manifest": manifest()}, shelf(stream="A"), [NO, NO, YES, NO, NO], A, 0),
        # A manifest that proves nothing by itself.
        ({"manifest": manifest(A, trust=Trust.UNTRUSTED)}, shelf(), [HINT, NO, NO, NO, NO], None, 5),
        ({"manifest": manifest(A, trust=Trust.EXPIRED)}, shelf(), [HINT, NO, NO, NO, NO], None, 5),
        ({"manifest": manifest(A, manifests=2)}, shelf(), [HINT, NO, NO, NO, NO], None, 5),
        ({"manifest": manifest(D)}, shelf(), [State.UNKNOWN, NO, NO, NO, NO], None, 5),
        ({"manifest_error": MissingDependencyError("no c2pa")}, shelf(), [State.NOT_CHECKED, NO, NO, NO, NO], None, 5),
        ({"manifest_error": MissingDependencyError("no c2pa")}, shelf(file="A"),
         [State.NOT_CHECKED, YES, NO, NO, NO], A, 0),
        # Two variants with the same frames: another proof may decide, a hint may not.
        ({}, shelf(stream="AB"), [NO, NO, State.AMBIGUOUS, NO, NO], None, 5),
        (TAG_A, shelf(stream="AB"), [NO, NO, State.AMBIGUOUS, HINT, NO], None, 5),
        ({}, shelf(stream="AB", file="A"), [NO, YES, State.AMBIGUOUS, NO, NO], A, 0),
        # Contradictions.
        (TAG_A, shelf(stream="B"), [NO, NO, YES, HINT, NO], None, 3),
        ({"tag": document(D.id)}, shelf(stream="B"), [NO, NO, YES, State.UNKNOWN, NO], None, 3),
        ({"manifest": manifest(A)}, shelf(file="B"), [YES, YES, NO, NO, NO], None, 3),
        ({"manifest": manifest(B)} | TAG_A, shelf(), [YES, NO, NO, HINT, NO], None, 3),
        ({"manifest": manifest(B, trust=Trust.UNTRUSTED)}, shelf(stream="A"), [HINT, NO, YES, NO, NO], None, 3),
        ({"manifest": manifest(B, A, manifests=2)}, shelf(), [HINT, NO, NO, NO, NO], None, 3),
        ({"manifest": manifest(B, A)}, shelf(), [HINT, NO, NO, NO, NO], None, 3),
        ({"manifest": manifest(A, trust=Trust.INVALID, failures="hash")}, shelf(), [State.INVALID, NO, NO, NO, NO],
         None, 3),
        ({"manifest": manifest(trust=Trust.INVALID)}, shelf(stream="A"), [State.INVALID, NO, YES, NO, NO], None, 3),
        (TAG_A, shelf(stream="BC"), [NO, NO, State.AMBIGUOUS, HINT, NO], None, 3),
        # Pictures against a name: only where that variant's own clip of the scene lies farther off by the margin.
        (TAG_A, shelf(A=0.016, B=0.004), [NO, NO, NO, HINT, HINT], None, 3),
        ({"manifest": manifest(A, trust=Trust.UNTRUSTED)}, shelf(A=0.016, B=0.004), [HINT, NO, NO, NO, HINT], None, 3),
        # They never stand against a signature that is or was valid, nor against an exact rung.
        ({"manifest": manifest(A)} | TAG_A, shelf(A=0.016, B=0.004), [YES, NO, NO, HINT, HINT], A, 0),
        ({"manifest": manifest(A, trust=Trust.EXPIRED)}, shelf(A=0.016, B=0.004), [HINT, NO, NO, NO, HINT], None, 5),
        (TAG_A, shelf(file="A", A=0.016, B=0.004), [NO, YES, NO, HINT, HINT], A, 0),
        (TAG_A, shelf(stream="A", A=0.016, B=0.004), [NO, NO, YES, HINT, HINT], A, 0),
        (TAG_A, shelf(stream="AC", A=0.016, B=0.004), [NO, NO, State.AMBIGUOUS, HINT, HINT], None, 5),
        # Nor against a claim of other settings than those of the registered clips, or of unknown ones.
        ({"tag": document(A.id, settings=SETTINGS | {"steps": 20})}, shelf(A=0.016, B=0.004),
         [NO, NO, NO, HINT, HINT], None, 5),
        ({"tag": document(A.id, settings={"steps": 4})}, shelf(A=0.016, B=0.004), [NO, NO, NO, HINT, HINT], None, 5),
        ({"tag": document(A.id, expert_steps=None)}, shelf(A=0.016, B=0.004), [NO, NO, NO, HINT, HINT], None, 5),
        ({"tag": document(A.id, seed=8)}, shelf(A=0.016, B=0.004), [NO, NO, NO, HINT, HINT], None, 5),
        # A blank clip is nobody's: what is registered of it is a hint and excludes nothing, unless the file itself
        # says whose it is.
        (BLANK, shelf(stream="A"), [NO, NO, HINT, NO, NO], None, 5),
        (BLANK | {"tag": document(B.id)}, shelf(stream="A"), [NO, NO, HINT, HINT, NO], None, 5),
        (BLANK | {"manifest": manifest(B)}, shelf(stream="A", file="A"), [YES, HINT, HINT, NO, NO], B, 0),
        (BLANK, shelf(file="A", stream="A"), [NO, HINT, HINT, NO, NO], None, 5),
        (BLANK | TAG_A, shelf(file="A", stream="AB"), [NO, YES, HINT, HINT, NO], A, 0),
        (BLANK | TAG_A, shelf(file="AB"), [NO, HINT, NO, HINT, NO], None, 5),
        (TAG_A, shelf(A=0.010, B=0.004), [NO, NO, NO, HINT, HINT], None, 5),
        (TAG_A, shelf(B=0.001, C=0.016), [NO, NO, NO, HINT, HINT], None, 5),
        ({"manifest": manifest(A)}, shelf(B=0.001, C=0.016), [YES, NO, NO, NO, HINT], A, 0),
    ],
)  # fmt: skip
def test_verdicts(
    found: dict[str, Any], known: Shelf, expected: list[State], variant: Variant | None, code: int
) -> None:
    audit = judge(evidence(**found), known)
    assert states(audit) == expected
    assert (audit.variant, audit.exit_code) == (variant, code)


def test_frames_that_were_stamped_in_spite_of_a_claim_prove_neither_variant() -> None:
    """Somebody insisted that A made what says B: the file of that stamp is A's, the frames may be B's."""
    known = Shelf({"f" * 64: [KnownClip("1", A, despite=(B,))]}, {"5" * 64: [KnownClip("1", A, despite=(B,))]})
    stamped = judge(evidence(**TAG_A), known)
    assert (states(stamped), stamped.variant) == ([NO, YES, State.AMBIGUOUS, HINT, NO], A)
    original = judge(evidence(tag=document(B.id), file_sha256="0" * 64), known)
    assert (states(original), original.exit_code) == ([NO, NO, State.AMBIGUOUS, HINT, NO], 5)
    other = judge(evidence(tag=document(C.id), file_sha256="0" * 64), known)
    assert other.exit_code == 3


def test_a_margin_over_clips_of_other_settings_decides_nothing() -> None:
    made = document(B.id, settings=SETTINGS | {"steps": 20})
    far = KnownSignature("4", B, made.scene, at(0.016), made.settings_sha256)
    audit = judge(evidence(), Shelf(pictures=[_picture(A, 0.004), far]))
    assert (audit.match.is_decided, audit.to_json()["fair_margin"]) == (False, None)
    assert audit.rungs[4].detail.endswith("margin 4.0, over clips of other or unknown settings: undecided")


def test_pictures_alone_are_candidates_with_margins() -> None:
    audit = judge(evidence(), shelf(B=0.016, A=0.004))
    assert [candidate["variant"]["id"] for candidate in audit.to_json()["candidates"]] == [A.id, B.id]
    assert audit.to_json()["margin"] == pytest.approx(4, rel=0.02)
    assert audit.variant is None
    assert "margin 4.0" in audit.rungs[4].detail


EXPIRED = {"manifest": manifest(A, trust=Trust.EXPIRED)}


def test_an_expired_manifest_of_a_file_that_was_registered_signed() -> None:
    """It is no proof of its own: the file is."""
    known = Shelf({"f" * 64: [KnownClip("1", A, signed=True)]})
    audit = judge(evidence(**EXPIRED), known)
    assert states(audit)[:2] == [HINT, YES]
    assert (audit.exit_code, audit.variant) == (0, A)
    assert audit.rungs[0].detail.endswith("expired; it was valid when this file was registered")


def test_an_expired_manifest_on_frames_that_were_registered_signed() -> None:
    known = Shelf({}, {"5" * 64: [KnownClip("1", A, signed=True)]})
    audit = judge(evidence(**EXPIRED), known)
    assert (states(audit)[0], audit.exit_code, audit.variant) == (HINT, 0, A)
    assert "another file with these frames was registered with a valid one" in audit.rungs[0].detail
    other = Shelf({}, {"5" * 64: [KnownClip("1", B, signed=True)]})
    assert judge(evidence(**EXPIRED), other).exit_code == 3


@pytest.mark.parametrize("known", [shelf(), shelf(A=0.001, B=0.016)])
def test_an_expired_manifest_that_nobody_vouches_for_is_neither_proof_nor_broken(known: Shelf) -> None:
    audit = judge(evidence(**EXPIRED), known)
    assert (states(audit)[0], audit.exit_code, audit.variant) == (HINT, 5, None)
    assert "no registration vouches for it" in audit.rungs[0].detail


def test_a_file_registered_without_a_signature_does_not_vouch_for_one() -> None:
    audit = judge(evidence(**EXPIRED), shelf(file="A"))
    assert (audit.exit_code, audit.variant) == (0, A)
    assert "no registration vouches for it" in audit.rungs[0].detail


def test_who_contradicts_whom_is_said() -> None:
    audit = judge(evidence(tag=document(A.id)), shelf(stream="B"))
    assert audit.contradictions == ("exact-stream names delta:bbbbbbbbbbbb, claimed names delta:aaaaaaaaaaaa",)


def test_a_signers_name_is_quoted() -> None:
    claim = Claim(document(A.id), True, True, True, "\x1b[2Jnice\nsigner")
    audit = judge(evidence(manifest=ManifestReport(Trust.TRUSTED, 1, (claim,), ())), shelf())
    assert audit.rungs[0].detail.isprintable()
