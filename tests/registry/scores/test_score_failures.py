"""Result files of a suite that failed in part, or that summed over frames: what is said, and what is never imported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from score_files import entry, write

from hfq.registry.score_sources import read_score_files
from hfq.registry.scores.detect import read_result_file
from hfq.schema.errors import DuplicateVideoError, ScoreFileError, ScoreRangeError


def vbench(name: str, stated: Any, values: list[Any]) -> dict[str, Any]:
    return {name: [stated, [entry(f"a cat {n}-0", value) for n, value in enumerate(values)]]}


@pytest.mark.parametrize("frames", [2, 16, 33, 49, 81, 121])
@pytest.mark.parametrize(
    "name", ["subject_consistency", "background_consistency", "motion_smoothness", "imaging_quality"]
)
def test_sums_over_frames_are_named_and_never_per_cent(tmp_path: Path, name: str, frames: int) -> None:
    """Of 81 frames a sum divided by 100 is a possible value, and a false one."""
    top = 100 if name == "imaging_quality" else 1
    values = [share * top * frames for share in (0.93, 0.95, 0.97)]
    for stated in (0.95, 0.95 * top):
        file = write(tmp_path / "old.json", vbench(name, stated, values))
        with pytest.raises(ScoreRangeError) as caught:
            read_result_file(file)
        error = caught.value
        assert error.where == f"{file}: {name}"
        assert "for a cat 0-0 and 2 more" in str(error.found)
        todo = str(error.todo)
        assert f"about {frames} times their aggregate, as sums over frames are" in todo
        assert "by 100" not in todo
        assert "per cent" not in todo


def test_clips_of_other_lengths_are_sums_as_well(tmp_path: Path) -> None:
    lengths, value = (16, 81, 33), 0.9
    file = write(tmp_path / "old.json", vbench("subject_consistency", value, [value * n for n in lengths]))
    with pytest.raises(ScoreRangeError, match=r"about 43\.3 times their aggregate, as sums over frames"):
        read_result_file(file)


def test_a_hundred_times_the_aggregate_may_be_either(tmp_path: Path) -> None:
    file = write(tmp_path / "old.json", vbench("subject_consistency", 0.95, [94.0, 96.0]))
    with pytest.raises(ScoreRangeError, match=r"as sums over frames are.*, unless they are per cent") as caught:
        read_result_file(file)
    assert "by 100" not in str(caught.value)


@pytest.mark.parametrize("stated", [math.nan, 14.0, 0.3])
def test_nothing_is_advised_that_nothing_tells(tmp_path: Path, stated: float) -> None:
    file = write(tmp_path / "odd.json", vbench("subject_consistency", stated, [76.0, 40.0]))
    with pytest.raises(ScoreRangeError) as caught:
        read_result_file(file)
    assert "by 100" not in str(caught.value.todo)


def test_a_dimension_that_failed_is_left_out_by_name_and_the_rest_is_read(tmp_path: Path) -> None:
    document = {"color": [math.nan, []], **vbench("subject_consistency", 0.95, [0.94, 0.96]), "scene": [math.nan]}
    file = write(tmp_path / "run.json", document)
    assert "NaN" in file.read_text()
    found = read_result_file(file)
    assert [part.metric for part in found.scores] == ["subject_consistency"]
    assert [(one.file, one.metric, one.video) for one in found.omitted] == [
        (str(file), "color", None), (str(file), "scene", None),
    ]  # fmt: skip
    assert str(found.omitted[0]).startswith(f"{file}: color: NaN")
    assert read_score_files([file]).omitted == found.omitted


def test_a_video_that_failed_has_no_value_and_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "run.json", vbench("subject_consistency", math.nan, [0.94, math.nan, None]))
    found = read_result_file(file)
    (scores,) = found.scores
    assert (scores.stated, scores.recomputed, scores.unscored) == (None, 0.94, ("a cat 1-0", "a cat 2-0"))
    assert [(one.metric, one.video) for one in found.omitted] == [
        ("subject_consistency", "/data/videos/a cat 1-0.mp4"), ("subject_consistency", None),
    ]  # fmt: skip
    judged = write(tmp_path / "s2v.json", {"singleobj_1": {"gme_score": math.nan}, "singleobj_2": {"gme_score": 0.5}})
    result = read_result_file(judged)
    assert result.scores[0].unscored == ("singleobj_1",)
    assert [(one.metric, one.video) for one in result.omitted] == [("gme_score", "singleobj_1")]


@pytest.mark.parametrize(
    "document", [{"color": [math.nan, []]}, {"color": [math.nan, []], "scene": [math.nan, [entry("a-0", math.nan)]]}]
)
def test_a_file_in_which_nothing_has_a_value_is_refused_with_every_reason(tmp_path: Path, document: Any) -> None:
    file = write(tmp_path / "run.json", document)
    with pytest.raises(ScoreFileError, match="nothing in it has a value") as caught:
        read_result_file(file)
    assert all(f"{file}: {name}: NaN" in str(caught.value.found) for name in document)


@pytest.mark.parametrize(
    ("value", "what"),
    [(math.inf, "an infinite value"), (-math.inf, "an infinite value"), ("0.5", "not a number"), ([], "not a number")],
)
def test_a_value_that_is_none_is_named_with_dimension_video_and_file(tmp_path: Path, value: Any, what: str) -> None:
    file = write(tmp_path / "run.json", vbench("color", 0.5, [0.5, value]))
    with pytest.raises(ScoreFileError, match=what) as caught:
        read_result_file(file)
    assert caught.value.where == f"{file}: color: /data/videos/a cat 1-0.mp4"


@pytest.mark.parametrize(
    ("one", "other"), [("/a/x.mp4", "/b/x.mp4"), ("a b-0.mp4", "a_b-0.mp4"), ("x.mp4", "x.mp4"), ("x.mp4", "x.gif")]
)
@pytest.mark.parametrize("value", [0.5, None])
def test_a_video_that_occurs_twice_is_given_by_both_paths(tmp_path: Path, one: str, other: str, value: Any) -> None:
    listed = [{"video_path": one, "video_results": 0.5}, {"video_path": other, "video_results": value}]
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"color": [0.5, listed]}))
    with pytest.raises(DuplicateVideoError) as caught:
        read_result_file(file)
    assert (caught.value.where, caught.value.found) == (f"{file}: color", f"{one} and {other}")


def test_a_metric_in_two_files_names_both(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.json", vbench("color", 0.5, [0.5])) for n in range(2)]
    with pytest.raises(ScoreFileError) as caught:
        read_score_files(files)
    assert caught.value.found == f"{files[0]} and {files[1]}"
