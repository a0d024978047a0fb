"""Totals: the published table, sums by hand, and nothing from an incomplete set."""

from __future__ import annotations

from fractions import Fraction

import pytest
from score_files import metric

from hfq.registry.scores import totals
from hfq.registry.scores.values import MetricScores
from hfq.registry.scores.vbench import DIMENSIONS, QUALITY, SEMANTIC
from hfq.registry.scores.vbench_i2v import I2V, I2V_DIMENSIONS, I2V_QUALITY

BF16 = {
    "imaging_quality": 0.7027,
    "aesthetic_quality": 0.5456,
    "overall_consistency": 0.2263,
    "subject_consistency": 0.9331,
    "motion_smoothness": 0.9923,
}
W4A4 = {
    "imaging_quality": 0.6507,
    "aesthetic_quality": 0.5458,
    "overall_consistency": 0.2308,
    "subject_consistency": 0.5324,
    "motion_smoothness": 0.9803,
}


def test_the_five_means_of_the_published_table() -> None:
    """arXiv 2605.26628, its only table: means .6800 and .5880, a loss of 13.5 %; normalised .755 and .645, 14.6 %."""
    (raw, normalised), (raw4, normalised4) = totals.five_means(BF16), totals.five_means(W4A4)
    assert [round(part.value or 0, 4) for part in (raw, raw4)] == [0.6800, 0.5880]
    assert [round(part.value or 0, 3) for part in (normalised, normalised4)] == [0.755, 0.645]
    assert round(100 * (raw4.value or 0) / (raw.value or 1) - 100, 1) == -13.5
    assert round(100 * (normalised4.value or 0) / (normalised.value or 1) - 100, 1) == -14.6


def test_five_dimensions_make_no_vbench_total() -> None:
    quality, semantic, total = totals.vbench_totals(BF16)
    assert (quality.value, semantic.value, total.value) == (None, None, None)
    assert quality.missing == ("background_consistency", "temporal_flickering", "dynamic_degree")
    assert total.missing == (*quality.missing, *semantic.missing)
    assert len(semantic.missing) == 8
    assert totals.five_means({"imaging_quality": 0.7})[0].missing == totals.FIVE[1:]


def test_quality_alone_when_only_semantics_are_missing() -> None:
    quality, semantic, total = totals.vbench_totals(dict.fromkeys(QUALITY, 0.9))
    assert quality.value is not None
    assert (semantic.value, total.value, total.missing) == (None, None, SEMANTIC)


def test_the_vbench_total_by_hand() -> None:
    # Every dimension half way through its range, but for two.
    values = {name: sum(totals.RANGES[name]) / 2 for name in DIMENSIONS}
    values |= {"dynamic_degree": 1.0, "scene": 0.8222}
    quality, semantic, total = totals.vbench_totals(values)
    expected_quality = (6 * Fraction(1, 2) + Fraction(1, 2)) / Fraction(13, 2)
    expected_semantic = (8 * Fraction(1, 2) + 1) / 9
    assert quality.value == pytest.approx(float(expected_quality))
    assert semantic.value == pytest.approx(float(expected_semantic))
    assert total.value == pytest.approx(float((4 * expected_quality + expected_semantic) / 5))


def test_the_i2v_total_by_hand_ignores_flicker() -> None:
    values = {name: sum(totals.RANGES[name]) / 2 for name in I2V_DIMENSIONS}
    values |= {"camera_motion": 1.0, "temporal_flickering": 0.0}
    i2v, quality, total = totals.i2v_totals(values)
    expected = (Fraction(1, 10) + 1) / Fraction(21, 10)
    assert i2v.value == pytest.approx(float(expected))
    assert quality.value == pytest.approx(0.5)
    assert total.value == pytest.approx(float((expected + Fraction(1, 2)) / 2))
    del values["temporal_flickering"]
    assert totals.i2v_totals(values)[2].value == total.value
    del values["i2v_subject"]
    assert totals.i2v_totals(values)[2].missing == ("i2v_subject",)
    assert set(I2V) | set(I2V_QUALITY) == set(I2V_DIMENSIONS) - {"temporal_flickering"}


def test_normalisation_is_not_clamped() -> None:
    assert totals.normalise("motion_smoothness", 1.0) > 1
    assert totals.normalise("subject_consistency", 0.0) < 0


def test_stated_and_recomputed_aggregates_are_apart() -> None:
    videos = metric({"a": 0.5, "b": 0.9}).videos
    scores = [
        MetricScores(None, "vbench", "subject_consistency", "higher", "", 0.82, videos),
        MetricScores(None, "vbench", "color", "higher", "", 0.4, ()),
    ]
    assert totals.aggregates(scores, "stated") == {"subject_consistency": 0.82, "color": 0.4}
    assert totals.aggregates(scores, "recomputed") == {"subject_consistency": pytest.approx(0.7)}
