"""OpenS2V-Eval result files: `{id: {metric: number}}`, one metric or two per file, and judge runs `{id: "4"}`.

Source: PKU-YuanGroup/OpenS2V-Nexus, `eval/`. The repository gives no weighting, hence there is no total.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hfq.schema.errors import ScoreFileError, UnknownMetricError

from .full_info import FullInfo, infer_prompt_set, make_videos
from .values import MetricScores, Omitted, VideoScore, match_key, refuse_doubles
from .vbench import Omit

__all__ = ["METRICS", "NATURAL", "is_opens2v", "mean_of_runs", "parse_opens2v"]

METRICS: Final = {
    "aes_score": "as in the file",
    "cur_score": "cosine, floored at 0; 0 also means that no face was found",
    "arc_score": "cosine, floored at 0; 0 also means that no face was found",
    "gme_score": "as in the file",
    "motion_fb": "amount of motion (Farneback), no better for being larger than intended",
    "motion_lk": "amount of motion (Lucas-Kanade), no better for being larger than intended",
    "retrieval_score": "as in the file; 0 also means that no object was found",
}
"""Metric and scale."""

NATURAL: Final = "natural_score"
_JUDGED: Final = re.compile(r"\s*([1-5](?:\.\d{1,6})?)\s*")


def is_opens2v(document: Any) -> bool:
    """Whether a parsed file maps names to objects of known metrics, or to a judge's answers."""
    if not isinstance(document, dict) or not document:
        return False
    values = list(document.values())
    if all(isinstance(value, dict) for value in values):
        return any(metric in value for value in values for metric in METRICS)
    return all(isinstance(value, str) for value in values) and any(_JUDGED.fullmatch(value) for value in values)


def parse_opens2v(
    document: Mapping[str, Any], info: FullInfo | None, prompt_set: str | None, where: str, omit: Omit
) -> list[MetricScores]:
    """The metrics of one file. Of judge runs every file is one run: `mean_of_runs` joins them.

    Raises:
        ScoreFileError, UnknownMetricError, DuplicateVideoError
    """
    refuse_doubles(((name, name) for name in document), where)
    values: dict[str, list[tuple[str, float]]] = {}
    unscored: dict[str, list[str]] = {}
    if all(isinstance(answer, str) for answer in document.values()):
        values[NATURAL], unscored[NATURAL] = _judged(document)
    else:
        _collect(document, values, unscored, where, omit)
    stated_set = prompt_set or infer_prompt_set(list(document))
    return [
        MetricScores(
            prompt_set=stated_set,
            metric_suite="opens2v",
            metric=metric,
            direction="higher",
            scale=METRICS.get(metric, "a judge's 1-5, one run"),
            stated=None,
            videos=make_videos(values.get(metric, []), info),
            unscored=tuple(unscored.get(metric, [])),
        )
        for metric in dict.fromkeys([*values, *unscored])
    ]


def _judged(document: Mapping[str, str]) -> tuple[list[tuple[str, float]], list[str]]:
    """Answers that are a number from 1 to 5; the suite writes "error", or whatever else the judge said, for others."""
    found = {name: _JUDGED.fullmatch(answer) for name, answer in document.items()}
    good = [(name, float(match[1])) for name, match in found.items() if match and float(match[1]) <= 5]
    scored = {name for name, _ in good}
    return good, [name for name in document if name not in scored]


def _collect(
    document: Mapping[str, Any],
    values: dict[str, list[tuple[str, float]]],
    unscored: dict[str, list[str]],
    where: str,
    omit: Omit,
) -> None:
    for name, entry in document.items():
        place = f"{where}: {name}"
        if not isinstance(entry, dict):
            raise ScoreFileError("not a video's scores", where=place, expected="an object", found=type(entry).__name__)
        for metric, value in entry.items():
            if metric not in METRICS:
                raise UnknownMetricError(
                    "no metric of OpenS2V-Eval", where=place, found=metric, expected=", ".join(METRICS)
                )
            if isinstance(value, float) and math.isnan(value):
                omit(Omitted(where, metric, name, "NaN: a video without a value"))
                unscored.setdefault(metric, []).append(name)
            elif value is None:
                unscored.setdefault(metric, []).append(name)
            elif isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
                raise ScoreFileError("not a number", where=f"{place}: {metric}", found=repr(value))
            else:
                values.setdefault(metric, []).append((name, float(value)))


def mean_of_runs(runs: Sequence[MetricScores]) -> MetricScores:
    """Judge runs as one metric: the mean of every video that all runs answered.

    Raises:
        ScoreFileError: no run, or runs of different metrics or prompt sets.
    """
    if len({(run.prompt_set, run.metric_suite, run.metric) for run in runs}) != 1:
        raise ScoreFileError("not runs of one metric", found=", ".join(run.metric for run in runs) or "no run")
    tables = [{video.key: video for video in run.videos} for run in runs]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    videos = tuple(
        VideoScore(
            first.stem, first.prompt_sha256, first.category, first.sample,
            math.fsum(table[first.key].value for table in tables) / len(tables),
        )
        for first in (tables[0][key] for key in common)
    )  # fmt: skip
    named = {match_key(stem): stem for run in runs for stem in [*run.unscored, *(video.stem for video in run.videos)]}
    return MetricScores(
        prompt_set=runs[0].prompt_set,
        metric_suite=runs[0].metric_suite,
        metric=runs[0].metric,
        direction=runs[0].direction,
        scale=f"a judge's 1-5, mean of {len(runs)} runs",
        stated=None,
        videos=videos,
        unscored=tuple(stem for key, stem in named.items() if key not in common),
    )
