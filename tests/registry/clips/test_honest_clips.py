"""Whatever a registry knows and whatever people do to a file: an honest clip is never contradicted and never misnamed.

Worlds are drawn: which variant made the clip, what the file says of itself (the truth, or nothing), what is registered
of it (under the truth, and perhaps under others with the same frames, or not at all), how near the pictures of other
clips are. Nothing is assumed of these but this: the maker's own clip of the same prompt, seed and settings is not three
times farther off than another variant's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_clips import SETTINGS, A, B, C, document
from test_ladder import BLANK, Shelf, at, evidence

from hfq.registry.clips.clip_document import ClipDocument, Objection, Variant
from hfq.registry.clips.ladder import KnownClip, State, Verdict, judge
from hfq.registry.clips.manifest import Claim, ManifestReport, Trust
from hfq.registry.clips.match import VARIANT_MARGIN, KnownSignature
from hfq.schema.errors import KeyFileError, MissingDependencyError, SchemaViolationError

VARIANTS = (A, B, C)
HOW = (SETTINGS, SETTINGS | {"steps": 20}, {"steps": 4}, {})
variants = st.sampled_from(VARIANTS)
how = st.sampled_from(HOW)
distance = st.floats(0, 0.9)


@st.composite
def documents(draw: st.DrawFn, maker: Variant) -> ClipDocument:
    """What the truth may be said with: everything, something, or nothing of prompt, seed and settings."""
    made = document(maker.id, settings=draw(how))
    if draw(st.booleans()):
        made = dataclasses.replace(made, prompt_sha256=None, prompt=None)
    return dataclasses.replace(made, seed=draw(st.sampled_from([7, 8, None])))


@st.composite
def manifests(draw: st.DrawFn, said: ClipDocument) -> dict[str, Any]:
    """None, one that was not looked at, or one that is sound and says the truth."""
    kind = draw(st.sampled_from(["none", "unread", "read", "anchors"]))
    if kind == "none":
        return {}
    if kind == "unread":
        return {"manifest_error": MissingDependencyError("no c2pa")}
    trust = draw(st.sampled_from([Trust.TRUSTED, Trust.UNTRUSTED, Trust.EXPIRED]))
    layers = draw(st.integers(1, 3))
    claims = tuple(
        Claim(said, layer == 0, layer == layers - 1, trust is Trust.TRUSTED, "signer")
        for layer in range(draw(st.integers(0, layers)))
    )
    report = ManifestReport(trust, layers, claims, ())
    return {"manifest": report} | ({"trust_error": KeyFileError("no anchors")} if kind == "anchors" else {})


@st.composite
def under(draw: st.DrawFn, maker: Variant, *, may_be_insisted: bool) -> list[KnownClip]:
    """Nothing, or under what the same bytes are registered, the truth among it. Of frames it may be among what somebody
    insisted in spite of."""
    others = draw(st.lists(variants, max_size=2))
    if draw(st.booleans()):
        return []
    if may_be_insisted and others and draw(st.booleans()):
        return [KnownClip("1", other, draw(st.booleans()), (maker,)) for other in others]
    return [KnownClip("1", other, draw(st.booleans())) for other in (*others, maker)]


def under_any(variants_drawn: list[Variant]) -> list[KnownClip]:
    """Of blank clips: anybody's."""
    return [KnownClip("1", variant) for variant in variants_drawn]


@st.composite
def pictures(draw: st.DrawFn) -> list[KnownSignature]:
    """Clips of any variant, made in any way, at any distance."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        made = draw(documents(draw(variants)))
        found.append(KnownSignature(f"{number}", made.variant, made.scene, at(draw(distance)), made.settings_sha256))
    return found


def is_fair(maker: Variant, said: ClipDocument, known: list[KnownSignature]) -> bool:
    """The maker's own clip of what the file says is not three times farther off than another's."""
    own = [one for one in known if one.variant == maker and one.setting == (said.scene, said.settings_sha256)]
    nearest = min((at(0).distance(one.signature) for one in known), default=1.0)
    return all(at(0).distance(one.signature) <= VARIANT_MARGIN * max(nearest, 1e-7) for one in own[:1]) and len(own) < 2


@given(st.data())
@settings(max_examples=1500, deadline=None, derandomize=True)
def test_an_honest_clip_is_never_contradicted_and_never_misnamed(data: st.DataObject) -> None:
    maker = data.draw(variants)
    said, is_blank = data.draw(documents(maker)), data.draw(st.booleans())
    found: dict[str, Any] = dict(BLANK) if is_blank else {}
    found |= data.draw(manifests(said))
    found |= data.draw(st.sampled_from([{}, {"tag": said}, {"tag_error": SchemaViolationError("no seed")}]))
    names_maker = "tag" in found or bool(getattr(found.get("manifest"), "claims", ()))
    anybody = st.lists(variants, max_size=2).map(under_any)
    # A blank file that does not say whose it is has the same bytes whoever makes it; so have blank frames.
    files = anybody if is_blank and not names_maker else under(maker, may_be_insisted=False)
    frames = anybody if is_blank else under(maker, may_be_insisted=True)
    known = Shelf({"f" * 64: data.draw(files)}, {"5" * 64: data.draw(frames)}, data.draw(pictures()))
    assume(is_fair(maker, said, known.pictures))
    audit = judge(evidence(**found), known)
    assert audit.contradictions == ()
    assert audit.verdict is not Verdict.CONTRADICTED
    assert audit.variant in (None, maker)


@pytest.mark.parametrize("trust", [Trust.TRUSTED, Trust.UNTRUSTED])
def test_a_lie_that_proof_denies_is_still_one(trust: Trust) -> None:
    """The other side: nothing of the above is had by finding no contradiction at all."""
    claim = Claim(document(A.id), True, True, trust is Trust.TRUSTED, "signer")
    signed = {"manifest": ManifestReport(trust, 1, (claim,), ())}
    for found in (signed, {"tag": document(A.id)}):
        assert judge(evidence(**found), Shelf({}, {"5" * 64: [KnownClip("1", B)]})).exit_code == 3
    layered = Claim(document(B.id), False, True, trust is Trust.TRUSTED, "signer")
    assert judge(evidence(manifest=ManifestReport(trust, 2, (claim, layered), ())), Shelf()).exit_code == 3
    assert judge(evidence(manifest=ManifestReport(Trust.INVALID, 1, (claim,), ("hash",))), Shelf()).exit_code == 3


def test_an_objection_says_what_it_is() -> None:
    assert str(Objection("tag", B)) == f"its tag names {B}"
    assert str(Objection("tag", None)) == "its tag names something that cannot be read"
    assert judge(evidence(), Shelf()).rungs[1].state is State.ABSENT
