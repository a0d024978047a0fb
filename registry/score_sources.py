"""What scores come from: result files and outcomes of reviewers. Clips are measured in `measured_clips`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfq.schema.canonical import sha256_hex
from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import ScoreFileError

from .scores.detect import read_result_file
from .scores.opens2v import NATURAL, mean_of_runs
from .scores.origin import ClipOrigin
from .scores.values import MetricScores, Omitted, ReviewOutcome, video_stem

__all__ = ["ScoreFiles", "read_outcomes", "read_score_files"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ScoreFiles:
    """The metrics of one or several result files, and the SHA-256 that stands for their bytes.

    `origin`: whose the clips are, where they were measured here. `omitted`: what of the files is no score.
    """

    scores: tuple[MetricScores, ...]
    sha256: str
    origin: ClipOrigin | None = None
    omitted: tuple[Omitted, ...] = ()


def read_score_files(
    paths: Sequence[PathLike], full_info: PathLike | None = None, *, prompt_set: str | None = None
) -> ScoreFiles:
    """Read the files of one run. Several runs of a judge become their mean.

    Raises:
        ScoreFileError: one metric in two files.
        and what `read_result_file` raises.
    """
    found: dict[tuple[str, str, str | None], list[tuple[MetricScores, PathLike]]] = {}
    omitted: list[Omitted] = []
    for path in paths:
        file = read_result_file(path, full_info, prompt_set=prompt_set)
        omitted += file.omitted
        for metric in file.scores:
            found.setdefault((metric.metric_suite, metric.metric, metric.prompt_set), []).append((metric, path))
    for (suite, name, _), parts in found.items():
        if len(parts) > 1 and name != NATURAL:
            files = " and ".join(os.fspath(path) for _, path in parts)
            raise ScoreFileError(
                "a metric in two files", where=f"{suite} {name}", found=files, todo="import one run at a time"
            )
    runs = ([metric for metric, _ in parts] for parts in found.values())
    scores = tuple(parts[0] if len(parts) == 1 else mean_of_runs(parts) for parts in runs)
    digests = sorted(sha256_hex(read_bytes(Path(path))) for path in paths)
    sha256 = digests[0] if len(digests) == 1 else sha256_hex("\n".join(digests).encode())
    return ScoreFiles(scores, sha256, omitted=tuple(omitted))


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
