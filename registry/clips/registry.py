"""The registry's methods for clips."""

from __future__ import annotations

import os
from pathlib import Path

from hfq.registry.database import Database
from hfq.registry.lookup import resolve
from hfq.schema.errors import HfqError

from .clip_document import ClipDocument, Variant
from .evidence import gather_evidence
from .ladder import Audit, judge
from .store import RecordedClip, RegisteredClips, record_clip, refuse_contradicted
from .stream import open_clip

__all__ = ["ClipRegistry"]


class ClipRegistry:
    """What `Registry` does with clips. Every method may raise what those of `Registry` may."""

    database: Database

    def record_clip(
        self,
        clip: str | os.PathLike[str],
        document: ClipDocument,
        *,
        manifest: bytes | None = None,
        signed: bool = False,
    ) -> RecordedClip:
        """Remember a clip and what made it. Twice is the same row.

        Args:
            clip: an MP4, MOV or Matroska file; read once.
            document: which variant made it, and how.
            manifest: the bytes of the manifest that it was signed with.
            signed: whether that manifest was made, or found trusted, now.

        Raises:
            UnknownIdError: the delta is not registered.
            NotAClipError, ClipStreamError: no clip, or one that does not decode.
        """
        if document.delta is not None:
            with self.database.reading() as session:
                resolve(session, document.delta)
        evidence = gather_evidence(clip)
        with self.database.writing() as session:
            return record_clip(session, evidence, document, name=Path(clip).name, manifest=manifest, signed=signed)

    def refuse_contradicted(self, clip: str | os.PathLike[str], document: ClipDocument) -> None:
        """Check that nothing contradicts what somebody says of a clip: its frames are not registered as another's.

        Raises:
            ContradictedClaimError
            NotAClipError, ClipStreamError: no clip, or one that does not decode.
        """
        with open_clip(clip) as opened:
            digest = opened.stream_facts().digest
        with self.database.reading() as session:
            refuse_contradicted(session, clip, digest, document.variant)

    def variants_of_file(self, sha256: str) -> frozenset[Variant]:
        """What made a clip whose file has this SHA-256 (64 hex digits); empty when no such file is registered."""
        with self.database.reading() as session:
            return frozenset(entry.variant for entry in RegisteredClips(session).by_file(sha256))

    def audit(self, clip: str | os.PathLike[str], *, anchors_pem: str | HfqError = "") -> Audit:
        """Which variant made a clip, with every rung of the evidence ladder; nothing is written and nobody asked.

        Args:
            clip: an MP4, MOV or Matroska file.
            anchors_pem: certificates of the authorities whose signatures count, see `hfq.registry.clips.keys`; or why
                they cannot be read: then a manifest proves nothing, and the other rungs are climbed.

        Raises:
            NotAClipError, ClipStreamError: no clip, or one that does not decode.
        """
        evidence = gather_evidence(clip, anchors_pem)
        with self.database.reading() as session:
            return judge(evidence, RegisteredClips(session))
