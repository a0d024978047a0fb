"""The evidence ladder: from what a clip tells and what a registry knows to a verdict. Pure logic, no file, no network.

    attested      a manifest signed under a trusted authority names a registered variant      proof
    exact-file    the file's SHA-256 is registered                                             proof
    exact-stream  the digest of the decoded frames is registered                               proof
    claimed       the comment tag names a variant: anyone can write that                       hint
    similar       the pictures resemble registered clips                                       hint

Proof of one registered variant, contradicted by nothing, is exit 0. Rungs that exclude each other, and an invalid
manifest, are exit 3. All else is exit 5: hints with their candidates, never a name as fact. Which rungs may contradict
each other, docs/audit.md lists pair by pair; that no honest clip is contradicted, a test draws.

Blank frames are no proof: every model makes them when it fails. And pictures stand against a bare claim alone, and only
where clips of its own prompt, seed and settings are registered.

A certificate that has run out does not make its manifest invalid: the bytes are those that were signed, and without a
time-stamping service, which needs a network, every manifest comes to this by age alone. Nor is it proof any more, for
whoever holds the key may sign for ever. So it is a hint, which says that it was valid when a registration of the signed
file vouches for that; the other rungs decide.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .clip_document import ClipDocument, Variant
from .evidence import Evidence
from .manifest import ManifestReport, Trust
from .match import VARIANT_MARGIN, Match, margin_text
from .signature import Signature

__all__ = ["RUNGS", "Audit", "Known", "KnownClip", "Rung", "State", "Verdict", "judge"]

RUNGS: Final = ("attested", "exact-file", "exact-stream", "claimed", "similar")


@dataclass(frozen=True, slots=True)
class KnownClip:
    """A registered clip that matches exactly.

    Attributes:
        clip: how the registry calls it, such as its file's SHA-256.
        variant: which made it.
        signed: a manifest was made, or found trusted, when it was registered.
        despite: variants that the clip had been said to be of before.
    """

    clip: str
    variant: Variant
    signed: bool = False
    despite: tuple[Variant, ...] = ()


class Known(Protocol):
    """What the ladder asks a registry."""

    def by_file(self, sha256: str) -> Sequence[KnownClip]:
        """Clips whose file has this SHA-256 (64 hex digits)."""

    def by_stream(self, digest: str) -> Sequence[KnownClip]:
        """Clips whose decoded stream has this digest (64 hex digits)."""

    def has_variant(self, variant: Variant) -> bool:
        """Whether this delta or base is registered."""

    def match(self, signature: Signature) -> Match:
        """What the pictures of all clips tell; see `match_signature`."""


class State(enum.StrEnum):
    """What one rung found."""

    CONFIRMED = "confirmed"
    """Proof of one registered variant."""
    HINT = "hint"
    """Names variants without proving any."""
    AMBIGUOUS = "ambiguous"
    """Proof that one of several variants made it."""
    UNKNOWN = "unknown"
    """Names a variant that is not registered here."""
    ABSENT = "absent"
    """Nothing found."""
    INVALID = "invalid"
    """Something is there, and broken."""
    NOT_CHECKED = "not-checked"
    """Something is there, and was not looked at."""


_PROOFS: Final = frozenset({State.CONFIRMED, State.AMBIGUOUS})


class Verdict(enum.StrEnum):
    """What the whole ladder comes to."""

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    UNPROVEN = "unproven"

    @property
    def exit_code(self) -> int:
        """0, 3 or 5."""
        return {Verdict.CONFIRMED: 0, Verdict.CONTRADICTED: 3, Verdict.UNPROVEN: 5}[self]


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung.

    Attributes:
        name: of `RUNGS`.
        state: what was found.
        variants: those that it names; for `similar` the candidates.
        detail: one sentence.
    """

    name: str
    state: State
    variants: tuple[Variant, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The answer.

    Attributes:
        verdict: its `exit_code` is the command's.
        variant: which made the clip, when that is proven; else None.
        rungs: all five, in order.
        match: what the pictures resemble, with distances and margins.
        contradictions: one sentence each; not empty exactly when the verdict is CONTRADICTED.
    """

    verdict: Verdict
    variant: Variant | None
    rungs: tuple[Rung, ...]
    match: Match
    contradictions: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 confirmed, 3 contradicted, 5 unproven."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verdict": str(self.verdict),
            "exit_code": self.exit_code,
            "variant": None if self.variant is None else _variant_json(self.variant),
            "rungs": [
                {
                    "rung": rung.name,
                    "state": str(rung.state),
                    "variants": [_variant_json(variant) for variant in rung.variants],
                    "detail": rung.detail,
                }
                for rung in self.rungs
            ],
            "candidates": [
                {
                    "variant": _variant_json(candidate.variant),
                    "clip": candidate.clip,
                    "distance": candidate.distance,
                    "margin": candidate.margin,
                    "fair_margin": candidate.fair_margin,
                }
                for candidate in self.match.candidates
            ],
            "nearest_distance": self.match.nearest,
            "nearest_at_least": self.match.nearest_at_least,
            "margin": self.match.margin,
            "fair_margin": self.match.fair_margin,
            "contradictions": list(self.contradictions),
        }


def judge(evidence: Evidence, known: Known) -> Audit:
    """Climb the ladder."""
    match = known.match(evidence.signature)
    by_file, by_stream = known.by_file(evidence.file_sha256), known.by_stream(evidence.stream.digest)
    rungs = (
        _attested(evidence, known, _vouched(by_file, by_stream)),
        _exact_file(evidence, by_file),
        _exact_stream(evidence, by_stream),
        _claimed(evidence, known),
        _similar(evidence, match),
    )
    contradictions = (*_broken(rungs), *_exclusions(rungs), *_against_pictures(evidence, rungs, match))
    proven = _proven(rungs)
    if contradictions:
        return Audit(Verdict.CONTRADICTED, None, rungs, match, contradictions)
    return Audit(Verdict.UNPROVEN if proven is None else Verdict.CONFIRMED, proven, rungs, match, ())


def _attested(evidence: Evidence, known: Known, vouched: str) -> Rung:
    report = evidence.manifest
    if evidence.manifest_error is not None:
        return Rung("attested", State.NOT_CHECKED, (), str(evidence.manifest_error))
    if report is None:
        return Rung("attested", State.ABSENT, (), "no signed manifest")
    variants = tuple(dict.fromkeys(claim.document.variant for claim in report.claims))
    if report.trust is Trust.INVALID:
        return Rung("attested", State.INVALID, variants, f"an invalid manifest: {', '.join(report.failures)}")
    if not variants:
        return Rung("attested", State.ABSENT, (), "a signed manifest that names no variant")
    if evidence.trust_error is not None:
        # What it names still counts against other rungs: a contradiction needs no authority.
        return Rung("attested", State.NOT_CHECKED, variants, f"whom to trust is not known: {evidence.trust_error}")
    doubt = _doubt(report, vouched)
    if doubt is not None:
        return Rung("attested", State.HINT, variants, doubt)
    if not known.has_variant(variants[0]):
        return Rung("attested", State.UNKNOWN, variants, f"signed by {_signer(report)}; the variant is not registered")
    return Rung("attested", State.CONFIRMED, variants, f"signed by {_signer(report)} under a trusted authority")


def _vouched(by_file: Sequence[KnownClip], by_stream: Sequence[KnownClip]) -> str:
    """What the registry can say of a signature whose certificate has run out."""
    if any(clip.signed for clip in by_file):
        return "it was valid when this file was registered"
    if any(clip.signed for clip in by_stream):
        # The same frames in another file: whether that one carried this signature is not known.
        return "another file with these frames was registered with a valid one"
    return "no registration vouches for it"


def _doubt(report: ManifestReport, vouched: str) -> str | None:
    """Why a sound manifest proves nothing, or None."""
    if report.trust is Trust.UNTRUSTED:
        return f"signed by {_signer(report)}, whom no trusted authority stands behind"
    if report.trust is Trust.EXPIRED:
        return f"the signing certificate has expired; {vouched}"
    if report.is_layered:
        # The newest signature covers these bytes and the older one does not: what was edited in between is not known.
        return f"{report.manifests} manifests in layers; the newest covers the file, the older ones do not"
    if len({claim.document.variant for claim in report.claims}) > 1 or not report.claims[0].is_created:
        return "the manifest does not say that one variant created the clip"
    return None


def _signer(report: ManifestReport) -> str:
    return repr(report.claims[0].signer)


def _exact_file(evidence: Evidence, clips: Sequence[KnownClip]) -> Rung:
    variants = tuple(dict.fromkeys(clip.variant for clip in clips))
    rung = _exact("exact-file", variants, "the file")
    # A blank file that says nothing is the same whoever makes it; one that names its maker is not.
    if variants and evidence.is_blank and not set(variants) <= set(_said(evidence)):
        return Rung(rung.name, State.HINT, variants, "the file is registered, and blank: any variant may make the same")
    return rung


def _said(evidence: Evidence) -> Iterator[Variant]:
    """What the file's own bytes name."""
    if evidence.tag is not None:
        yield evidence.tag.variant
    if evidence.manifest is not None:
        yield from (claim.document.variant for claim in evidence.manifest.claims)


def _exact_stream(evidence: Evidence, clips: Sequence[KnownClip]) -> Rung:
    registered = dict.fromkeys(clip.variant for clip in clips)
    variants = tuple(registered | dict.fromkeys(variant for clip in clips for variant in clip.despite))
    what = "the decoded stream"
    if variants and evidence.is_blank:
        detail = f"{what} is registered, and blank: any variant may make the same"
        return Rung("exact-stream", State.HINT, variants, detail)
    if len(variants) > len(registered):
        detail = f"{what} is registered as {_listed(registered)}, and was said to be of another before"
        return Rung("exact-stream", State.AMBIGUOUS, variants, detail)
    return _exact("exact-stream", variants, what)


def _exact(name: str, variants: tuple[Variant, ...], what: str) -> Rung:
    if not variants:
        return Rung(name, State.ABSENT, (), f"{what} is not registered")
    if len(variants) > 1:
        return Rung(name, State.AMBIGUOUS, variants, f"{what} is registered under {len(variants)} variants")
    return Rung(name, State.CONFIRMED, variants, f"{what} is registered")


def _claimed(evidence: Evidence, known: Known) -> Rung:
    if evidence.tag_error is not None:
        return Rung("claimed", State.INVALID, (), f"a broken comment tag: {evidence.tag_error.what}")
    if evidence.tag is None:
        return Rung("claimed", State.ABSENT, (), "no comment tag of this program")
    variant = evidence.tag.variant
    if not known.has_variant(variant):
        return Rung("claimed", State.UNKNOWN, (variant,), "the comment tag names a variant that is not registered")
    return Rung("claimed", State.HINT, (variant,), "the comment tag names a variant; anyone can write one")


def _similar(evidence: Evidence, match: Match) -> Rung:
    variants = tuple(candidate.variant for candidate in match.candidates)
    if evidence.is_blank or evidence.signature.is_blank:
        return Rung("similar", State.ABSENT, (), "the clip is blank: nothing to compare")
    if match.nearest is None:
        return Rung("similar", State.ABSENT, (), "no clip is registered")
    if not variants:
        assert match.nearest_at_least is not None
        exact = match.nearest == match.nearest_at_least
        nearest = f"nearest at {match.nearest:.3f}" if exact else f"none nearer than {match.nearest_at_least:.3f}"
        return Rung("similar", State.ABSENT, (), f"no registered scene resembles it ({nearest})")
    if match.margin is None:
        return Rung("similar", State.HINT, variants, "a known scene, registered under one variant only: undecided")
    if match.fair_margin is None:
        known = f"margin {margin_text(match.margin)}, over clips of other or unknown settings: undecided"
    else:
        against = "above" if match.is_decided else "not above"
        known = f"margin {margin_text(match.fair_margin)}, {against} {VARIANT_MARGIN:g}"
        known += "" if match.is_decided else ": undecided"
    return Rung("similar", State.HINT, variants, f"a known scene of {len(variants)} variants; {known}")


def _broken(rungs: tuple[Rung, ...]) -> tuple[str, ...]:
    attested = rungs[0]
    return (attested.detail,) if attested.state is State.INVALID else ()


def _exclusions(rungs: tuple[Rung, ...]) -> tuple[str, ...]:
    """Rungs below `similar` that cannot be right together, and manifests that name several variants."""
    naming = [rung for rung in rungs[:4] if rung.variants and not _is_blank_hint(rung)]
    found = []
    attested = rungs[0]
    if len(attested.variants) > 1:
        found.append(f"the manifests name {_listed(attested.variants)}")
    for index, rung in enumerate(naming):
        found += [
            f"{rung.name} names {_listed(rung.variants)}, {other.name} names {_listed(other.variants)}"
            for other in naming[index + 1 :]
            if not set(rung.variants) & set(other.variants)
        ]
    return tuple(found)


def _is_blank_hint(rung: Rung) -> bool:
    """Exact rungs are proof, or absent, unless the clip is blank."""
    return rung.name in ("exact-file", "exact-stream") and rung.state is State.HINT


def _against_pictures(evidence: Evidence, rungs: tuple[Rung, ...], match: Match) -> tuple[str, ...]:
    """A bare claim, its prompt, seed and settings are those of the nearest registered clip, the named variant's own
    clip of them is registered, and lies farther off by the margin.

    Nothing else is contradicted: not what a trusted signature or an exact rung says, not a claim about other settings
    than those of the clips it would be held against, and no variant without a clip of them.
    """
    if match.setting is None or any(rung.state in _PROOFS for rung in rungs[:3]) or rungs[0].state is State.UNKNOWN:
        return ()
    margins = {candidate.variant: candidate.fair_margin or 0.0 for candidate in match.candidates}
    named = dict.fromkeys(
        document.variant
        for document in _bare_claims(evidence)
        if (document.scene, document.settings_sha256) == match.setting
    )
    return tuple(
        f"{variant} is named, and the pictures are {margin_text(margins[variant])} times nearer to "
        f"{match.candidates[0].variant}"
        for variant in named
        if margins.get(variant, 0.0) > VARIANT_MARGIN
    )


def _bare_claims(evidence: Evidence) -> Iterator[ClipDocument]:
    """What anybody could have written: the tag, and a manifest of a signer whom no trusted authority stands behind."""
    if evidence.tag is not None:
        yield evidence.tag
    report = evidence.manifest
    if report is not None and report.trust is Trust.UNTRUSTED and evidence.trust_error is None:
        yield from (claim.document for claim in report.claims)


def _proven(rungs: tuple[Rung, ...]) -> Variant | None:
    """The only variant that every proof allows."""
    proofs = [set(rung.variants) for rung in rungs[:3] if rung.state in _PROOFS]
    if not proofs:
        return None
    left = set.intersection(*proofs)
    return left.pop() if len(left) == 1 else None


def _listed(variants: Iterable[Variant]) -> str:
    return " and ".join(str(variant) for variant in variants)


def _variant_json(variant: Variant) -> dict[str, str]:
    return {"kind": variant.kind, "id": variant.id}
