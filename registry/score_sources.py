"""What scores come from: result files, outcomes of reviewers, and folders of clips that are measured here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.canonical import sha256_hex
from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import ContradictedClaimError, NotAClipError, ScoreFileError, UnreadableFileError

from .clips.clip_document import ClipDocument, Variant
from .clips.stream import open_clip
from .clips.tag import read_tag
from .scores.detect import read_score_file
from .scores.frames import list_clips
from .scores.full_info import FullInfo, PromptInfo, parse_full_info
from .scores.measure import measure_folders
from .scores.opens2v import NATURAL, mean_of_runs
from .scores.values import MetricScores, ReviewOutcome, SettingValue, match_key, video_stem

__all__ = ["ClipScores", "ScoreFiles", "measure_clips", "read_outcomes", "read_score_files"]

PathLike = str | os.PathLike[str]

_RENAMED: Final = {"guidance_low": "guidance_2"}
"""A clip names the second guidance after its expert, score settings as diffusers does."""


@dataclass(frozen=True, slots=True)
class ScoreFiles:
    """The metrics of one or several result files, and the SHA-256 that stands for their bytes."""

    scores: tuple[MetricScores, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Measures of a variant's clips and of the base's beside them, how each side was made, and what was left out.

    `claimed`: how many of the variant's clips say themselves what made them.
    """

    variant: ScoreFiles
    base: ScoreFiles
    variant_settings: dict[str, SettingValue]
    base_settings: dict[str, SettingValue]
    claimed: int
    only_clips: tuple[str, ...]
    only_reference: tuple[str, ...]


def read_score_files(
    paths: Sequence[PathLike], full_info: PathLike | None = None, *, prompt_set: str | None = None
) -> ScoreFiles:
    """Read the files of one run. Several runs of a judge become their mean.

    Raises:
        ScoreFileError: one metric in two files.
        and what `read_score_file` raises.
    """
    found: dict[tuple[str, str, str | None], list[MetricScores]] = {}
    for path in paths:
        for metric in read_score_file(path, full_info, prompt_set=prompt_set):
            found.setdefault((metric.metric_suite, metric.metric, metric.prompt_set), []).append(metric)
    for (suite, name, _), parts in found.items():
        if len(parts) > 1 and name != NATURAL:
            raise ScoreFileError("a metric in two files", where=f"{suite} {name}", todo="import one run at a time")
    scores = tuple(parts[0] if len(parts) == 1 else mean_of_runs(parts) for parts in found.values())
    digests = sorted(sha256_hex(read_bytes(Path(path))) for path in paths)
    return ScoreFiles(scores, digests[0] if len(digests) == 1 else sha256_hex("\n".join(digests).encode()))


def read_outcomes(path: PathLike) -> tuple[tuple[ReviewOutcome, ...], str]:
    """Outcomes and the file's SHA-256, from JSON lines `{video, accepted, category?}`.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError
        MalformedFileError, ScoreFileError: a line that is no outcome, or a file without any.
    """
    data = read_bytes(Path(path))
    outcomes = []
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            where = f"{os.fspath(path)}: line {number}"
            outcomes.append(_outcome(parse_json(line, where), where))
    if not outcomes:
        raise ScoreFileError("no outcome", where=path, expected='lines of {"video": ..., "accepted": true}')
    return tuple(outcomes), sha256_hex(data)


def _outcome(entry: Any, where: str) -> ReviewOutcome:
    if not isinstance(entry, dict) or not {"video", "accepted"} <= entry.keys() <= {"video", "accepted", "category"}:
        raise ScoreFileError("not an outcome", where=where, expected="an object of video, accepted and maybe category")
    video, accepted, category = entry["video"], entry["accepted"], entry.get("category")
    if not isinstance(video, str) or not video_stem(video):
        raise ScoreFileError("not the name of a video", where=where, found=repr(video))
    if not isinstance(accepted, bool):
        raise ScoreFileError("neither accepted nor rejected", where=where, expected="true or false", found=accepted)
    if category is not None and not (isinstance(category, str) and 0 < len(category) <= 80):
        raise ScoreFileError("not a category", where=where, found=repr(category))
    return ReviewOutcome(video_stem(video), accepted, category)


def measure_clips(
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

    Prompts and settings are taken from what the clips say of themselves; a setting that they do not share is not kept.

    Args:
        full_info: categories, and prompts of clips that say nothing.

    Raises:
        ContradictedClaimError: a clip says that another variant made it.
        and what `measure_folders` raises.
    """
    ours, theirs = Path(clips), Path(reference)
    mine, others = _claims(ours, variant), _claims(theirs, base)
    info = FullInfo()
    if full_info is not None:
        place = Path(full_info)
        info = parse_full_info(parse_json(read_bytes(place), str(place)), str(place))
    known = {**others, **mine}
    prompts = {
        match_key(stem): PromptInfo(claim.prompt_sha256, _category(info, stem))
        for stem, claim in known.items()
        if claim.prompt_sha256 is not None
    }
    merged = FullInfo({**info.videos, **prompts}, info.prompts, info.image_to_video)
    found = measure_folders(ours, theirs, info=merged, prompt_set=prompt_set, progress=progress)
    own = found.reference
    if found.only_reference:
        # The base keeps the clips that the variant lacks: a gate asks for the share of them that the variant has.
        own = measure_folders(theirs, theirs, info=merged, prompt_set=prompt_set, progress=progress).reference
    return ClipScores(
        variant=ScoreFiles(tuple(found.variant), _digest_of(ours, theirs)),
        base=ScoreFiles(tuple(own), _digest_of(theirs)),
        variant_settings=_shared(mine),
        base_settings=_shared(others),
        claimed=len(mine),
        only_clips=found.only_clips,
        only_reference=found.only_reference,
    )


def _category(info: FullInfo, stem: str) -> str | None:
    found = info.find(stem)
    return None if found is None else found.category


def _claims(folder: Path, variant: Variant) -> dict[str, ClipDocument]:
    claims: dict[str, ClipDocument] = {}
    for stem, path in list_clips(folder).items():
        try:
            with open_clip(path) as clip:
                claim = read_tag(clip)
        except NotAClipError:  # a container that cannot say anything, or no clip: measuring will tell
            continue
        if claim is None:
            continue
        if claim.variant != variant:
            raise ContradictedClaimError(
                "the clip says that another variant made it", where=path, expected=variant, found=claim.variant
            )
        claims[stem] = claim
    return claims


def _shared(claims: Mapping[str, ClipDocument]) -> dict[str, SettingValue]:
    tables = [{_RENAMED.get(name, name): value for name, value in one.settings.items()} for one in claims.values()]
    first = tables[0] if tables else {}
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(name in table and table[name] == value for table in tables)
    }


def _digest_of(*folders: Path) -> str:
    """SHA-256 over the clips of folders: equal clips under equal names are one source, wherever they lie."""
    lines = [
        f"{index}\t{match_key(stem)}\t{_file_sha256(path)}"
        for index, folder in enumerate(folders)
        for stem, path in list_clips(folder).items()
    ]
    return sha256_hex("\n".join(lines).encode())


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFileError("cannot be read", where=path, found=error.strerror) from None
