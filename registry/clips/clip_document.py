"""`hfq.clip/1`: what a clip says of its origin. The comment tag and the signed manifest carry the same document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hfq.registry.folder import base_id
from hfq.registry.text import DISPLAY_DIGITS
from hfq.schema.canonical import CanonicalizationError, canonical_json, sha256_hex
from hfq.schema.documents import parse_document
from hfq.schema.errors import ClipDocumentError, ContradictedClaimError, SchemaViolationError, TooLargeError, UsageError
from hfq.schema.version import VERSION

__all__ = [
    "DECISIVE_SETTINGS",
    "MAX_CATEGORY",
    "MAX_DOCUMENT_BYTES",
    "ClipDocument",
    "Objection",
    "Setting",
    "Variant",
    "merge_documents",
    "parse_clip_document",
    "prompt_sha256",
]

MAX_DOCUMENT_BYTES: Final = 32_000
"""A comment of a QuickTime file has a 16-bit length; a document without prompt is under 2 kB."""

MAX_CATEGORY: Final = 80
"""Characters; as in the schema, and as outcomes of reviewers are held to."""

DECISIVE_SETTINGS: Final = (
    "width", "height", "frames", "steps", "shift", "guidance", "negative_prompt", "scheduler",
)  # fmt: skip
"""Without one of these nobody knows whether two clips of a prompt and seed show the same scene. None is a value, such
as of a shift that is the pipeline's own."""

_INDIFFERENT: Final = frozenset({"device", "offload"})
"""What decides where the numbers are computed, and not which. Every other setting counts, also one of a name unknown
here: to take two scenes for one could contradict an honest clip, to tell one from itself only leaves a hint out."""

Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """What can have made a clip: a delta, or a base without one.

    Attributes:
        kind: "delta" or "base".
        id: 64 hex digits: the delta's content id, or `hfq.registry.folder.base_id` of the base's bf16 roots.
    """

    kind: str
    id: str

    @classmethod
    def of(cls, delta: str | None, base: Mapping[str, str]) -> Variant:
        """The delta when there is one, else the base of these bf16 roots (role -> 64 hex digits)."""
        return cls("base", base_id(base)) if delta is None else cls("delta", delta)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id[:DISPLAY_DIGITS]}"


def prompt_sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt's UTF-8 bytes, exactly as given to the pipeline.

    Raises:
        UsageError: a prompt with half a surrogate pair, which has no UTF-8 form.
    """
    try:
        return sha256_hex(prompt.encode())
    except UnicodeEncodeError:
        raise UsageError("the prompt is not Unicode text", found="a lone surrogate") from None


@dataclass(frozen=True, slots=True, order=True)
class Objection:
    """What named another variant when somebody said nevertheless which one made a clip.

    Attributes:
        evidence: "tag", "manifest", "file" or "stream".
        variant: the other one; None where a tag says something that cannot be read.
    """

    evidence: str
    variant: Variant | None

    def __str__(self) -> str:
        says = {"tag": "its tag names", "manifest": "its signed manifest names", "file": "it is registered as",
                "stream": "these frames are registered as"}[self.evidence]  # fmt: skip
        return f"{says} {self.variant or 'something that cannot be read'}"


@dataclass(frozen=True, slots=True)
class ClipDocument:
    """Which model made a clip, and how it was asked.

    Attributes:
        delta: content id of the delta, 64 hex digits; None for the base alone.
        base: role -> bf16 root of each expert.
        prompt_sha256: see the function of that name; None when the prompt is not known.
        prompt: the text itself, only when its author asked for that.
        seed: of the initial noise.
        settings: size, steps, guidance and the like; simple values.
        expert_steps: role -> sampling steps that this expert ran; None when not known.
        hfq: the release that wrote the document.
        category: of the prompt, as its author sorts content; at most MAX_CATEGORY characters.
        despite: what said otherwise when the clip was stamped.
    """

    delta: str | None
    base: Mapping[str, str]
    prompt_sha256: str | None = None
    prompt: str | None = None
    seed: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    expert_steps: Mapping[str, int] | None = None
    hfq: str = VERSION
    category: str | None = None
    despite: tuple[Objection, ...] = ()

    @property
    def variant(self) -> Variant:
        """What the document names as the maker."""
        return Variant.of(self.delta, self.base)

    @property
    def scene(self) -> str | None:
        """Prompt and seed in one word; None when either is not known. Together with `settings_sha256` they decide the
        scene: clips that agree in both show the same, as far as their variants do.
        """
        if self.prompt_sha256 is None or self.seed is None:
            return None
        return f"{self.prompt_sha256}:{self.seed}"

    @property
    def settings_sha256(self) -> str | None:
        """Hex SHA-256 over the sorted lines `name<TAB>JSON value` of the settings that decide the frames and of the
        steps of each expert, joined by LF; whole numbers as such, however they are written. None when one of
        DECISIVE_SETTINGS or the experts' steps are not known.
        """
        if self.expert_steps is None or any(name not in self.settings for name in DECISIVE_SETTINGS):
            return None
        lines = [
            f"{name}\t{json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)}"
            for name, value in self.settings.items()
            if name not in _INDIFFERENT
        ]
        lines += [f"steps of {role}\t{count}" for role, count in self.expert_steps.items()]
        return sha256_hex("\n".join(sorted(lines)).encode())

    def to_json(self) -> dict[str, Any]:
        """Under its schema; `prompt`, `category` and `despite` are absent, not null, where there is none."""
        document: dict[str, Any] = {
            "schema": "hfq.clip/1",
            "delta": self.delta,
            "base": dict(self.base),
            "prompt_sha256": self.prompt_sha256,
            "seed": self.seed,
            "settings": dict(self.settings),
            "expert_steps": None if self.expert_steps is None else dict(self.expert_steps),
            "hfq": self.hfq,
        }
        if self.prompt is not None:
            document["prompt"] = self.prompt
        if self.category is not None:
            document["category"] = self.category
        if self.despite:
            document["despite"] = [
                {
                    "evidence": one.evidence,
                    "variant": None if one.variant is None else {"kind": one.variant.kind, "id": one.variant.id},
                }
                for one in self.despite
            ]
        return document

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785), which `parse_clip_document` takes back.

        Raises:
            UsageError: values that JSON or the schema does not have.
            TooLargeError: over MAX_DOCUMENT_BYTES.
            ClipDocumentError: a prompt with another hash.
        """
        try:
            data = canonical_json(self.to_json())
        except (CanonicalizationError, ValueError) as error:
            raise UsageError("a value that JSON does not have", where="what the clip should say", found=error) from None
        try:
            parse_clip_document(data, "what the clip should say")
        except SchemaViolationError as error:
            raise UsageError(error.what, where=error.where) from None
        return data


