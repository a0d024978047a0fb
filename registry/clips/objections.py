"""What speaks against a claim about a clip, and that a claim is refused unless it is made in spite of all that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hfq.schema.errors import ContradictedClaimError

from .clip_document import ClipDocument, Objection, Variant
from .evidence import Statements

__all__ = ["own_objections", "refuse_objections"]


def own_objections(found: Statements, said: Variant) -> tuple[Objection, ...]:
    """Of a clip's tags and manifests: every other variant that they name, whether it is registered or not, also in what
    an earlier stamp was made in spite of, and a tag of this program that cannot be read.
    """
    return tuple(dict.fromkeys(_own(found, said)))


def _own(found: Statements, said: Variant) -> Iterator[Objection]:
    if found.tag_error is not None:
        yield Objection("tag", None)
    documents = [("tag", document) for document in (found.tag, *found.earlier_tags) if document is not None]
    if found.manifest is not None:
        documents += [("manifest", claim.document) for claim in found.manifest.claims]
    for name, document in documents:
        if document.variant != said:
            yield Objection(name, document.variant)
        for one in document.despite:
            if one.variant != said:
                yield one


def refuse_objections(objections: Iterable[Objection], document: ClipDocument, where: object) -> None:
    """Check that a document lists everything that speaks against it.

    Raises:
        ContradictedClaimError
    """
    left = [one for one in dict.fromkeys(objections) if one not in document.despite]
    if left:
        raise ContradictedClaimError(
            f"{' and '.join(map(str, left))}, you said {document.variant}",
            where=where,
            todo="`hfq audit CLIP` shows the evidence; --anyway stamps it in spite of that, and records that",
        )
