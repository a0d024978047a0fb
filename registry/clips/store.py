"""Clips in the registry: recording one, and answering what the evidence ladder asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.registry.events import record_event, utc_now
from hfq.registry.models import Base, Clip, ClipSignature, ClipSketch, Delta
from hfq.schema.errors import HfqError, RegistryDamagedError

from .clip_document import ClipDocument, Objection, Variant, merge_documents, parse_clip_document
from .evidence import Evidence
from .ladder import KnownClip
from .match import KnownSignature, Match, match_shortlisted
from .signature import Signature
from .sketch import sketch_of

__all__ = ["RecordedClip", "RegisteredClips", "find_objections", "record_clip"]

_BATCH: Final = 4096


@dataclass(frozen=True, slots=True)
class RecordedClip:
    """What recording did. A file that was known under the same variant keeps its row; `is_amended` when that row now
    says something that was not known before.
    """

    file_sha256: str
    variant: Variant
    is_new: bool
    is_amended: bool = False


def record_clip(
    session: Session,
    evidence: Evidence,
    document: ClipDocument,
    *,
    name: str,
    manifest: bytes | None = None,
    signed: bool = False,
) -> RecordedClip:
    """Remember a clip; the caller holds the write lock.

    Args:
        evidence: gathered from the file.
        document: which variant made it, and how; stored as it is, with the prompt only when it holds one. Of a known
            file it may say what was not known, and nothing else.
        name: of the file, for people.
        manifest: the signed manifests' bytes, which outlive the file's own when somebody re-encodes it.
        signed: whether a manifest was made, or found trusted, now.

    Raises:
        ContradictedClaimError: the same file of the same variant is registered with another prompt, seed or setting.
    """
    variant = document.variant
    known = session.scalar(
        sa.select(Clip).where(Clip.file_sha256 == evidence.file_sha256, Clip.variant_id == variant.id)
    )
    if known is not None:
        amended = _amend(known, document, manifest, signed=signed)
        if amended:
            record_event(
                session, "clip-amended", document.delta, file=evidence.file_sha256, variant=str(variant),
                what=", ".join(amended),
            )  # fmt: skip
        return RecordedClip(evidence.file_sha256, variant, is_new=False, is_amended=bool(amended))
    row = Clip(
        file_sha256=evidence.file_sha256,
        stream_sha256=evidence.stream.digest,
        variant_kind=variant.kind,
        variant_id=variant.id,
        scene=document.scene,
        settings_sha256=document.settings_sha256,
        name=name[:1000],
        container=evidence.container,
        size_bytes=evidence.size_bytes,
        frames=evidence.stream.frames,
        width=evidence.stream.width,
        height=evidence.stream.height,
        blank=evidence.is_blank,
        document=document.to_bytes().decode(),
        manifest=manifest,
        signed=signed,
        recorded_at=utc_now(),
    )
    session.add(row)
    session.flush()
    session.add(ClipSignature(clip_key=row.key, data=evidence.signature.data))
    session.add(ClipSketch(clip_key=row.key, data=sketch_of(evidence.signature)))
    despite = {"despite": "; ".join(map(str, document.despite))} if document.despite else {}
    record_event(session, "clip", document.delta, file=evidence.file_sha256, variant=str(variant), **despite)
    for other in sorted({one.variant for one in document.despite if one.variant is not None}):
        if other.kind == "delta":
            record_event(session, "clip-stamped-as-another", other.id, file=evidence.file_sha256, variant=str(variant))
    return RecordedClip(evidence.file_sha256, variant, is_new=True)


def _amend(row: Clip, document: ClipDocument, manifest: bytes | None, *, signed: bool) -> tuple[str, ...]:
    """Add to a row what it did not know, and return the names of that."""
    old = parse_clip_document(row.document.encode(), f"clip {row.file_sha256[:12]}")
    merged = merge_documents(old, document, f"clip {row.file_sha256[:12]} of {document.variant}")
    amended = []
    if merged != old:
        row.document, row.scene, row.settings_sha256 = merged.to_bytes().decode(), merged.scene, merged.settings_sha256
        amended.append("document")
    if manifest is not None and row.manifest is None:
        row.manifest = manifest
        amended.append("manifest")
    if signed and not row.signed and row.manifest is not None:
        row.signed = True
        amended.append("signed")
    return tuple(amended)


def find_objections(session: Session, evidence: Evidence, said: Variant) -> tuple[Objection, ...]:
    """Where the registry knows a clip's file or frames, and as other variants' alone. Blank frames object to nobody."""
    if evidence.is_blank:
        return ()
    known, found = RegisteredClips(session), []
    clips = {"file": known.by_file(evidence.file_sha256), "stream": known.by_stream(evidence.stream.digest)}
    for name, entries in clips.items():
        variants = {variant for entry in entries for variant in (entry.variant, *entry.despite)}
        if said not in variants:
            found += [Objection(name, variant) for variant in sorted(variants)]
    return tuple(found)


class RegisteredClips:
    """What the ladder asks, answered by the registry; see `ladder.Known`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def by_file(self, sha256: str) -> tuple[KnownClip, ...]:
        """Clips whose file has this SHA-256."""
        return self._clips(Clip.file_sha256 == sha256)

    def by_stream(self, digest: str) -> tuple[KnownClip, ...]:
        """Clips whose decoded stream has this digest."""
        return self._clips(Clip.stream_sha256 == digest)

    def has_variant(self, variant: Variant) -> bool:
        """Whether this delta is registered, or this base, by a delta on it or by a clip of its own."""
        if variant.kind == "delta":
            return self._exists(sa.select(Delta.key).where(Delta.id == variant.id))
        own = sa.select(Clip.key).where(Clip.variant_kind == "base", Clip.variant_id == variant.id)
        return self._exists(sa.select(Base.key).where(Base.id == variant.id)) or self._exists(own)

    def match(self, signature: Signature) -> Match:
        """What the pictures of all clips tell: all sketches are read, and few signatures."""
        return match_shortlisted(signature, self)

    def sketches(self) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Keys and joined sketches of all clips, _BATCH at a time.

        Raises:
            RegistryDamagedError: not every clip has a sketch, and one that has none would never be found.
        """
        # The driver's own cursor: of a million rows the ORM's would cost several seconds.
        cursor, count = self._session.connection().connection.cursor(), 0
        try:
            cursor.execute("SELECT clip_key, data FROM clip_sketch ORDER BY clip_key")
            while rows := cursor.fetchmany(_BATCH):
                keys, sketches = zip(*rows, strict=True)
                count += len(keys)
                yield keys, b"".join(sketches)
        finally:
            cursor.close()
        clips = self._session.scalar(sa.select(sa.func.count()).select_from(Clip))
        if clips != count:
            raise RegistryDamagedError(
                "clips without a sketch would never be found",
                where="table clip_sketch",
                expected=f"{clips} sketches",
                found=count,
                todo="run `hfq db check`",
            )

    def clips(self, keys: Sequence[int]) -> Iterator[KnownSignature]:
        """The clips of these keys."""
        return self._signatures(Clip.key.in_(keys))

    def of_scene(self, scene: str) -> Iterator[KnownSignature]:
        """The clips of this prompt and seed, whatever their settings; see `ClipDocument.scene`."""
        return self._signatures(Clip.scene == scene)

    def _signatures(self, condition: sa.ColumnElement[bool]) -> Iterator[KnownSignature]:
        columns = (Clip.file_sha256, Clip.variant_kind, Clip.variant_id, Clip.scene, Clip.settings_sha256)
        query = (
            sa.select(*columns, ClipSignature.data)
            .join(ClipSignature, ClipSignature.clip_key == Clip.key)
            .where(condition)
            .execution_options(yield_per=_BATCH)
        )
        for sha256, kind, variant_id, scene, settings, data in self._session.execute(query):
            yield KnownSignature(sha256, Variant(kind, variant_id), scene, Signature(data), settings)

    def _clips(self, condition: sa.ColumnElement[bool]) -> tuple[KnownClip, ...]:
        query = sa.select(Clip.file_sha256, Clip.variant_kind, Clip.variant_id, Clip.signed, Clip.document)
        rows = self._session.execute(query.where(condition).order_by(Clip.key))
        return tuple(
            KnownClip(sha256, Variant(kind, variant_id), signed, _despite(document))
            for sha256, kind, variant_id, signed, document in rows
        )

    def _exists(self, query: sa.Select[Any]) -> bool:
        return self._session.execute(query.limit(1)).first() is not None


def _despite(document: str) -> tuple[Variant, ...]:
    """Other variants that a stored document speaks of; `hfq db check` names one that cannot be read."""
    if '"despite"' not in document:
        return ()
    try:
        found = parse_clip_document(document.encode(), "a registered clip").despite
    except HfqError:
        return ()
    return tuple(dict.fromkeys(one.variant for one in found if one.variant is not None))
