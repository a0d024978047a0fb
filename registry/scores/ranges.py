"""Which values a metric can have: a share written as a percentage would beat every base a hundredfold.

Sources: Vchitect/VBench at 45e79ec and PKU-YuanGroup/OpenS2V-Nexus, what each metric computes. Not the ranges of
VBench's normalisation (`totals.RANGES`), which good and bad clips leave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from hfq.schema.errors import ScoreRangeError

from .values import MetricScores

__all__ = ["LIMITS", "Limits", "check_values", "is_possible", "limits_of", "limits_text"]

Limits = tuple[float, float | None]
"""Lowest and highest value; None where nothing bounds it above."""

_SHARE: Final[Limits] = (0.0, 1.0)
_COSINE: Final[Limits] = (-1.0, 1.0)

_SHARED: Final[Mapping[str, Limits]] = {
    "subject_consistency": _SHARE,  # cosines floored at 0
    "background_consistency": _SHARE,
    "temporal_flickering": _SHARE,
    "motion_smoothness": _SHARE,
    "dynamic_degree": _SHARE,
    "aesthetic_quality": _SHARE,  # rated 0 to 10, divided by 10 by the suite
    "imaging_quality": _SHARE,  # rated 0 to 100, divided by 100 on reading
}

LIMITS: Final[Mapping[str, Mapping[str, Limits]]] = {
    "vbench": {
        **_SHARED,
        "object_class": _SHARE,
        "multiple_objects": _SHARE,
        "human_action": _SHARE,
        "color": _SHARE,
        "spatial_relationship": _SHARE,
        "scene": _SHARE,
        "appearance_style": _COSINE,
        "temporal_style": _COSINE,
        "overall_consistency": _COSINE,
    },
    "vbench-i2v": {**_SHARED, "i2v_subject": _SHARE, "i2v_background": _SHARE, "camera_motion": _SHARE},
    "opens2v": {
        "aes_score": (0.0, 10.0),  # the same rating as VBench's, not divided
        "cur_score": _SHARE,
        "arc_score": _SHARE,
        "gme_score": _COSINE,
        "motion_fb": (0.0, None),  # pixels
        "motion_lk": (0.0, 255.0),  # mean of a picture with the tracks drawn in
        "retrieval_score": _COSINE,
        "natural_score": (1.0, 5.0),
    },
    "hfq": {
        "psnr": (0.0, 100.0),
        "ssim": _COSINE,
        "temporal_flicker": _SHARE,
        "frame_to_frame_ssim": _COSINE,
        "first_frame_ssim": _COSINE,
    },
}
"""Limits by suite and metric."""

_ALIKE: Final = 0.02
"""Aggregates that count frames differ from the mean over videos by less."""

_MIN_FRAMES: Final = 1.5
"""Sums over two frames, where not every clip has two."""

_ROUNDING: Final = 1e-4
"""A cosine in single precision may be 1.0000002."""


FEATURE_SUITE: Final = "hfq-features:"
"""What the suite of metrics on the features of any extractor begins with; its name follows."""

_OF_FEATURES: Final[Mapping[str, Limits]] = dict.fromkeys(
    ("subject_consistency", "subject_previous", "subject_first"), _SHARE  # cosines floored at 0, as VBench's
)  # fmt: skip


def limits_of(suite: str, metric: str) -> Limits | None:
    """The limits of a metric; None where this package does not know them."""
    known = _OF_FEATURES if suite.startswith(FEATURE_SUITE) else LIMITS.get(suite, {})
    return known.get(metric)


def limits_text(limits: Limits) -> str:
    """Limits for people: `0..1`."""
    low, high = limits
    return f"at least {low:g}" if high is None else f"{low:g}..{high:g}"


def is_possible(value: float, limits: Limits) -> bool:
    """Whether a value is within limits, up to rounding."""
    low, high = limits
    return value >= low - _ROUNDING and (high is None or value <= high + _ROUNDING)


def check_values(scores: MetricScores, where: str) -> None:
    """Check the aggregate and every video of a metric as a file gives it.

    Raises:
        ScoreRangeError: a value that the metric cannot have; the first is named, and how many there are.
    """
    limits = limits_of(scores.metric_suite, scores.metric)
    if limits is None:
        return
    named = [(video.stem, video.value) for video in scores.videos]
    if scores.stated is not None:
        named.insert(0, ("its aggregate", scores.stated))
    wrong = [(name, value) for name, value in named if not is_possible(value, limits)]
    if not wrong:
        return
    name, value = wrong[0]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise ScoreRangeError(
        f"not a value of {scores.metric_suite} {scores.metric}",
        where=f"{where}: {scores.metric}",
        expected=limits_text(limits),
        found=f"{value:g} for {name}{more}",
        todo=_advice(scores, limits, [value for _, value in wrong]),
    )


def _advice(scores: MetricScores, limits: Limits, wrong: Sequence[float]) -> str:
    """What the numbers are, as far as aggregate and videos tell. Dividing by 100 what is no per cent would make a false
    value of it: it is advised where both say so alone.
    """
    again = "import the file as the suite wrote it"
    mean, stated = scores.recomputed, scores.stated
    if mean is None:
        return again
    if stated is None:
        return (
            f"per cent or sums over frames, the file has no aggregate that would tell; run the suite again, or {again}"
        )
    if not is_possible(stated, limits):
        percent = math.isclose(mean, stated, rel_tol=_ALIKE) and all(is_possible(one / 100, limits) for one in wrong)
        return (
            "these look like per cent: divide the aggregate and every video by 100 if they are (sums over frames are "
            "not), or import the suite's own file"
            if percent
            else again
        )
    factor = mean / stated if stated > 0 else 0.0
    if factor < _MIN_FRAMES:
        return again
    hundred = ", unless they are per cent" if math.isclose(factor, 100, rel_tol=_ALIKE) else ""
    return (
        f"the videos are about {factor:.3g} times their aggregate, as sums over frames are, which older releases of "
        f"the suite wrote{hundred}: run the suite again, or divide every video by the frames of its own clip, whose "
        "number the file does not say"
    )
