"""Reading a score file of any known suite. Its structure says what it is; its name does not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import ScoreFileError

from .full_info import FullInfo, read_full_info
from .opens2v import is_opens2v, parse_opens2v
from .ranges import check_values
from .values import MetricScores, Omitted
from .vbench import is_vbench, parse_vbench
from .vbench_i2v import is_vbench_i2v, parse_vbench_i2v

__all__ = ["ResultFile", "read_result_file", "read_score_file"]


@dataclass(frozen=True, slots=True)
class ResultFile:
    """The metrics of a file, and what of it is no score."""

    scores: tuple[MetricScores, ...]
    omitted: tuple[Omitted, ...] = ()


def read_score_file(
    path: str | os.PathLike[str],
    full_info: str | os.PathLike[str] | None = None,
    *,
    prompt_set: str | None = None,
) -> list[MetricScores]:
    """The metrics of `read_result_file` alone."""
    return list(read_result_file(path, full_info, prompt_set=prompt_set).scores)


def read_result_file(
    path: str | os.PathLike[str],
    full_info: str | os.PathLike[str] | None = None,
    *,
    prompt_set: str | None = None,
) -> ResultFile:
    """The metrics of a VBench, VBench-I2V or OpenS2V-Eval result file, every video's value kept.

    The suites write NaN where they failed, for a dimension or a video; that is left out and named, and the rest counts.

    Args:
        full_info: VBench's `_full_info.json` or the input file of OpenS2V-Eval: which prompt each video is of.
        prompt_set: what was generated; else `opens2v-eval` where the ids say so, else None.

    Raises:
        MissingPathError, UnreadableFileError
        MalformedFileError and its subclasses: no JSON, too large.
        ScoreFileError, UnknownMetricError, DuplicateVideoError: no file of a known suite, or a damaged one; also one
            in which nothing has a value.
        ScoreRangeError: a value that its metric cannot have, such as a percentage or a sum over frames.
    """
    location = Path(path)
    document = parse_json(read_bytes(location), str(location), float)
    info = None if full_info is None else read_full_info(full_info)
    found = _parse(document, info, prompt_set, location)
    if found.omitted and not found.scores:
        raise ScoreFileError("nothing in it has a value", where=location, found="; ".join(map(str, found.omitted)),
                             todo="run the suite again")  # fmt: skip
    for metric in found.scores:
        check_values(metric, str(location))
    return found


def _parse(document: Any, info: FullInfo | None, prompt_set: str | None, location: Path) -> ResultFile:
    omitted: list[Omitted] = []
    if is_vbench(document):
        parse = parse_vbench_i2v if is_vbench_i2v(document, info) else parse_vbench
    elif is_opens2v(document):
        parse = parse_opens2v
    else:
        raise ScoreFileError(
            "no score file of a known suite",
            where=location,
            expected="VBench {dimension: [aggregate, videos]} or OpenS2V {id: {metric: number}}",
            found=_shape(document),
            todo="give the *_eval_results.json or the *score.json file itself",
        )
    scores = parse(document, info, prompt_set, str(location), omitted.append)
    return ResultFile(tuple(scores), tuple(omitted))


def _shape(document: object) -> str:
    if isinstance(document, dict):
        kinds = sorted({type(value).__name__ for value in document.values()})
        return f"an object of {', '.join(kinds)}" if kinds else "an empty object"
    return f"a {type(document).__name__} at the top"
