"""Totals of the suites, from complete sets of dimensions alone.

The official scorers set a missing dimension to 0, which makes the total of a partial run look like a bad model. Source:
Vchitect/VBench at 45e79ec, `scripts/constant.py`, `cal_final_score.py`, `cal_i2v_final_score.py`. Nothing is clamped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .values import MetricScores
from .vbench import QUALITY, SEMANTIC
from .vbench_i2v import I2V, I2V_QUALITY

__all__ = ["FIVE", "RANGES", "Total", "aggregates", "five_means", "i2v_totals", "normalise", "vbench_totals"]

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
    "i2v_subject": (0.1462, 1.0),
    "i2v_background": (0.2615, 1.0),
    "camera_motion": (0.0, 1.0),
}
"""Minimum and maximum of VBench's normalisation."""

FIVE: Final = (
    "imaging_quality", "aesthetic_quality", "overall_consistency", "subject_consistency", "motion_smoothness",
)  # fmt: skip
"""The dimensions of the low-bit Wan challenge, whose plain mean is no VBench total."""

_WEIGHTS: Final = {"dynamic_degree": 0.5, "camera_motion": 0.1}
"""All others weigh 1."""


@dataclass(frozen=True, slots=True)
class Total:
    """A total; `value` is None when dimensions are missing, and `missing` names them."""

    name: str
    value: float | None
    missing: tuple[str, ...]


def aggregates(metrics: Iterable[MetricScores], which: Literal["stated", "recomputed"]) -> dict[str, float]:
    """Aggregate by dimension of one suite. What a table of the suite shows is `stated`; comparisons recompute."""
    values = ((metric.metric, metric.stated if which == "stated" else metric.recomputed) for metric in metrics)
    return {name: value for name, value in values if value is not None}


def normalise(dimension: str, value: float) -> float:
    """(value - min) / (max - min) with VBench's range of the dimension; not clamped."""
    low, high = RANGES[dimension]
    return (value - low) / (high - low)


def vbench_totals(values: Mapping[str, float]) -> tuple[Total, Total, Total]:
    """Quality (7 dimensions), semantic (9) and total = (4 quality + semantic) / 5."""
    quality, semantic = _weighted("vbench quality", QUALITY, values), _weighted("vbench semantic", SEMANTIC, values)
    return quality, semantic, _join("vbench total", (quality, 4.0), (semantic, 1.0))


def i2v_totals(values: Mapping[str, float]) -> tuple[Total, Total, Total]:
    """I2V (3 dimensions), quality (6) and total, their mean. temporal_flickering is in none."""
    i2v, quality = _weighted("vbench-i2v i2v", I2V, values), _weighted("vbench-i2v quality", I2V_QUALITY, values)
    return i2v, quality, _join("vbench-i2v total", (i2v, 1.0), (quality, 1.0))


def five_means(values: Mapping[str, float]) -> tuple[Total, Total]:
    """The mean of the five challenge dimensions, raw and with each dimension normalised."""
    missing = tuple(name for name in FIVE if name not in values)
    raw = None if missing else sum(values[name] for name in FIVE) / len(FIVE)
    normalised = None if missing else sum(normalise(name, values[name]) for name in FIVE) / len(FIVE)
    return Total("five-mean, raw", raw, missing), Total("five-mean, normalised", normalised, missing)


def _weighted(name: str, dimensions: Sequence[str], values: Mapping[str, float]) -> Total:
    missing = tuple(dimension for dimension in dimensions if dimension not in values)
    if missing:
        return Total(name, None, missing)
    weights = {dimension: _WEIGHTS.get(dimension, 1.0) for dimension in dimensions}
    parts = (weights[dimension] * normalise(dimension, values[dimension]) for dimension in dimensions)
    return Total(name, sum(parts) / sum(weights.values()), ())


def _join(name: str, *parts: tuple[Total, float]) -> Total:
    missing = tuple(dimension for total, _ in parts for dimension in total.missing)
    weighted = [(total.value, weight) for total, weight in parts if total.value is not None]
    if missing:
        return Total(name, None, missing)
    return Total(name, sum(value * weight for value, weight in weighted) / sum(weight for _, weight in weighted), ())
