"""Clips in `hfq db check`: does a clip's row say what its document says, and is what an audit reads of it there?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import HfqError

from .clips.clip_document import Variant, parse_clip_document
from .clips.signature import SIGNATURE_BYTES, Signature
from .clips.sketch import sketch_of
from .finding import Finding
from .models import Clip, ClipSignature, ClipSketch

__all__ = ["check_clips"]

_BATCH: Final = 2000


def check_clips(session: Session) -> Iterator[Finding]:
    """Rows against their documents; signatures and manifests by presence and size; sketches against signatures."""
    rows: Iterable[Any] = session.execute(  # an outer join: any column may be None
        sa.select(
            Clip.file_sha256,
            Clip.variant_kind,
            Clip.variant_id,
            Clip.scene,
            Clip.settings_sha256,
            Clip.document,
            sa.and_(Clip.signed, Clip.manifest.is_(None)),
            ClipSignature.data,
            ClipSketch.data,
        )
        .outerjoin(ClipSignature, ClipSignature.clip_key == Clip.key)
        .outerjoin(ClipSketch, ClipSketch.clip_key == Clip.key)
        .order_by(Clip.key)
        .execution_options(yield_per=_BATCH)
    )
    for sha256, kind, variant_id, scene, settings, document, is_bare, signature, sketch in rows:
        variant = Variant(kind, variant_id)
        where = f"clip {sha256[:12]} of {variant}"
        yield from _document(document, variant, scene, settings, where)
        if is_bare:
            yield Finding("clip-manifest", where, "registered as signed, and no manifest is stored", 1)
        if signature is None:
            yield Finding("clip-signature", where, "its signature is missing", 1)
        elif len(signature) != SIGNATURE_BYTES:
            yield Finding("clip-signature", where, f"a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}", 1)
        elif sketch != sketch_of(Signature(signature)):
            yield Finding("clip-sketch", where, "no sketch, or another signature's: audits may overlook the clip", 1)


def _document(
    document: str, variant: Variant, scene: str | None, settings: str | None, where: str
) -> Iterator[Finding]:
    try:
        said = parse_clip_document(document.encode(), where)
    except HfqError as error:
        yield Finding("clip-document", where, f"the stored document cannot be read: {error}", 1)
        return
    if said.variant != variant:
        yield Finding("clip-document", where, f"the stored document names {said.variant}", 3)
    if said.scene != scene:
        yield Finding("clip-document", where, "the stored document has another prompt or seed", 3)
    if said.settings_sha256 != settings:
        yield Finding("clip-document", where, "the stored document has other settings", 3)
