"""Folders of clips that are measured here: whose they are, how they were made, and their measures beside the base's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from hfq.schema.canonical import sha256_hex
from hfq.schema.errors import ClipPairError, ContradictedClaimError, SettingsDifferError

from .clips.blank import BlankWatcher
from .clips.clip_document import ClipDocument, Variant, parse_clip_document
from .clips.containers import PICTURES
from .clips.store import RegisteredClips
from .clips.stream import open_clip
from .clips.tag import read_tag
from .database import Database
from .models import Clip
from .score_sources import ScoreFiles
from .scores.frames import list_clips
from .scores.full_info import FullInfo, read_full_info
from .scores.measure import FolderClip, describe_clips, measure_pairs, no_pair
from .scores.origin import ClipOrigin
from .scores.pairing import Matched, match_clips, scene_difference
from .scores.settings import compare_settings
from .scores.values import SettingValue

__all__ = ["ClipScores", "measure_clips"]

PathLike = str | os.PathLike[str]

_RENAMED: Final = {"guidance_low": "guidance_2"}
"""A clip names the second guidance after its expert, score settings as diffusers does."""

_FRAMES_GIVEN: Final = ("first_frame_sha256", "last_frame_sha256")
"""Settings that belong to the scene: two clips from different pictures cannot be held against each other."""


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Measures of a variant's clips and of the base's beside them, how each side was made, and what was left out.

    Attributes:
        pairs: how many clips were measured. confirmed: those whose prompt and seed are known on both sides, and equal;
            the others are paired by their names alone.
        by_tags: clip and reference of different names that prompt and seed pair.
        only_clips, only_reference: clips without a counterpart.
        left_over: unfinished or hidden files that were not looked at.
    """

    variant: ScoreFiles
    base: ScoreFiles
    variant_settings: dict[str, SettingValue]
    base_settings: dict[str, SettingValue]
    pairs: int
    confirmed: int
    by_tags: tuple[tuple[str, str], ...]
    only_clips: tuple[str, ...]
    only_reference: tuple[str, ...]
    left_over: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Clip:
    """A file of a folder, what it says of itself, and whether the registry knows it as the variant's.

    `said`: the claim, or what the registry has recorded of these frames. Only that is a prompt or a seed to pair by: a
    file name may hold the prompt before somebody rewrote it.
    """

    what: FolderClip
    file_sha256: str
    claim: ClipDocument | None
    said: ClipDocument | None
    is_registered: bool

    @property
    def stem(self) -> str:
        return self.what.stem

    @property
    def prompt_sha256(self) -> str | None:
        return None if self.said is None else self.said.prompt_sha256

    @property
    def seed(self) -> int | None:
        return None if self.said is None else self.said.seed

    @property
    def settings(self) -> dict[str, SettingValue]:
        return {} if self.said is None else _renamed(self.said.settings)


