"""The `comment` tag: a clip's document as JSON in the container. A hint that anyone can write, never a proof."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hfq.schema.errors import MalformedFileError, RemuxError, UsageError

from . import matroska_comment, mp4_comment
from .clip_document import ClipDocument, parse_clip_document
from .container_facts import Facts, container_facts, require_same
from .edits import PREVIOUS_COMMENT, Edit, write_edited
from .manifest import C2PA_UUID
from .output import new_file
from .stream import Clip, StreamFacts, open_clip

__all__ = ["SUFFIXES", "TaggedClip", "check_suffix", "read_earlier_tags", "read_tag", "write_tag"]

SUFFIXES: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska"}
"""What an output may be called, and the container of its input: the container is never changed."""


@dataclass(frozen=True, slots=True)
class TaggedClip:
    """A copy with a tag.

    Attributes:
        path: the copy.
        stream: facts of its decoded video stream, equal to those of the input.
        previous: comments that the input had, by the names of the tags that hold them in the copy.
    """

    path: Path
    stream: StreamFacts
    previous: Mapping[str, str]


def read_tag(clip: Clip) -> ClipDocument | None:
    """The document in the comment tag; None without a comment, or with one that is not this package's.

    A comment that calls itself `hfq.clip` must be one.

    Raises:
        MalformedFileError and its subclasses: it is not.
        NotAClipError, MissingDependencyError
    """
    comment = clip.tags().get("comment")
    if comment is None or "hfq.clip/" not in comment[:100_000] or not comment.lstrip().startswith("{"):
        return None
    return parse_clip_document(comment.encode("utf-8", "replace"), f"{clip.path}: comment tag")


def read_earlier_tags(clip: Clip) -> tuple[ClipDocument, ...]:
    """Documents in comments that were there before the present one, as `write_tag` keeps them; what is none is skipped.

    Raises:
        NotAClipError, MissingDependencyError
    """
    found = []
    for name, text in clip.tags().items():
        if name.startswith(PREVIOUS_COMMENT) and "hfq.clip/" in text[:100_000]:
            with contextlib.suppress(MalformedFileError):
                found.append(parse_clip_document(text.encode("utf-8", "replace"), f"{clip.path}: tag {name}"))
    return tuple(found)


def write_tag(source: str | os.PathLike[str], out: str | os.PathLike[str], document: ClipDocument) -> TaggedClip:
    """Copy a clip with `document` as its comment. Only the bytes that hold tags and positions are written anew: streams
    of whatever kind, their marks and times, tags, chapters and attachments are in the copy as they were, and so is a
    comment of another program, under another name. What FFmpeg reads of both files, and the decoded frames, are
    compared before the copy gets its name. A signed manifest of the input, which could not hold for the copy, is left
    out.

    Raises:
        OutputExistsError, UsageError: the output is there, or its suffix means another container.
        TooLargeError: a document over its limit.
        RemuxError: a file whose comment cannot be changed without changing something else, with its name.
        and what `open_clip` and `Clip.frames` raise.
    """
    text, target = document.to_bytes().decode(), Path(out)
    with open_clip(source) as clip:
        check_suffix(clip, target)
        with new_file(target) as temporary:
            before, facts = clip.stream_facts(), container_facts(clip)
            with clip.rewound() as file:
                write_edited(file, clip.size_bytes, temporary, _edits(clip, text))
            with open_clip(temporary) as copy:
                tags, previous = copy.tags(), _previous(clip, copy)
                # FFmpeg shows a comment of a language twice: as `comment` and, for example, as `comment-eng`.
                kept = {
                    name
                    for name, text in clip.tags().items()
                    if name.startswith("comment-") and text in previous.values()
                }
                require_same(
                    _without(facts, {"comment", *kept}),
                    _without(container_facts(copy), {"comment", *previous}),
                    clip.path,
                )
                after = copy.stream_facts()
                if tags.get("comment") != text or after != before:
                    raise RemuxError(
                        "the copy is not the same clip with another comment",
                        where=clip.path,
                        expected=f"{before.frames} frames, digest {before.digest[:12]}…",
                        found=f"{after.frames} frames, digest {after.digest[:12]}…, "
                        f"{'another' if 'comment' in tags else 'no'} comment",
                        todo="convert the clip to a plain MP4 first (ffmpeg -i CLIP -c copy OUT.mp4)",
                    )
    return TaggedClip(target, after, previous)


def _edits(clip: Clip, comment: str) -> list[Edit]:
    with clip.rewound() as file:
        if clip.container == "matroska":
            return matroska_comment.comment_edits(file, clip.size_bytes, comment, where=clip.path)
        return mp4_comment.comment_edits(
            file, clip.size_bytes, comment, is_quicktime=clip.container == "mov", drop=(C2PA_UUID,), where=clip.path
        )


def _previous(clip: Clip, copy: Clip) -> dict[str, str]:
    before = clip.tags()
    return {
        name: text for name, text in copy.tags().items() if name.startswith(PREVIOUS_COMMENT) and name not in before
    }


def _without(facts: Facts, tags: set[str]) -> Facts:
    return {name: value for name, value in facts.items() if name.lower() not in {f"tag {tag}" for tag in tags}}


def check_suffix(clip: Clip, target: Path) -> None:
    """Check that a copy of a clip may be called so.

    Raises:
        UsageError: the suffix means another container.
    """
    if SUFFIXES.get(target.suffix.lower()) != clip.container:
        wanted = [suffix for suffix, container in SUFFIXES.items() if container == clip.container]
        raise UsageError(
            "the copy keeps the container of its input",
            where=target,
            expected=" or ".join(wanted),
            found=target.suffix or "no suffix",
        )
