"""Stamping a clip: a copy that says what made it, in its comment tag and, with a key, in a signed manifest."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hfq.schema.errors import UsageError

from .clip_document import ClipDocument
from .keys import SigningKey
from .manifest import check_signable, has_manifest, sign_clip
from .stream import open_clip
from .tag import check_suffix, write_tag

__all__ = ["StampedClip", "stamp_clip"]


@dataclass(frozen=True, slots=True)
class StampedClip:
    """A stamped copy.

    Attributes:
        path: of the copy.
        manifest: bytes of the signed manifest; None without a key.
        dropped: kinds of streams that were not copied.
        replaced: the comment that the input had, None when it had none.
    """

    path: Path
    manifest: bytes | None
    dropped: tuple[str, ...]
    replaced: str | None


def stamp_clip(
    source: str | os.PathLike[str], out: str | os.PathLike[str], document: ClipDocument, key: SigningKey | None = None
) -> StampedClip:
    """Copy a clip with `document` in its comment tag, and signed when there is a key. Frames stay as they are, bit for
    bit; the input is never changed.

    Raises:
        UsageError: the clip carries a signed manifest, which no copy of its packets would have.
        what `write_tag` and `sign_clip` raise; there is no output then.
    """
    target = Path(out)
    with open_clip(source) as clip:
        if has_manifest(clip):
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
        return StampedClip(target, None, tagged.dropped, tagged.replaced)
    # Tagged first: the manifest covers every byte that stands in the file when it is signed.
    with tempfile.TemporaryDirectory(prefix=".hfq-stamp-", dir=_folder(target)) as folder:
        tagged = write_tag(source, Path(folder) / f"tagged{target.suffix}", document)
        signed = sign_clip(tagged.path, target, document, key)
    return StampedClip(target, signed.manifest, tagged.dropped, tagged.replaced)


def _folder(target: Path) -> Path | None:
    """Where the temporary copy goes: beside the output; what is wrong with that folder is for `write_tag` to say."""
    return target.parent if target.parent.is_dir() and os.access(target.parent, os.W_OK) else None