def measure_clips(
    database: Database,
    clips: PathLike,
    reference: PathLike,
    variant: Variant,
    base: Variant,
    *,
    full_info: PathLike | None = None,
    prompt_set: str | None = None,
    settings: Mapping[str, SettingValue] | None = None,
    anyway: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ClipScores:
    """Measure a variant's clips against those of its base; see `measure_pairs` for the measures.

    A clip and its reference have one name; what is left is paired by prompt and seed. Prompts, seeds, categories and
    settings are taken from what the clips, else the registry, say of them. A setting is recorded only where every
    measured clip of the side says it itself.

    Args:
        database: every clip is looked up there, by its file and by its decoded frames.
        full_info: categories, and prompts of clips that say nothing.
        settings: how the clips of both sides were made, beside what they say.
        anyway: measure also pairs that were made with other settings; that they were is recorded.

    Raises:
        ContradictedClaimError: a clip says that another variant made it, or is registered as another's and not as this
            one's.
        ClipPairError: clips of one name that show other prompts, seeds or first frames.
        SettingsDifferError: clips of a pair, or a clip and `settings`, name other values of a setting that decides.
        ClipMismatchError: no clip has a reference.
        NotAClipError, ClipStreamError: a clip that does not decode.
        and what `list_clips` and `measure_pairs` raise.
    """
    info = FullInfo() if full_info is None else read_full_info(full_info)
    mine = _Folder(database, Path(clips), variant, info)
    others = _Folder(database, Path(reference), base, info)
    given = dict(settings or {})
    for clip in (*mine.clips, *others.clips):
        _require_as_given(clip, given)
    pairs = match_clips(mine.clips, others.clips)
    if not pairs:
        raise no_pair(mine.path, len(mine.clips), len(others.clips))
    differing = {name for pair in pairs for name in _differences(pair, anyway)}
    paired = {pair.first.stem for pair in pairs}, {pair.second.stem for pair in pairs}
    only_clips = [clip for clip in mine.clips if clip.stem not in paired[0]]
    # The base keeps the clips that the variant lacks: a gate asks for the share of them that the variant has.
    alone = [clip for clip in others.clips if clip.stem not in paired[1]]
    found = measure_pairs(
        [_of_one_prompt(pair) for pair in pairs], [clip.what for clip in alone],
        prompt_set=prompt_set, progress=progress,
    )  # fmt: skip
    measured = [pair.first for pair in pairs]
    ours, theirs = _shared(measured), _shared(others.clips)
    ours |= {name: "other than the reference's" for name in differing if ours.get(name) == theirs.get(name)}
    origin = _origin(measured, len(found.identical))
    return ClipScores(
        variant=ScoreFiles(tuple(found.variant), _digest_of(mine.clips, others.clips), origin),
        base=ScoreFiles(tuple(found.reference), _digest_of(others.clips), _origin(others.clips)),
        variant_settings=given | ours,
        base_settings=given | theirs,
        pairs=len(pairs),
        confirmed=sum(pair.is_confirmed for pair in pairs),
        by_tags=tuple((pair.first.stem, pair.second.stem) for pair in pairs if pair.by == "tags"),
        only_clips=tuple(clip.stem for clip in only_clips),
        only_reference=tuple(clip.stem for clip in alone),
        left_over=(*mine.left_over, *others.left_over),
    )


class _Folder:
    """The clips of a folder, each read and looked up."""

    def __init__(self, database: Database, path: Path, variant: Variant, info: FullInfo) -> None:
        listed = list_clips(path)
        self.path = path
        self.left_over = listed.left_over
        self.clips = [_read_clip(database, clip, variant, info) for clip in describe_clips(listed, info)]


def _read_clip(database: Database, what: FolderClip, variant: Variant, info: FullInfo) -> _Clip:
    blank = BlankWatcher()
    with open_clip(what.path, PICTURES) as clip:
        claim, sha256, frames = read_tag(clip), clip.file_sha256(), clip.stream_facts(blank).digest
    if claim is not None and claim.variant != variant:
        raise ContradictedClaimError(
            "the clip says that another variant made it", where=what.path, expected=variant, found=claim.variant
        )
    with database.reading() as session:
        known = RegisteredClips(session)
        entries = (*known.by_file(sha256), *known.by_stream(frames))
        query = sa.select(Clip.document).where(Clip.stream_sha256 == frames, Clip.variant_id == variant.id)
        recorded = list(session.scalars(query))
    makers = {maker for entry in entries for maker in (entry.variant, *entry.despite)}
    if blank.is_blank:
        makers &= {variant}  # whose other blank clips are says nothing of this one
    if makers and variant not in makers:
        raise ContradictedClaimError(
            "the clip is registered as made by another variant",
            where=what.path,
            expected=variant,
            found=" and ".join(sorted(map(str, makers))),
            todo="`hfq audit CLIP` shows the evidence; give the folder of clips that this variant made",
        )
    said = claim or _one_of([parse_clip_document(text.encode(), f"{what.path}: registered") for text in recorded])
    return _Clip(_with_said(what, said, info), sha256, claim, said, bool(makers))


def _one_of(documents: Sequence[ClipDocument]) -> ClipDocument | None:
    """What the registry says of frames; None where it says several things, as of a black clip."""
    told = {(one.prompt_sha256, one.seed, tuple(sorted(one.settings.items(), key=str))) for one in documents}
    return documents[0] if len(told) == 1 else None


def _with_said(what: FolderClip, said: ClipDocument | None, info: FullInfo) -> FolderClip:
    """What is said of a clip goes before a prompt file, whose category goes before that of the clip."""
    if said is None:
        return what
    if said.prompt_sha256 is None:
        return replace(what, seed=said.seed)
    listed = info.find(what.stem)
    category = (None if listed is None else listed.category) or said.category
    return replace(what, prompt_sha256=said.prompt_sha256, category=category, seed=said.seed)


def _of_one_prompt(pair: Matched[_Clip]) -> Matched[FolderClip]:
    """The clips of a pair; what one of them says of its prompt goes before the name of the other."""
    first, second = pair.first.what, pair.second.what
    said = pair.first.prompt_sha256 or pair.second.prompt_sha256
    if said is not None:
        first, second = replace(first, prompt_sha256=said), replace(second, prompt_sha256=said)
    return Matched(first, second, pair.by)


def _require_as_given(clip: _Clip, given: Mapping[str, SettingValue]) -> None:
    wrong = [name for name, value in given.items() if clip.settings.get(name) not in (None, value)]
    if wrong:
        raise SettingsDifferError(
            "the clip says otherwise", where=clip.what.path, expected=f"{wrong[0]} {given[wrong[0]]}",
            found=clip.settings[wrong[0]], todo="leave out --setting: what the clips say of themselves is recorded",
        )  # fmt: skip


def _differences(pair: Matched[_Clip], anyway: bool) -> list[str]:
    """Settings that decide and differ.

    Raises:
        ClipPairError, SettingsDifferError
    """
    first, second = pair.first, pair.second
    where = f"{first.what.path} and {second.what.path}"
    scene = scene_difference(first, second) or next(
        (
            f"{name.removesuffix('_sha256').replace('_', ' ')} {one} against {other}"
            for name in _FRAMES_GIVEN
            if (one := _start(first, name)) and (other := _start(second, name)) and one != other
        ),
        None,
    )
    if scene is not None:
        raise ClipPairError(
            "a clip and its reference show different things", where=where, found=scene,
            todo="give clips of one prompt and seed one name, or names that occur in one folder alone: they are then "
            "paired by prompt and seed",
        )  # fmt: skip
    found = [one for one in compare_settings(first.settings, second.settings) if one.kind == "decisive"]
    if found and not anyway:
        raise SettingsDifferError(
            "a clip and its reference were generated with other settings", where=where,
            found="; ".join(map(str, found)), todo="generate both alike, or measure them anyway with --anyway",
        )  # fmt: skip
    return [one.name for one in found]


def _start(clip: _Clip, name: str) -> str:
    return str(clip.settings.get(name) or "")[:12]


def _origin(clips: Sequence[_Clip], identical: int = 0) -> ClipOrigin:
    return ClipOrigin(
        clips=len(clips),
        claimed=sum(clip.claim is not None for clip in clips),
        registered=sum(clip.is_registered for clip in clips),
        unknown=sum(clip.claim is None and not clip.is_registered for clip in clips),
        identical=identical,
    )


def _renamed(settings: Mapping[str, SettingValue]) -> dict[str, SettingValue]:
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def _shared(clips: Iterable[_Clip]) -> dict[str, SettingValue]:
    tables = [_renamed(clip.claim.settings if clip.claim else {}) for clip in clips]
    first = tables[0] if tables else {}
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(name in table and table[name] == value for table in tables)
    }


def _digest_of(*folders: Iterable[_Clip]) -> str:
    """SHA-256 over the clips of folders: equal clips under equal names are one source, wherever they lie."""
    lines = [f"{index}\t{clip.stem}\t{clip.file_sha256}" for index, folder in enumerate(folders) for clip in folder]
    return sha256_hex("\n".join(lines).encode())
