"""Folders of clips that are measured here: whose they are, how they were made, and their measures beside the base's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hfq.schema.canonical import sha256_hex
from hfq.schema.errors import ContradictedClaimError, NotAClipError, UnreadableFileError

from .clips.blank import BlankWatcher
from .clips.clip_document import ClipDocument, Variant
from .clips.store import RegisteredClips
from .clips.stream import open_clip
from .clips.tag import read_tag
from .database import Database
from .score_sources import ScoreFiles
from .scores.frames import decoded_digest, list_clips
from .scores.full_info import FullInfo, PromptInfo, read_full_info
from .scores.measure import measure_folders
from .scores.origin import ClipOrigin
from .scores.values import SettingValue, match_key

__all__ = ["ClipScores", "measure_clips"]

PathLike = str | os.PathLike[str]

_RENAMED: Final = {"guidance_low": "guidance_2"}
"""A clip names the second guidance after its expert, score settings as diffusers does."""


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Measures of a variant's clips and of the base's beside them, how each side was made, and what was left out."""

    variant: ScoreFiles
    base: ScoreFiles
    variant_settings: dict[str, SettingValue]
    base_settings: dict[str, SettingValue]
    only_clips: tuple[str, ...]
    only_reference: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Clip:
    """A file of a folder, what it says of itself, and whether the registry knows it as the variant's."""

    stem: str
    file_sha256: str
    claim: ClipDocument | None
    is_registered: bool


def measure_clips(
    database: Database,
    clips: PathLike,
    reference: PathLike,
    variant: Variant,
    base: Variant,
    *,
    full_info: PathLike | None = None,
    prompt_set: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ClipScores:
    """Measure a variant's clips against those of its base; see `measure_folders` for the measures.

    Prompts, categories and settings are taken from what the clips say of themselves. A setting is kept only where every
    measured clip of the side says it.

    Args:
        database: every clip is looked up there, by its file and by its decoded frames.
        full_info: categories, and prompts of clips that say nothing.

    Raises:
        ContradictedClaimError: a clip says that another variant made it, or is registered as another's and not as this
            one's.
        NotAClipError, ClipStreamError: a clip that does not decode.
        and what `measure_folders` raises.
    """
    ours, theirs = Path(clips), Path(reference)
    info = FullInfo() if full_info is None else read_full_info(full_info)
    mine, others = _read_folder(database, ours, variant), _read_folder(database, theirs, base)
    merged = _with_claims(info, [*others, *mine])
    found = measure_folders(ours, theirs, info=merged, prompt_set=prompt_set, progress=progress)
    own = found.reference
    if found.only_reference:
        # The base keeps the clips that the variant lacks: a gate asks for the share of them that the variant has.
        own = measure_folders(theirs, theirs, info=merged, prompt_set=prompt_set, progress=progress).reference
    measured = [clip for clip in mine if clip.stem in found.stems]
    return ClipScores(
        variant=ScoreFiles(tuple(found.variant), _digest_of(mine, others), _origin(measured, len(found.identical))),
        base=ScoreFiles(tuple(own), _digest_of(others), _origin(others)),
        variant_settings=_shared(measured),
        base_settings=_shared(others),
        only_clips=found.only_clips,
        only_reference=found.only_reference,
    )


def _read_folder(database: Database, folder: Path, variant: Variant) -> list[_Clip]:
    return [_read_clip(database, stem, path, variant) for stem, path in list_clips(folder).items()]


def _read_clip(database: Database, stem: str, path: Path, variant: Variant) -> _Clip:
    blank = BlankWatcher()
    try:
        with open_clip(path) as clip:
            claim, sha256, frames = read_tag(clip), clip.file_sha256(), clip.stream_facts(blank).digest
    except NotAClipError:
        # A container that cannot say anything can still hold the frames of a registered clip.
        claim, sha256, frames, blank.is_blank = None, _file_sha256(path), decoded_digest(path), False
    if claim is not None and claim.variant != variant:
        raise ContradictedClaimError(
            "the clip says that another variant made it", where=path, expected=variant, found=claim.variant
        )
    with database.reading() as session:
        known = RegisteredClips(session)
        entries = (*known.by_file(sha256), *known.by_stream(frames))
    makers = {maker for entry in entries for maker in (entry.variant, *entry.despite)}
    if blank.is_blank:
        makers &= {variant}  # whose other blank clips are says nothing of this one
    if makers and variant not in makers:
        raise ContradictedClaimError(
            "the clip is registered as made by another variant",
            where=path,
            expected=variant,
            found=" and ".join(sorted(map(str, makers))),
            todo="`hfq audit CLIP` shows the evidence; give the folder of clips that this variant made",
        )
    return _Clip(stem, sha256, claim, bool(makers))


def _with_claims(info: FullInfo, clips: Iterable[_Clip]) -> FullInfo:
    """What the clips say of their prompts over what a prompt file says, whose category goes before theirs."""
    prompts = {}
    for clip in clips:
        if clip.claim is not None and clip.claim.prompt_sha256 is not None:
            listed = info.find(clip.stem)
            category = None if listed is None else listed.category
            prompts[match_key(clip.stem)] = PromptInfo(clip.claim.prompt_sha256, category or clip.claim.category)
    return FullInfo({**info.videos, **prompts}, info.prompts, info.image_to_video)


def _origin(clips: list[_Clip], identical: int = 0) -> ClipOrigin:
    return ClipOrigin(
        clips=len(clips),
        claimed=sum(clip.claim is not None for clip in clips),
        registered=sum(clip.is_registered for clip in clips),
        unknown=sum(clip.claim is None and not clip.is_registered for clip in clips),
        identical=identical,
    )


def _shared(clips: Iterable[_Clip]) -> dict[str, SettingValue]:
    tables: list[Mapping[str, SettingValue]] = [
        {_RENAMED.get(name, name): value for name, value in (clip.claim.settings if clip.claim else {}).items()}
        for clip in clips
    ]
    first = tables[0] if tables else {}
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(name in table and table[name] == value for table in tables)
    }


def _digest_of(*folders: Iterable[_Clip]) -> str:
    """SHA-256 over the clips of folders: equal clips under equal names are one source, wherever they lie."""
    lines = [
        f"{index}\t{match_key(clip.stem)}\t{clip.file_sha256}"
        for index, folder in enumerate(folders)
        for clip in folder
    ]
    return sha256_hex("\n".join(lines).encode())


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFileError("cannot be read", where=path, found=error.strerror) from None
