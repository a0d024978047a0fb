"""Signed C2PA manifests in MP4 and MOV clips, through c2pa-python, without a network.

C2PA calls a manifest Valid when somebody signed it, and Trusted when one of the given authorities stands behind the
signer: only the latter counts here. Whoever that authority trusts can put an edit on top with another claim, and the
whole stays Trusted; so every manifest's claim is read, down to the one whose action is `c2pa.created`.
Source: C2PA specification 2.x; its behaviour as measured with c2pa-python 0.38.1.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.canonical import canonical_json
from hfq.schema.documents import parse_json
from hfq.schema.errors import (
    MalformedFileError,
    MissingDependencyError,
    RemuxError,
    SigningError,
    UsageError,
)
from hfq.schema.version import VERSION

from .boxes import read_user_box
from .clip_document import ClipDocument, parse_clip_document
from .container_facts import container_facts, require_same
from .keys import EXTRA, SigningKey, check_anchors
from .output import new_file
from .stream import Clip, open_clip

__all__ = [
    "ASSERTION",
    "C2PA_UUID",
    "Claim",
    "ManifestReport",
    "SignedClip",
    "Trust",
    "check_signable",
    "has_manifest",
    "read_manifest",
    "sign_clip",
    "stored_manifest",
]

ASSERTION: Final = "org.hfq.variant"
"""The assertion that holds a clip's document (`hfq.clip/1`)."""

