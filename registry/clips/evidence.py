"""Everything that a clip's file tells by itself, read once and without a registry."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hfq.schema.errors import HfqError, MalformedFileError, MissingDependencyError

from .blank import BlankWatcher
from .clip_document import ClipDocument
from .manifest import ManifestReport, read_manifest
from .signature import BLANK_SIGNATURE, Signature, SignatureMaker
from .stream import Clip, StreamFacts, open_clip
from .tag import read_earlier_tags, read_tag

__all__ = ["Evidence", "Statements", "gather_evidence", "read_statements"]


@dataclass(frozen=True, slots=True)
class Statements:
    """What a file says of itself; see `Evidence` for the fields."""

    tag: ClipDocument | None
    tag_error: HfqError | None
    earlier_tags: tuple[ClipDocument, ...]
    manifest: ManifestReport | None
    manifest_error: HfqError | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found in a clip.

    Attributes:
        file_sha256: of the file's bytes, 64 hex digits.
        size_bytes: of the file.
        container: "mp4", "mov" or "matroska".
        stream: digest, count and size of the decoded frames.
        signature: perceptual signature of the frames.
        is_blank: no frame shows anything; see `BlankWatcher`.
        tag: the document in the comment tag; None without one of this package.
        tag_error: why a comment that calls itself such a document is none.
        earlier_tags: documents in comments that stamps have replaced and kept.
        manifest: the signed manifests; None without any, or when they were not looked at.
        manifest_error: why manifests that are there were not looked at.
        trust_error: why nobody can say which authorities are trusted; the manifests were read without any.
    """

    file_sha256: str
    size_bytes: int
    container: str
    stream: StreamFacts
    signature: Signature
    is_blank: bool = False
    tag: ClipDocument | None = None
    tag_error: HfqError | None = None
    manifest: ManifestReport | None = None
    manifest_error: HfqError | None = None
    trust_error: HfqError | None = None
    earlier_tags: tuple[ClipDocument, ...] = ()

    @property
    def statements(self) -> Statements:
        """What the file says of itself."""
        return Statements(self.tag, self.tag_error, self.earlier_tags, self.manifest, self.manifest_error)


def gather_evidence(path: str | os.PathLike[str], anchors_pem: str | HfqError = "") -> Evidence:
    """Read a clip: its bytes, its frames once, its tag, its manifests under the given authorities (PEM), or under none
    where an error says why those cannot be known.

    A broken tag or manifest is evidence and raises nothing; a file that is no decodable clip does.

    Raises:
        what `open_clip` and `Clip.frames` raise, and KeyFileError for anchors that are refused.
    """
    trust_error = anchors_pem if isinstance(anchors_pem, HfqError) else None
    with open_clip(path) as clip:
        said = read_statements(clip, "" if isinstance(anchors_pem, HfqError) else anchors_pem)
        pictures, blank = SignatureMaker(), BlankWatcher()
        stream = clip.stream_facts(pictures, blank)
        return Evidence(
            file_sha256=clip.file_sha256(),
            size_bytes=clip.size_bytes,
            container=clip.container,
            stream=stream,
            signature=BLANK_SIGNATURE if blank.is_blank else pictures.signature(),
            is_blank=blank.is_blank,
            tag=said.tag,
            tag_error=said.tag_error,
            manifest=said.manifest,
            manifest_error=said.manifest_error,
            trust_error=trust_error,
            earlier_tags=said.earlier_tags,
        )


def read_statements(clip: Clip, anchors_pem: str = "") -> Statements:
    """What a clip says of itself, its manifests read under the given authorities (PEM); no frame is decoded.

    Raises:
        NotAClipError, MissingDependencyError, and KeyFileError for anchors that are refused.
    """
    tag, tag_error = _tag_of(clip)
    manifest, manifest_error = _manifest_of(clip, anchors_pem)
    return Statements(tag, tag_error, read_earlier_tags(clip), manifest, manifest_error)


def _tag_of(clip: Clip) -> tuple[ClipDocument | None, HfqError | None]:
    text = clip.tags().get("comment")  # a file that cannot be demuxed fails here, and not as a broken tag
    if text is None:
        return None, None
    try:
        return read_tag(clip), None
    except MalformedFileError as error:
        return None, error


def _manifest_of(clip: Clip, anchors_pem: str) -> tuple[ManifestReport | None, HfqError | None]:
    try:
        return read_manifest(clip, anchors_pem), None
    except MissingDependencyError as error:
        # Raised only where there is a manifest: an audit without the extra climbs the other rungs and says so.
        return None, error
