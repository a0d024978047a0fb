"""VBench result files: `{dimension: [aggregate, [{video_path, video_results}, ...]]}`.

Source: Vchitect/VBench at 45e79ec, `*_eval_results.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hfq.schema.errors import ScoreFileError, UnknownMetricError

from .full_info import FullInfo, infer_prompt_set, make_videos
from .values import MetricScores, Omitted, refuse_doubles, video_stem

__all__ = ["DIMENSIONS", "QUALITY", "SEMANTIC", "Omit", "is_vbench", "parse_vbench", "read_dimensions"]

Omit = Callable[[Omitted], None]

QUALITY: Final = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "aesthetic_quality",
    "imaging_quality", "dynamic_degree",
)  # fmt: skip
SEMANTIC: Final = (
    "object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene", "appearance_style",
    "temporal_style", "overall_consistency",
)  # fmt: skip
DIMENSIONS: Final = QUALITY + SEMANTIC

_PERCENT: Final = "imaging_quality"
"""MUSIQ rates 0 to 100. Current releases divide the aggregate by 100 and leave the videos; old ones divide neither."""

_AGREES: Final = 0.02
"""Aggregates that count frames differ from the mean over videos by less; a factor of 100 is not to be missed."""


def is_vbench(document: Any) -> bool:
    """Whether a parsed file is an object of lists that begin with a number, or with null."""
    return isinstance(document, dict) and any(
        isinstance(value, list) and value and isinstance(value[0], int | float | None) for value in document.values()
    )


def parse_vbench(
    document: Mapping[str, Any], info: FullInfo | None, prompt_set: str | None, where: str, omit: Omit
) -> list[MetricScores]:
    """The dimensions of a VBench file; `human_action` and `Human Action` are one.

    Raises:
        ScoreFileError, UnknownMetricError, DuplicateVideoError
    """
    names = {dimension: dimension for dimension in DIMENSIONS}
    return read_dimensions(document, names, "vbench", info, prompt_set, where, omit)


def read_dimensions(
    document: Mapping[str, Any],
    names: Mapping[str, str],
    suite: str,
    info: FullInfo | None,
    prompt_set: str | None,
    where: str,
    omit: Omit,
) -> list[MetricScores]:
    """Every dimension of a file of VBench's shape, in the file's order.

    Args:
        names: the dimension by its name in a file, lower case with underscores.
        omit: is told what VBench wrote NaN for.

    Raises:
        ScoreFileError: a dimension that is no aggregate with a list of videos, or two names of one dimension.
        UnknownMetricError: a dimension that is not in `names`.
        DuplicateVideoError
    """
    result: list[MetricScores] = []
    seen: set[str] = set()
    for name, value in document.items():
        dimension = names.get(name.lower().replace(" ", "_"))
        if dimension is None:
            raise UnknownMetricError(
                f"no dimension of {suite}", where=where, found=name, expected=", ".join(sorted(set(names.values())))
            )
        if dimension in seen:
            raise ScoreFileError("a dimension twice", where=where, found=name)
        seen.add(dimension)
        found = _read_dimension(dimension, value, suite, info, prompt_set, _Place(where, name, omit))
        if found is not None:
            result.append(found)
    return result


@dataclass(frozen=True, slots=True)
class _Place:
    """A dimension of a file, for messages."""

    file: str
    name: str
    omit: Omit

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def leave_out(self, reason: str, video: str | None = None) -> None:
        self.omit(Omitted(self.file, self.name, video, reason))


def _read_dimension(
    dimension: str, value: Any, suite: str, info: FullInfo | None, prompt_set: str | None, place: _Place
) -> MetricScores | None:
    """None where the suite failed: an aggregate that is NaN, and no video with a value."""
    where = str(place)
    if not isinstance(value, list) or not value:
        raise ScoreFileError("not a dimension", where=where, expected="[aggregate, videos]", found=type(value).__name__)
    stated = _number(value[0], where)
    entries = _entries(value, where)
    scored, unscored = _read_videos(entries, place)
    if math.isnan(stated):
        if not scored:
            place.leave_out("NaN: the suite computed nothing; this dimension is not imported")
            return None
        place.leave_out("the aggregate is NaN; the videos with a value count")
    scale = "as in the file"
    if dimension == _PERCENT:
        stated, scored, scale = _to_unit(stated, scored, where)
    return MetricScores(
        prompt_set=prompt_set or infer_prompt_set([stem for stem, _ in scored]),
        metric_suite=suite,
        metric=dimension,
        direction="higher",
        scale=scale,
        stated=None if math.isnan(stated) else stated,
        videos=make_videos(scored, info),
        unscored=tuple(unscored),
    )


def _read_videos(entries: Sequence[Any], place: _Place) -> tuple[list[tuple[str, float]], list[str]]:
    """Stem and value of the videos that have one, and the stems of the others."""
    scored: list[tuple[str, float]] = []
    unscored: list[str] = []
    names: list[tuple[str, str]] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("video_path"), str):
            raise ScoreFileError(
                "not a video's result", where=f"{place}: video {index}", expected="an object with video_path"
            )
        path = entry["video_path"]
        stem = video_stem(path)
        names.append((stem, path))
        if "video_results" not in entry:
            raise ScoreFileError("a video without video_results", where=f"{place}: {path}")
        value = entry["video_results"]
        number = math.nan if value is None else _number(value, f"{place}: {path}")
        if not math.isnan(number):
            scored.append((stem, number))
            continue
        unscored.append(stem)
        if value is not None:
            place.leave_out("NaN: a video without a value", path)
    refuse_doubles(names, str(place))
    return scored, unscored


def _entries(value: Sequence[Any], where: str) -> list[Any]:
    """The list of videos. Releases of VBench-I2V put a table per type of camera motion before it."""
    rest = [item for item in value[1:3] if not isinstance(item, dict)]
    if not rest:
        return []
    if not isinstance(rest[0], list):
        raise ScoreFileError("not a list of videos", where=where, found=type(rest[0]).__name__)
    return rest[0]


def _to_unit(stated: float, scored: list[tuple[str, float]], where: str) -> tuple[float, list[tuple[str, float]], str]:
    mean = math.fsum(value for _, value in scored) / len(scored) if scored else stated
    # A list of values below 1 is on 0-100 as well when the aggregate is a hundredth of it.
    percent = max((value for _, value in scored), default=0.0) > 1 or (
        stated != 0 and math.isclose(mean, 100 * stated, rel_tol=_AGREES)
    )
    values = [(stem, value / 100) for stem, value in scored] if percent else scored
    if percent and scored:
        unit = stated / 100 if stated > 1 else stated
        each = math.fsum(value / 100 if value > 1 else value for _, value in scored) / len(scored)
        if math.isclose(each, unit, rel_tol=_AGREES) and not math.isclose(mean / 100, unit, rel_tol=_AGREES):
            low = next(stem for stem, value in scored if value <= 1)
            high = next(stem for stem, value in scored if value > 1)
            raise ScoreFileError(
                "videos on two scales", where=where, expected="all of 0 to 100, or all of 0 to 1",
                found=f"{dict(scored)[high]:g} for {high} and {dict(scored)[low]:g} for {low}; the aggregate of "
                f"{stated:g} is their mean where each is brought to 0 to 1 by itself",
                todo="import the file as the suite wrote it",
            )  # fmt: skip
    kinds = ["videos"] * (percent and bool(scored)) + ["aggregate"] * (stated > 1)
    scale = f"0-1; {' and '.join(kinds)} divided by 100" if kinds else "0-1, as in the file"
    return (stated / 100 if stated > 1 else stated), values, scale


def _number(value: Any, where: str) -> float:
    """A number of the file; NaN, which the suite writes where it failed, is one."""
    # dynamic_degree and human_action write booleans, others integers.
    if not isinstance(value, int | float):
        raise ScoreFileError("not a number", where=where, found="null" if value is None else repr(value))
    try:
        number = float(value)
    except OverflowError:
        raise ScoreFileError("a number beyond binary64", where=where) from None
    if math.isinf(number):
        raise ScoreFileError("an infinite value", where=where, found=value)
    return number
