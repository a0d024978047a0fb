"""Reading a score file of any known suite. Its structure says what it is; its name does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import ScoreFileError

from .full_info import FullInfo, read_full_info
from .opens2v import is_opens2v, parse_opens2v
from .ranges import check_values
from .values import MetricScores
from .vbench import is_vbench, parse_vbench
from .vbench_i2v import is_vbench_i2v, parse_vbench_i2v

__all__ = ["read_score_file"]


def read_score_file(
    path: str | os.PathLike[str],
    full_info: str | os.PathLike[str] | None = None,
    *,
    prompt_set: str | None = None,
) -> list[MetricScores]:
    """The metrics of a VBench, VBench-I2V or OpenS2V-Eval result file, every video's value kept.

    Args:
        full_info: VBench's `_full_info.json` or the input file of OpenS2V-Eval: which prompt each video is of.
        prompt_set: what was generated; else `opens2v-eval` where the ids say so, else None.

    Raises:
        MissingPathError, UnreadableFileError
        MalformedFileError and its subclasses: no JSON, too large, a number that JSON does not have (NaN).
        ScoreFileError, UnknownMetricError, DuplicateVideoError: no file of a known suite, or a damaged one.
        ScoreRangeError: a value that its metric cannot have, such as a percentage.
    """
    location = Path(path)
    document = parse_json(read_bytes(location), str(location))
    info = None if full_info is None else read_full_info(full_info)
    found = _parse(document, info, prompt_set, location)
    for metric in found:
        check_values(metric, str(location))
    return found


def _parse(document: Any, info: FullInfo | None, prompt_set: str | None, location: Path) -> list[MetricScores]:
    if is_vbench(document):
        parse = parse_vbench_i2v if is_vbench_i2v(document, info) else parse_vbench
        return parse(document, info, prompt_set, str(location))
    if is_opens2v(document):
        return parse_opens2v(document, info, prompt_set, str(location))
    raise ScoreFileError(
        "no score file of a known suite",
        where=location,
        expected="VBench {dimension: [aggregate, videos]} or OpenS2V {id: {metric: number}}",
        found=_shape(document),
        todo="give the *_eval_results.json or the *score.json file itself",
    )


def _shape(document: object) -> str:
    if isinstance(document, dict):
        kinds = sorted({type(value).__name__ for value in document.values()})
        return f"an object of {', '.join(kinds)}" if kinds else "an empty object"
    return f"a {type(document).__name__} at the top"
