"""The registry's methods for clips."""

from __future__ import annotations

import os
from pathlib import Path

from hfq.registry.database import Database
from hfq.registry.lookup import resolve
from hfq.schema.errors import HfqError

from .clip_document import ClipDocument, Objection, Variant
from .evidence import gather_evidence
from .ladder import Audit, judge
from .objections import own_objections, refuse_objections
from .store import RecordedClip, RegisteredClips, find_objections, record_clip

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
        """Remember a clip and what made it. Twice is the same row, which may learn what was not known before.

        Args:
            clip: an MP4, MOV or Matroska file; read once.
            document: which variant made it, and how.
            manifest: the bytes of the manifest that it was signed with.
            signed: whether that manifest was made, or found trusted, now.

        Raises:
            UnknownIdError: the delta is not registered.
            ContradictedClaimError: the file is registered as this variant's with another prompt, seed or setting.
            NotAClipError, ClipStreamError: no clip, or one that does not decode.
        """
        if document.delta is not None:
            with self.database.reading() as session:
                resolve(session, document.delta)
        evidence = gather_evidence(clip)
        with self.database.writing() as session:
            return record_clip(session, evidence, document, name=Path(clip).name, manifest=manifest, signed=signed)

    def objections(self, clip: str | os.PathLike[str], variant: Variant) -> tuple[Objection, ...]:
        """What speaks against a clip being made by `variant`: its tag or its manifests name another one, or its file or
        frames are registered as others' alone.

        Raises:
            NotAClipError, ClipStreamError: no clip, or one that does not decode.
            MissingDependencyError: it has manifests, and c2pa-python is not installed.
        """
        evidence = gather_evidence(clip)
        if evidence.manifest_error is not None:
            raise evidence.manifest_error
        with self.database.reading() as session:
            return (*own_objections(evidence.statements, variant), *find_objections(session, evidence, variant))

    def refuse_contradicted(self, clip: str | os.PathLike[str], document: ClipDocument) -> None:
        """Check that nothing speaks against what somebody says of a clip but what `document.despite` lists.

        Raises:
            ContradictedClaimError, and what `objections` raises.
        """
        refuse_objections(self.objections(clip, document.variant), document, clip)

    def check_writable(self) -> None:
        """Find now, before hours of work, what would keep a clip from being recorded: a registry of another revision,
        or one that cannot be written. Nothing is written; where there is no registry yet, none is made.

        Raises:
            RegistryVersionError, RegistryReadOnlyError, NotARegistryError, RegistryBusyError
        """
        self.database.check_writable()

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