def merge_documents(old: ClipDocument, new: ClipDocument, where: str) -> ClipDocument:
    """What two documents of one clip say together: what one of them does not know, the other may. The release of the
    newer one counts where it adds something.

    Raises:
        ContradictedClaimError: they disagree in variant, prompt, seed, a setting, steps or category.
    """
    merged: dict[str, Any] = {}
    for name in ("delta", "base", "prompt_sha256", "prompt", "seed", "expert_steps", "category"):
        before, after = getattr(old, name), getattr(new, name)
        if (None not in (before, after) and before != after) or (name == "delta" and before != after):
            raise _disagreement(name.replace("_", " "), before, after, where)
        merged[name] = after if before is None else before
    for name in sorted(old.settings.keys() & new.settings.keys()):
        if old.settings[name] != new.settings[name]:
            raise _disagreement(f"setting {name}", old.settings[name], new.settings[name], where)
    merged["settings"] = {**old.settings, **new.settings}
    merged["despite"] = tuple(dict.fromkeys((*old.despite, *new.despite)))
    candidate = ClipDocument(**merged, hfq=old.hfq)
    return candidate if candidate == old else replace(candidate, hfq=new.hfq)


def _disagreement(name: str, old: object, new: object, where: str) -> ContradictedClaimError:
    return ContradictedClaimError(
        f"the clip is registered with another {name}", where=where, expected=old, found=new,
        todo="a clip is recorded as it was made; make or stamp another file for another claim",
    )  # fmt: skip


def parse_clip_document(data: bytes, where: str) -> ClipDocument:
    """Read a document from anywhere.

    Raises:
        TooLargeError: over MAX_DOCUMENT_BYTES.
        ClipDocumentError: a prompt that does not hash to `prompt_sha256`.
        and what `hfq.schema.documents.parse_document` raises.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TooLargeError("too large", where=where, expected=f"at most {MAX_DOCUMENT_BYTES} bytes", found=len(data))
    return _checked(parse_document(data, "clip", where), where)


def _checked(document: Mapping[str, Any], where: str) -> ClipDocument:
    # JSON Schema counts 3.0 as an integer.
    prompt, digest, steps = document.get("prompt"), document["prompt_sha256"], document["expert_steps"]
    if prompt is not None and digest != sha256_hex(prompt.encode()):
        raise ClipDocumentError(
            "the prompt is not the one of its hash", where=where, expected=f"sha256 {digest}", found="other text"
        )
    return ClipDocument(
        delta=document["delta"],
        base=document["base"],
        prompt_sha256=digest,
        prompt=prompt,
        seed=None if document["seed"] is None else int(document["seed"]),
        settings=document["settings"],
        expert_steps=None if steps is None else {role: int(count) for role, count in steps.items()},
        hfq=document["hfq"],
        category=document.get("category"),
        despite=tuple(
            Objection(one["evidence"], None if one["variant"] is None else Variant(**one["variant"]))
            for one in document.get("despite", ())
        ),
    )