_TYPES: Final = {"mp4": "video/mp4", "mov": "video/quicktime"}
_MAX_STORE_BYTES: Final = 16 * 1024 * 1024
C2PA_UUID: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""The identity of the `uuid` box of an MP4 or MOV that holds its manifests."""

_EXPIRED: Final = frozenset({"signingCredential.expired", "signingCredential.untrusted"})
"""What is reported of a manifest that was sound until its certificate ended: trust is not looked at any more."""


class Trust(enum.StrEnum):
    """What a manifest is worth."""

    TRUSTED = "trusted"
    """Signed under a trusted authority, and the file is the one that was signed."""
    UNTRUSTED = "untrusted"
    """Sound, and signed by somebody: no trusted authority stands behind the signer."""
    EXPIRED = "expired"
    """Unchanged since it was signed, but the certificate has ended, and with it any statement about trust."""
    INVALID = "invalid"
    """The file was changed after it was signed, or the manifest is broken."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement in a manifest about what made the clip.

    Attributes:
        document: what it says.
        is_active: of the newest manifest, which covers the file's bytes.
        is_created: of a manifest that says that it made the clip, rather than edited it.
        is_trusted: a trusted authority stands behind the signer of this very manifest.
        signer: common name in the signing certificate, as it stands there.
    """

    document: ClipDocument
    is_active: bool
    is_created: bool
    is_trusted: bool
    signer: str


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """What a clip's manifests say.

    Attributes:
        trust: of the newest manifest.
        manifests: how many there are in the file; 0 when they cannot be read.
        claims: every variant named, the newest manifest first.
        failures: C2PA's failure codes, or one sentence where the manifests cannot be read.
    """

    trust: Trust
    manifests: int
    claims: tuple[Claim, ...]
    failures: tuple[str, ...]

    @property
    def is_layered(self) -> bool:
        """Whether another manifest lies on top of the one that made the clip."""
        return self.manifests > 1


@dataclass(frozen=True, slots=True)
class SignedClip:
    """A signed copy: where it is, and the bytes of its manifest, which prove what was signed even without the file."""

    path: Path
    manifest: bytes


def has_manifest(clip: Clip) -> bool:
    """Whether the file has a C2PA box at its top level (ISO 14496-12 `uuid`); needs no C2PA library."""
    return C2PA_UUID in clip.uuids


def stored_manifest(clip: Clip) -> bytes | None:
    """The bytes of the manifests that a file carries, as `sign_clip` returns them; None where there are none. Needs no
    C2PA library. Layout of the box: C2PA specification, "Embedding manifests into BMFF-based assets".
    """
    if not has_manifest(clip):
        return None
    with clip.rewound() as file:
        body = read_user_box(file, clip.size_bytes, C2PA_UUID, _MAX_STORE_BYTES)
    purpose = b"manifest\0"  # behind version and flags; then 8 bytes of an offset, and the manifests
    if body is None or body[4 : 4 + len(purpose)] != purpose:
        return None
    data = body[4 + len(purpose) + 8 :]
    return data[: int.from_bytes(data[:4], "big")]


def sign_clip(
    source: str | os.PathLike[str], out: str | os.PathLike[str], document: ClipDocument, key: SigningKey
) -> SignedClip:
    """Copy an MP4 or MOV with a signed manifest: `c2pa.created`, trained algorithmic media, the document, and the delta
    or base as an ingredient.

    Raises:
        UsageError: another container, another suffix, or a clip that carries a manifest, which would be lost.
        OutputExistsError
        SigningError: the library refuses the key, its certificate or the file.
        RemuxError: the signed copy decodes to other frames.
        MissingDependencyError
        and what `open_clip` and `Clip.frames` raise.
    """
    c2pa = require_c2pa()
    definition = _definition(document, Path(source).name)
    target = Path(out)
    with open_clip(source) as clip:
        check_signable(clip, target)
        if has_manifest(clip):
            raise UsageError(
                "the clip carries a manifest already",
                where=clip.path,
                todo="`hfq audit` shows it; stamp an unsigned copy",
            )
        with new_file(target) as temporary:
            try:
                manifest = _sign(c2pa, clip, temporary, definition, key)
            except c2pa.C2paError as error:
                raise SigningError("the clip cannot be signed", where=clip.path, found=error) from None
            with open_clip(temporary) as copy:
                if copy.stream_facts() != clip.stream_facts():
                    raise RemuxError("the signed copy is not the same clip", where=clip.path)
                require_same(container_facts(clip), container_facts(copy), clip.path)
    return SignedClip(target, manifest)


def read_manifest(clip: Clip, anchors_pem: str, manifest: bytes | None = None) -> ManifestReport | None:
    """Read and validate the manifests of a clip; None when it has none.

    Args:
        clip: an open clip.
        anchors_pem: certificates of the trusted authorities, PEM; empty when none is trusted.
        manifest: bytes from elsewhere, such as a registry, to hold against this file instead of its own.

    Raises:
        KeyFileError: the anchors are no certificates.
        MissingDependencyError
    """
    if manifest is None and not has_manifest(clip):
        return None
    c2pa = require_c2pa()
    if anchors_pem:
        check_anchors(anchors_pem)
    try:
        context = _context(c2pa, anchors_pem)
        with clip.rewound() as file, c2pa.Reader(_TYPES.get(clip.container, ""), file, manifest, context) as reader:
            state, text = reader.get_validation_state(), reader.json().encode("utf-8", "replace")
        if len(text) > _MAX_STORE_BYTES:
            raise MalformedFileError("the manifests are too large", where=clip.path)
        return _report(parse_json(text, f"{clip.path}: manifest"), state, str(clip.path))
    except c2pa.C2paError as error:
        return ManifestReport(Trust.INVALID, 0, (), (f"unreadable: {error}"[:300],))
    except MalformedFileError as error:
        return ManifestReport(Trust.INVALID, 0, (), (str(error),))


def require_c2pa() -> Any:
    """c2pa-python's module.

    Raises:
        MissingDependencyError
    """
    try:
        import c2pa
    except (ImportError, OSError) as error:  # OSError: the native library does not load on this system
        raise MissingDependencyError(
            "signed manifests need c2pa-python", found=error, todo=f"install it: {EXTRA}"
        ) from None
    return c2pa


def check_signable(clip: Clip, target: Path) -> None:
    """Check that a clip can be copied with a manifest under this name.

    Raises:
        UsageError: a container without one, a suffix of another container.
    """
    suffixes = {"mp4": (".mp4", ".m4v"), "mov": (".mov",)}.get(clip.container)
    if suffixes is None:
        raise UsageError(
            "a signed manifest goes into MP4 or MOV",
            where=clip.path,
            found=clip.container,
            todo="stamp it unsigned with --no-sign, or convert it to MP4 first (ffmpeg -i CLIP -c copy OUT.mp4)",
        )
    if target.suffix.lower() not in suffixes:
        raise UsageError("the copy keeps the container of its input", where=target, expected=" or ".join(suffixes))


def _definition(document: ClipDocument, title: str) -> dict[str, Any]:
    document.to_bytes()  # the schema, before anything is signed
    variant = document.variant
    return {
        "claim_generator_info": [{"name": "hfq", "version": VERSION}],
        "title": title,
        "assertions": [{"label": ASSERTION, "data": document.to_json()}],
        "ingredients": [
            {
                "title": str(variant),
                "format": "application/vnd.hfq.ptq-state+json" if variant.kind == "delta" else "application/x-wan-base",
                "instance_id": f"urn:hfq:{variant.kind}:{variant.id}",
                "relationship": "inputTo",
            }
        ],
    }


def _sign(c2pa: Any, clip: Clip, out: Path, definition: Mapping[str, Any], key: SigningKey) -> bytes:
    kind = _TYPES[clip.container]
    info = c2pa.C2paSignerInfo(key.algorithm, key.chain_pem, key.private_key_pem, None)
    with (
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(canonical_json(definition).decode(), context=_context(c2pa, "")) as builder,
        clip.rewound() as source,
        open(out, "w+b") as target,
    ):
        created, generated = c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
        builder.set_intent(created, generated)
        manifest: bytes = builder.sign(signer, kind, source, target)
    return manifest


def _context(c2pa: Any, anchors_pem: str) -> Any:
    """Settings under which the library opens no connection, seen with strace; never the global ones."""
    settings: dict[str, Any] = {
        "core": {"allowed_network_hosts": []},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
        "builder": {"thumbnail": {"enabled": False}},
    }
    if anchors_pem:
        settings["trust"] = {"user_anchors": anchors_pem}
    return c2pa.Context(settings=c2pa.Settings.from_dict(settings))


def _report(store: Any, state: str | None, where: str) -> ManifestReport:
    """What this package relies on in the library's JSON; another form than expected is an invalid manifest."""
    try:
        active, manifests, results = store["active_manifest"], store["manifests"], store["validation_results"]
        statuses = _statuses(store)
        failures = tuple(entry["code"] for entry in results["activeManifest"]["failure"])
        order = [active, *(label for label in manifests if label != active)]
        claims = tuple(claim for label in order for claim in _claims(manifests[label], label, active, statuses, where))
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedFileError("a manifest store of an unknown form", where=where, found=repr(error)) from None
    trust = {"Trusted": Trust.TRUSTED, "Valid": Trust.UNTRUSTED}.get(state or "", Trust.INVALID)
    if trust is Trust.INVALID and "signingCredential.expired" in failures and set(failures) <= _EXPIRED:
        trust = Trust.EXPIRED
    return ManifestReport(trust, len(manifests), claims, failures)


