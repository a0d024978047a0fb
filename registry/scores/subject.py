"""Subject consistency in its two parts: did the subject change from frame to frame, or drift away from the first one?

VBench's figure is the mean of both and hides which of them fell. Source: Vchitect/VBench at 45e79ec,
`subject_consistency`, which takes the features from DINO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import FeatureShapeError

from .full_info import FullInfo, infer_prompt_set, make_videos
from .values import MetricScores

__all__ = ["SCALES", "SubjectConsistency", "subject_consistency", "subject_scores"]

SCALES: Final = {
    "subject_consistency": "mean of subject_previous and subject_first: VBench's formula on the given features",
    "subject_previous": "mean cosine to the previous frame, floored at 0, on the given features",
    "subject_first": "mean cosine to the first frame, floored at 0, on the given features",
}


@dataclass(frozen=True, slots=True)
class SubjectConsistency:
    """Means over the frames after the first; `compared` is their number."""

    previous: float
    first: float
    compared: int

    @property
    def score(self) -> float:
        """What VBench reports for the video."""
        return (self.previous + self.first) / 2


def subject_consistency(features: npt.ArrayLike, *, skip: int = 0) -> SubjectConsistency:
    """Both parts from per-frame features [T, d], floating point, of any length.

    Args:
        skip: leave out this many frames at the start; the first one kept is the first. In image-to-video a loss can
            be the hand-over from a given first frame.

    Raises:
        FeatureShapeError: not [T, d], fewer than two frames left, a value that is not finite, or a frame of zeros.
    """
    array = np.asarray(features, dtype=np.float64)
    if skip < 0 or array.ndim != 2 or array.shape[0] - skip < 2 or array.shape[1] < 1:
        raise FeatureShapeError(
            "not the features of a clip", expected=f"[frames, width], at least {max(skip, 0) + 2} frames",
            found=list(array.shape),
        )  # fmt: skip
    array = array[skip:]
    lengths = np.linalg.norm(array, axis=1)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        frame = int(np.argmin(np.where(np.isfinite(lengths), lengths, -1))) + skip
        raise FeatureShapeError("a feature of zeros, or not finite", where=f"frame {frame}")
    unit = array / lengths[:, None]
    previous = np.maximum(0.0, (unit[1:] * unit[:-1]).sum(axis=1))
    first = np.maximum(0.0, unit[1:] @ unit[0])
    return SubjectConsistency(float(previous.mean()), float(first.mean()), len(previous))


def subject_scores(
    features: Mapping[str, npt.ArrayLike],
    *,
    skip: int = 0,
    extractor: str = "unnamed",
    info: FullInfo | None = None,
    prompt_set: str | None = None,
) -> list[MetricScores]:
    """The score and its two parts for every clip.

    Args:
        features: per-frame features [T, d] by the clip's stem.
        extractor: what made the features; values of two extractors cannot be compared, hence it is in the suite's name.

    Raises:
        FeatureShapeError: the message names the clip.
    """
    parts: dict[str, SubjectConsistency] = {}
    for stem, array in features.items():
        try:
            parts[stem] = subject_consistency(array, skip=skip)
        except FeatureShapeError as error:
            where = stem if error.where is None else f"{stem}: {error.where}"
            raise FeatureShapeError(error.what, where=where, expected=error.expected, found=error.found) from None
    dropped = f"; the first {skip} frames left out" if skip else ""
    values = {
        "subject_consistency": {stem: part.score for stem, part in parts.items()},
        "subject_previous": {stem: part.previous for stem, part in parts.items()},
        "subject_first": {stem: part.first for stem, part in parts.items()},
    }
    return [
        MetricScores(
            prompt_set=prompt_set or infer_prompt_set(list(parts)),
            metric_suite=f"hfq-features:{extractor}" + (f":skip{skip}" if skip else ""),
            metric=name,
            direction="higher",
            scale=SCALES[name] + dropped,
            stated=None,
            videos=make_videos(column.items(), info),
        )
        for name, column in values.items()
    ]
