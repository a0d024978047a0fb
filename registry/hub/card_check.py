"""A model card's metadata, checked offline. The Hub's client lets `base_model_relation: banana` pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from huggingface_hub import RepoCard

from hfq.schema.errors import ModelCardError, UsageError

from .address import check_repo

__all__ = ["LICENSES", "MAX_CARD_BYTES", "PIPELINE_TAGS", "RELATION", "check_card"]

RELATION: Final = "quantized"
RELATIONS: Final = ("adapter", "finetune", "merge", "quantized")
"""https://huggingface.co/docs/hub/model-cards#specifying-a-base-model"""

PIPELINE_TAGS: Final = ("text-to-video", "image-to-video", "video-to-video")

LICENSES: Final = (
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc0-1.0",
    "gpl-3.0", "openrail", "openrail++", "creativeml-openrail-m", "other",
)  # fmt: skip
"""Identifiers of https://huggingface.co/docs/hub/repositories-licenses that a model derived from Wan may have."""

MAX_CARD_BYTES: Final = 1 << 20

_KEYS: Final = ("base_model", "base_model_relation", "library_name", "license", "pipeline_tag", "tags")
_TAG: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,79}")
_FRONT: Final = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)


def check_card(text: str, where: str = "README.md") -> Mapping[str, Any]:
    """Check a card that `render_card` makes and return its metadata.

    Raises:
        ModelCardError: no front matter, a key that is missing, unknown or twice, a value of the wrong type or outside
            its list, a first line that does not name the base, a card of more than a megabyte.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CARD_BYTES:
        raise ModelCardError("the card is too large", where=where, expected=f"at most {MAX_CARD_BYTES} bytes")
    front = _FRONT.match(text)
    if front is None:
        raise ModelCardError("no front matter", where=where, expected="a YAML block between two lines `---`")
    data = _parse(text, where)
    keys = re.findall(r"^([^\s#-][^:]*):", front[1], re.MULTILINE)
    for name in keys:
        if keys.count(name) > 1:
            raise ModelCardError("a key occurs twice", where=where, found=name)
    for name in _KEYS:
        if name not in data:
            raise ModelCardError("a key is missing", where=where, expected=name)
    for name in data:
        if name not in _KEYS:
            raise ModelCardError("an unknown key", where=where, expected=", ".join(_KEYS), found=name)
    _check_bases(data["base_model"], where)
    for name, allowed in (("base_model_relation", RELATIONS), ("license", LICENSES), ("pipeline_tag", PIPELINE_TAGS)):
        if data[name] not in allowed:
            raise ModelCardError(
                "not a value that the Hub knows",
                where=f"{where}: {name}",
                expected=", ".join(allowed),
                found=repr(data[name]),
            )
    if data["base_model_relation"] != RELATION:
        raise ModelCardError("a delta is a quantized model", where=where, found=data["base_model_relation"])
    _check_tags([data["library_name"]], f"{where}: library_name")
    _check_tags(data["tags"], f"{where}: tags")
    first = text[front.end() :].lstrip("\n").partition("\n")[0]
    for base in data["base_model"]:
        if "Needs its base model" not in first or base not in first:
            raise ModelCardError("the first line does not say what the delta needs", where=where, expected=base)
    return data


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        # Not ModelCard: that one changes some of what it reads.
        data = RepoCard(text).data
    except Exception as error:  # the parser's own errors: its package is not ours to import
        raise ModelCardError("front matter that is no YAML", where=where, found=error) from None
    return dict(vars(data))


def _check_bases(bases: object, where: str) -> None:
    if not isinstance(bases, list) or not bases:
        raise ModelCardError("no list of base models", where=f"{where}: base_model", found=repr(bases))
    for base in bases:
        try:
            check_repo(base if isinstance(base, str) else repr(base))
        except UsageError as error:
            raise ModelCardError(error.what, where=f"{where}: base_model", found=error.found) from None


def _check_tags(tags: object, where: str) -> None:
    if not isinstance(tags, list) or not tags or len(tags) != len({str(tag) for tag in tags}):
        raise ModelCardError("not a list of different tags", where=where, found=repr(tags))
    for tag in tags:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise ModelCardError("not a tag", where=where, found=repr(tag))
