"""Stamping a clip: a copy that says what made it, in its comment tag and, with a key, in a signed manifest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hfq.schema.errors import UsageError

from .clip_document import ClipDocument
from .evidence import read_statements
from .keys import SigningKey
from .manifest import check_signable, has_manifest, sign_clip
from .objections import own_objections, refuse_objections
from .stream import open_clip
from .tag import check_suffix, write_tag

__all__ = ["StampedClip", "stamp_clip"]


@dataclass(frozen=True, slots=True)
class StampedClip:
    """A stamped copy.

    Attributes:
        path: of the copy.
        manifest: bytes of the signed manifest; None without a key.
        previous: comments that the input had, by the names of the tags that hold them in the copy.
        lost_manifest: whether the input carried signed manifests, which the copy has not.
    """

    path: Path
    manifest: bytes | None
    previous: Mapping[str, str]
    lost_manifest: bool = False


def stamp_clip(
    source: str | os.PathLike[str], out: str | os.PathLike[str], document: ClipDocument, key: SigningKey | None = None
) -> StampedClip:
    """Copy a clip with `document` in its comment tag, and signed when there is a key. Frames and everything else that
    the file holds stay as they are; the input is never changed.

    Raises:
        ContradictedClaimError: its tag or its manifests name another variant, and `document.despite` does not list it.
        UsageError: the clip carries a signed manifest, which no copy of its packets would have, and nothing in it
            speaks against the document.
        what `write_tag` and `sign_clip` raise; there is no output then.
    """
    target = Path(out)
    with open_clip(source) as clip:
        is_signed = has_manifest(clip)
        said = read_statements(clip)
        if said.manifest_error is not None:
            raise said.manifest_error
        objections = own_objections(said, document.variant)
        refuse_objections(objections, document, source)
        if is_signed and not any(one.evidence == "manifest" for one in objections):
            raise UsageError(
                "the clip carries a signed manifest, which a stamped copy would lose",
                where=source,
                todo="`hfq audit CLIP` says what is in it",
            )
        check_suffix(clip, target)  # before the temporary copy, whose name means nothing to anybody
        if key is not None:
            check_signable(clip, target)
    if key is None:
        tagged = write_tag(source, target, document)
        return StampedClip(target, None, tagged.previous, is_signed)
    # Tagged first: the manifest covers every byte that stands in the file when it is signed.
    with tempfile.TemporaryDirectory(prefix=".hfq-stamp-", dir=_folder(target)) as folder:
        tagged = write_tag(source, Path(folder) / f"tagged{target.suffix}", document)
        signed = sign_clip(tagged.path, target, document, key)
    return StampedClip(target, signed.manifest, tagged.previous, is_signed)


def _folder(target: Path) -> Path | None:
    """Where the temporary copy goes: beside the output; what is wrong with that folder is for `write_tag` to say."""
    return target.parent if target.parent.is_dir() and os.access(target.parent, os.W_OK) else None