def _claims(
    manifest: Mapping[str, Any], label: str, active: str, statuses: Mapping[str, bool], where: str
) -> Iterator[Claim]:
    created = any(
        action["action"] == "c2pa.created"
        for assertion in _labelled(manifest["assertions"], "c2pa.actions")
        for action in assertion["data"]["actions"]
    )
    for assertion in _labelled(manifest["assertions"], ASSERTION):
        document = parse_clip_document(json.dumps(assertion["data"]).encode(), f"{where}: {ASSERTION}")
        signer = str(manifest.get("signature_info", {}).get("common_name", ""))[:200]
        yield Claim(document, label == active, created, statuses.get(label, False), signer)


def _labelled(assertions: Iterable[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    """Assertions of a label: `name`, with a version (`.v2`), numbered (`__1`) where there are several."""
    form = re.compile(re.escape(name) + r"(\.v\d+)?(__\d+)?")
    return (assertion for assertion in assertions if form.fullmatch(assertion["label"]))


def _statuses(store: Mapping[str, Any]) -> dict[str, bool]:
    """Manifest label -> whether a trusted authority stands behind its signer, judged now.

    An edit carries the results of its own look at the older manifest, made under its own settings; the library adds
    what differs today. So a "trusted" counts unless today's list revokes it, and none counts beside an "untrusted".
    """
    results = store["validation_results"]
    today = [results["activeManifest"], *(d["validationDeltas"] for d in results.get("ingredientDeltas", []))]
    stored = [
        ingredient["validation_results"]["activeManifest"]
        for manifest in store["manifests"].values()
        for ingredient in manifest.get("ingredients", [])
        if "activeManifest" in ingredient.get("validation_results", {})
    ]
    refused = set(_labels_of(today, "failure", "signingCredential.untrusted"))
    trusted = set(_labels_of([*today, *stored], "success", "signingCredential.trusted"))
    return {label: label in trusted - refused for label in store["manifests"]}


def _labels_of(results: Iterable[Mapping[str, Any]], member: str, code: str) -> Iterator[str]:
    for result in results:
        for entry in result.get(member, []):
            found = re.fullmatch(r"self#jumbf=/c2pa/([^/]+)/c2pa\.signature", entry.get("url", ""))
            if entry["code"] == code and found is not None:
                yield found[1]
