"""Clips that an interrupted run has made: which of the files in a folder may stay when the run goes on.

What a clip says of itself survives a re-encode, and its frames do not. So a run writes the SHA-256 of every clip into
its folder's journal before the clip gets its name, and a clip stays only when the journal or the registry knows its
bytes, what it says is what is asked for, and size and rate are those that would be written.

A line per clip, appended: two runs in one folder lose nothing of each other's, and of a killed one at most the line of
a clip that never appeared.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from hfq.schema.errors import ClipStreamError, MalformedFileError, OutputExistsError, UnreadableFileError

from .clip_document import ClipDocument
from .manifest import stored_manifest
from .stream import open_clip
from .tag import read_tag

__all__ = ["JOURNAL", "KeptClip", "Picture", "journal_clip", "keep_clip"]

JOURNAL: Final = ".hfq-clips.jsonl"

_REMOVE: Final = "remove it, and it is made again"
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file shows: pixels, frames, and frames per second."""

    width: int
    height: int
    frames: int
    fps: Fraction


@dataclass(frozen=True, slots=True)
class KeptClip:
    """A clip that stays.

    Attributes:
        document: what it says of itself.
        file_sha256: 64 hex digits.
        manifest: the bytes of the signed manifest that it carries; None of an unsigned one. Since its own bytes are
            known, it was signed when it was made.
    """

    document: ClipDocument
    file_sha256: str
    manifest: bytes | None


def journal_clip(folder: Path, name: str, file_sha256: str) -> None:
    """Remember that a clip of these bytes is about to get this name in `folder`."""
    line = json.dumps({"clip": name, "file_sha256": file_sha256}, sort_keys=True)
    descriptor = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        # A line that a killed run left unfinished ends here.
        os.write(descriptor, f"\n{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_clip(path: Path, wanted: ClipDocument, picture: Picture, is_registered: Callable[[str], bool]) -> KeptClip:
    """Take a clip that is there for the one that would be made.

    Args:
        wanted: what that one would say of itself.
        picture: what it would show.
        is_registered: whether the registry knows a file of this SHA-256 as made by the same variant.

    Raises:
        OutputExistsError: it says that it was made otherwise, or nothing; it shows otherwise; or its bytes are not
            those that a run has written, as after a re-encode.
        MalformedFileError and its subclasses: a broken file.
        and what `open_clip` raises.
    """
    try:
        with open_clip(path) as clip:
            said, shown = read_tag(clip), _picture(clip)
            kept = None if said is None else KeptClip(said, clip.file_sha256(), stored_manifest(clip))
    except MalformedFileError as error:
        raise type(error)(
            error.what, where=error.where, expected=error.expected, found=error.found, todo=_REMOVE
        ) from None
    if kept is None:
        raise OutputExistsError(
            "the clip that is there was made otherwise",
            where=path,
            expected=f"one of {wanted.variant}",
            found="a clip that says nothing of itself",
            todo="choose another folder, or remove the clip",
        )
    differences = [*_said(wanted, kept.document), *_shown(picture, shown)]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise OutputExistsError(
            "the clip that is there was made otherwise",
            where=path,
            expected=", ".join(f"{name} {expected}" for name, expected, _ in differences[:_SHOWN]),
            found=", ".join(f"{name} {found}" for name, _, found in differences[:_SHOWN]) + more,
            todo="choose another folder, or remove the clip",
        )
    if not (_is_journaled(path, kept.file_sha256) or is_registered(kept.file_sha256)):
        raise OutputExistsError(
            "the clip that is there says what is asked for, and its bytes are not known",
            where=path,
            expected=f"a file that the registry or {JOURNAL} in its folder knows",
            found=f"sha256 {kept.file_sha256[:12]}…, as after a re-encode",
            todo=_REMOVE,
        )
    return kept


def _is_journaled(path: Path, file_sha256: str) -> bool:
    entry = {"clip": path.name, "file_sha256": file_sha256}
    try:
        lines = (path.parent / JOURNAL).read_bytes().split(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnreadableFileError("cannot be read", where=path.parent / JOURNAL, found=error.strerror) from error
    return any(line == json.dumps(entry, sort_keys=True).encode() for line in lines)


def _said(wanted: ClipDocument, found: ClipDocument) -> Iterator[tuple[str, str, str]]:
    """What the documents differ in: name, wanted, found. The prompt's text and the release decide no pixel."""
    if wanted.variant != found.variant:
        yield "variant", str(wanted.variant), str(found.variant)
    if wanted.prompt_sha256 != found.prompt_sha256:
        yield "prompt", _prompt(wanted), _prompt(found)
    for name in sorted(wanted.settings.keys() | found.settings.keys()):
        ours, theirs = wanted.settings.get(name, "unknown"), found.settings.get(name, "unknown")
        if ours != theirs:
            yield name, str(ours), str(theirs)
    for name in (field.name for field in dataclasses.fields(ClipDocument)):
        if name not in ("delta", "base", "prompt_sha256", "prompt", "settings", "hfq"):
            ours, theirs = getattr(wanted, name), getattr(found, name)
            if ours != theirs:
                yield name.replace("_", " "), _text(ours), _text(theirs)


def _prompt(document: ClipDocument) -> str:
    digest = "unknown" if document.prompt_sha256 is None else f"sha256 {document.prompt_sha256[:12]}…"
    return digest if document.prompt is None else f"{document.prompt[:60]!r} ({digest})"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " + ".join(f"{key} {entry}" for key, entry in sorted(value.items()))
    return "unknown" if value is None else str(value)


def _shown(wanted: Picture, found: Picture) -> Iterator[tuple[str, str, str]]:
    if (wanted.width, wanted.height) != (found.width, found.height):
        yield "picture", f"{wanted.width}x{wanted.height}", f"{found.width}x{found.height}"
    if wanted.frames != found.frames:
        yield "frames in the file", str(wanted.frames), str(found.frames)
    if wanted.fps != found.fps:
        yield "fps", f"{float(wanted.fps):g}", f"{float(found.fps):g}"


def _picture(clip: Any) -> Picture:
    """From the index of an MP4: the bytes themselves are held against their SHA-256."""
    with clip.demuxer() as container:
        streams = container.streams.video
        if len(streams) != 1 or streams[0].average_rate is None:
            raise ClipStreamError("not one video stream of a constant rate", where=clip.path, found=len(streams))
        stream = streams[0]
        return Picture(stream.width, stream.height, stream.frames, Fraction(stream.average_rate))
