"""Files of the benchmarks, with everything in them that has misled an importer before."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from score_files import entry, write

from hfq.registry.scores import opens2v
from hfq.registry.scores.detect import read_score_file
from hfq.registry.scores.values import MetricScores, match_key
from hfq.schema.errors import (
    DuplicateKeyError,
    DuplicateVideoError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    ScoreFileError,
    TooLargeError,
    TruncatedFileError,
    UnknownMetricError,
    UnreadableFileError,
)

PROMPTS = ("a cat on a sofa", "a dog at 3.5 km/h")
NAMES = [f"{prompt.replace('/', ' per ')}-{sample}" for prompt in PROMPTS for sample in range(2)]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path, document: Any, *, info: Any = None, prompt_set: str | None = None) -> dict[str, MetricScores]:
    source = write(path / "results_2026-01-01-10:11:12_eval_results.json", document)
    full_info = None if info is None else write(path / "results_full_info.json", info)
    return {part.metric: part for part in read_score_file(source, full_info, prompt_set=prompt_set)}


def values(scores: MetricScores) -> list[float]:
    return [video.value for video in scores.videos]


# --- VBench ----------------------------------------------------------------------------------------------------------


def test_imaging_quality_is_brought_to_one_scale(tmp_path: Path) -> None:
    new = read(tmp_path, {"imaging_quality": [0.70, [entry("a-0", 68.0), entry("b-0", 72.0)]]})["imaging_quality"]
    assert values(new) == [0.68, 0.72]
    assert new.stated == 0.70
    assert new.recomputed == pytest.approx(0.70)
    assert new.scale == "0-1; videos divided by 100"
    old = read(tmp_path, {"imaging_quality": [70.0, [entry("a-0", 68.0), entry("b-0", 72.0)]]})["imaging_quality"]
    assert (values(old), old.stated) == ([0.68, 0.72], 0.70)
    assert old.scale == "0-1; videos and aggregate divided by 100"
    noise = read(tmp_path, {"imaging_quality": [0.005, [entry("a-0", 0.4), entry("b-0", 0.6)]]})["imaging_quality"]
    assert values(noise) == pytest.approx([0.004, 0.006])
    unit = read(tmp_path, {"imaging_quality": [0.7, [entry("a-0", 0.68), entry("b-0", 0.72)]]})["imaging_quality"]
    assert (values(unit), unit.scale) == ([0.68, 0.72], "0-1, as in the file")


@pytest.mark.parametrize("aggregate", [0.65, 65.0])
def test_videos_of_imaging_quality_on_two_scales_are_refused(tmp_path: Path, aggregate: float) -> None:
    mixed = {"imaging_quality": [aggregate, [entry("a b-0", 66.0), entry("a c-0", 0.64)]]}
    with pytest.raises(ScoreFileError, match=r"videos on two scales; .* 66 for a b-0 and 0\.64 for a c-0"):
        read(tmp_path, mixed)
    bad = {"imaging_quality": [0.3332, [entry("a b-0", 66.0), entry("a c-0", 0.64)]]}  # a clip of noise
    assert values(read(tmp_path, bad)["imaging_quality"]) == pytest.approx([0.66, 0.0064])


def test_an_aggregate_over_frames_is_kept_beside_the_mean_over_videos(tmp_path: Path) -> None:
    # Clips of 3 and 9 frames compare 2 and 8: (2 * 0.5 + 8 * 0.9) / 10.
    scores = read(tmp_path, {"subject_consistency": [0.82, [entry("a-0", 0.5), entry("b-0", 0.9)]]})
    assert scores["subject_consistency"].stated == 0.82
    assert scores["subject_consistency"].recomputed == pytest.approx(0.7)


def test_booleans_extra_keys_and_videos_without_a_value(tmp_path: Path) -> None:
    document = {
        "dynamic_degree": [0.5, [entry("a-0", True), entry("b-0", False)]],
        "human_action": [0.5, [entry("a-0", True, cor_num_per_video=1), entry("b-0", None, note=[])], {"more": 1}],
    }
    scores = read(tmp_path, document)
    assert values(scores["dynamic_degree"]) == [1.0, 0.0]
    assert (values(scores["human_action"]), scores["human_action"].unscored) == ([1.0], ("b-0",))


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    scores = read(tmp_path, {"aesthetic_quality": [0.5, [entry("a-0", 0.5)]], "motion_smoothness": [0.9]})
    assert set(scores) == {"aesthetic_quality", "motion_smoothness"}
    assert scores["motion_smoothness"].videos == ()
    assert (scores["motion_smoothness"].stated, scores["motion_smoothness"].recomputed) == (0.9, None)
    assert scores["aesthetic_quality"].prompt_set is None


def test_prompts_come_from_the_full_info_file_also_for_rewritten_paths(tmp_path: Path) -> None:
    info = [
        {"prompt_en": PROMPTS[0], "dimension": ["color"], "video_list": [f"v/{name}.mp4" for name in NAMES[:2]]},
        {"prompt_en": PROMPTS[1], "dimension": ["color"], "video_list": f"v/{NAMES[2]}.mp4", "category": "animal"},
        {"prompt_en": "a man watching videos", "dimension": ["color"]},
    ]
    rewritten = [
        {"video_path": f"/data/frames/{NAMES[0].replace(' ', '_')}", "video_results": 0.1},
        {"video_path": f"C:\\data\\{NAMES[1]}.mp4", "video_results": 0.2},
        {"video_path": f"/data/{NAMES[2]}.mp4", "video_results": 0.3},
        {"video_path": "/data/frames/a_man_watching_frames-0", "video_results": 0.4},
        {"video_path": "/data/x/unlisted.gif", "video_results": 0.5},
    ]
    videos = read(tmp_path, {"color": [0.2, rewritten]}, info=info, prompt_set="mine")["color"].videos
    hashes = [sha256(PROMPTS[0]), sha256(PROMPTS[0]), sha256(PROMPTS[1]), sha256("a man watching videos"), None]
    assert [video.prompt_sha256 for video in videos] == hashes
    assert [video.sample for video in videos] == [0, 1, 0, 0, None]
    assert [video.category for video in videos] == [None, None, "animal", None, None]
    assert videos[0].key == match_key(NAMES[0]) == videos[0].stem
    assert videos[2].stem == "a dog at 3.5 km per h-0"
    assert videos[4].stem == "unlisted"


def test_without_a_full_info_file_the_prompt_is_the_file_name(tmp_path: Path) -> None:
    document = {"scene": [0.2, [entry(name, 0.2) for name in ("a cat on a sofa-3", "a_cat-3", "clip7", "a red cat")]]}
    videos = read(tmp_path, document)["scene"].videos
    assert [video.prompt_sha256 for video in videos] == [sha256("a cat on a sofa"), None, None, None]
    assert [video.sample for video in videos] == [3, 3, None, None]


def test_vbench_metrics_on_another_prompt_set(tmp_path: Path) -> None:
    document = {"subject_consistency": [0.9, [entry("singleobj_1", 0.9), entry("multihuman_15", 0.9)]]}
    scores = read(tmp_path, document)["subject_consistency"]
    assert (scores.prompt_set, scores.metric_suite) == ("opens2v-eval", "vbench")
    assert [video.category for video in scores.videos] == ["singleobj", "multihuman"]
    prompts = {"singleobj_1": {"prompt": "a toy", "img_paths": ["a.png"], "synthesis_flag": 0, "class_label": ["Toy"]}}
    known = read(tmp_path, document, info=prompts)["subject_consistency"].videos
    assert [video.prompt_sha256 for video in known] == [sha256("a toy"), None]


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"colour": [0.5, [entry("a-0", 0.5)]]}, UnknownMetricError),
        ({"color": [0.5, [entry("a-0", 0.5), entry("a-0", 0.5)]]}, DuplicateVideoError),
        ({"color": [0.5, [entry("a b-0", 0.5), entry("a_b-0", 0.5)]]}, DuplicateVideoError),
        ({"color": [0.5, []], "Color": [0.5, []]}, ScoreFileError),
        ({"color": [0.5, []], "scene": 0.5}, ScoreFileError),
        ({"color": [0.5, []], "scene": []}, ScoreFileError),
        ({"color": [0.5, "x"]}, ScoreFileError),
        ({"color": [0.5, ["x"]]}, ScoreFileError),
        ({"color": [0.5, [{"video_path": 1, "video_results": 1}]]}, ScoreFileError),
        ({"color": [0.5, [{"video_path": "a-0.mp4"}]]}, ScoreFileError),
        ({"color": [0.5, [entry("a-0", "0.5")]]}, ScoreFileError),
        ({"color": [0.5, [entry("a-0", 10**400)]]}, ScoreFileError),
        ({"color": [0.5, []], "scene": [None, []]}, ScoreFileError),
    ],
)
def test_damaged_vbench_files_are_refused(tmp_path: Path, document: Any, error: type[HfqError]) -> None:
    with pytest.raises(error):
        read(tmp_path, document)


@pytest.mark.parametrize(
    "info",
    [
        "x",
        ["x"],
        [{"prompt_en": 1}],
        [{"prompt_en": "a", "video_list": [1]}],
        [{"prompt_en": "a", "video_list": 1}],
        [{"prompt_en": "a", "image_type": 1}],
        [{"prompt_en": "a", "video_list": ["v.mp4"]}, {"prompt_en": "b", "video_list": ["v.mp4"]}],
        {"a": {"img_paths": []}},
    ],
)
def test_damaged_prompt_files_are_refused(tmp_path: Path, info: Any) -> None:
    with pytest.raises(ScoreFileError):
        read(tmp_path, {"color": [0.5, []]}, info=info)


# --- VBench-I2V ------------------------------------------------------------------------------------------------------


def test_i2v_is_told_by_its_dimensions_its_images_or_its_prompts(tmp_path: Path) -> None:
    shared = {"subject_consistency": [0.9, [entry("a boat-0", 0.9)]]}
    info = [{"prompt_en": "a boat", "dimension": [], "image_name": "boat.jpg", "image_type": "transportation"}]
    assert read(tmp_path, shared)["subject_consistency"].metric_suite == "vbench"
    by_prompts = read(tmp_path, shared, info=info)["subject_consistency"]
    assert (by_prompts.metric_suite, by_prompts.videos[0].category) == ("vbench-i2v", "transportation")
    with_image = {"subject_consistency": [0.9, [entry("a boat-0", 0.9, image_path="boat.jpg")]]}
    assert read(tmp_path, with_image)["subject_consistency"].metric_suite == "vbench-i2v"
    both = read(tmp_path, shared | {"i2v_subject": [0.95, [entry("a boat-0", 0.95, image_path="boat.jpg")]]})
    assert {part.metric_suite for part in both.values()} == {"vbench-i2v"}


def test_i2v_names_of_the_official_scorer(tmp_path: Path) -> None:
    document = {
        "Video-Image Subject Consistency": [0.95, []],
        "Video-Text Camera Motion": [0.4, []],
        "Subject Consistency": [0.9, []],
        "Imaging Quality": [0.7, [entry("a-0", 70)]],
    }
    scores = read(tmp_path, document)
    assert list(scores) == ["i2v_subject", "camera_motion", "subject_consistency", "imaging_quality"]
    assert values(scores["imaging_quality"]) == [0.7]


def test_camera_motion_with_a_table_of_types_before_the_videos(tmp_path: Path) -> None:
    video = entry("a boat, camera pans left-0", 1.0, prompt_type="pan_left", predict_type=["pan_left"])
    scores = read(tmp_path, {"camera_motion": [1.0, {"pan_left": 1.0}, [video]]})["camera_motion"]
    assert values(scores) == [1.0]
    assert values(read(tmp_path, {"camera_motion": [1.0, [video]]})["camera_motion"]) == [1.0]


def test_i2v_has_no_text_dimensions(tmp_path: Path) -> None:
    with pytest.raises(UnknownMetricError, match="overall_consistency"):
        read(tmp_path, {"i2v_subject": [0.9, []], "overall_consistency": [0.2, []]})


# --- OpenS2V ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"singleobj_1": {"aes_score": 0.5}, "multiface_2": {"aes_score": 0.25}}, {"aes_score": [0.5, 0.25]}),
        ({"singleface_1": {"cur_score": 0.4, "arc_score": 0}}, {"cur_score": [0.4], "arc_score": [0.0]}),
        ({"singleobj_1": {"gme_score": -0.1}}, {"gme_score": [-0.1]}),
        ({"singleobj_1": {"motion_fb": 0.2, "motion_lk": 3.5}}, {"motion_fb": [0.2], "motion_lk": [3.5]}),
        ({"singleobj_1": {"retrieval_score": 0.02}}, {"retrieval_score": [0.02]}),
        ({"singleobj_1": "4", "humanobj_3": " 3\n"}, {"natural_score": [4.0, 3.0]}),
    ],
)
def test_opens2v_files(tmp_path: Path, document: Any, expected: dict[str, list[float]]) -> None:
    # Named like a VBench result: the structure decides.
    scores = read(tmp_path, document)
    assert {name: values(part) for name, part in scores.items()} == expected
    assert {(part.metric_suite, part.prompt_set, part.stated) for part in scores.values()} == {
        ("opens2v", "opens2v-eval", None)
    }


def test_a_judge_that_answered_no_number(tmp_path: Path) -> None:
    answers = {
        "singleobj_1": "4",
        "singleobj_2": "error",
        "singleobj_3": "I would say 4",
        "singleobj_4": "7",
        "multiface_1": "5.5",
    }
    scores = read(tmp_path, answers)["natural_score"]
    assert values(scores) == [4.0]
    assert scores.unscored == ("singleobj_2", "singleobj_3", "singleobj_4", "multiface_1")


def test_three_judge_runs_become_one_metric(tmp_path: Path) -> None:
    answers = [{"singleobj_1": a, "singleobj_2": b} for a, b in (("4", "2"), ("5", "error"), ("3", "2"))]
    runs = [read(tmp_path, run)["natural_score"] for run in answers]
    joined = opens2v.mean_of_runs(runs)
    assert values(joined) == [4.0]
    assert joined.unscored == ("singleobj_2",)
    assert "3 runs" in joined.scale
    with pytest.raises(ScoreFileError):
        opens2v.mean_of_runs([])
    with pytest.raises(ScoreFileError):
        opens2v.mean_of_runs([runs[0], read(tmp_path, {"singleobj_1": {"aes_score": 1}})["aes_score"]])


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"singleobj_1": {"aes_score": 0.5, "beauty": 1}}, UnknownMetricError),
        ({"singleobj_1": {"aes_score": "0.5"}}, ScoreFileError),
        ({"singleobj_1": {"aes_score": True}}, ScoreFileError),
        ({"singleobj_1": {"aes_score": 10**400}}, ScoreFileError),
        ({"a b": {"aes_score": 1}, "a_b": {"aes_score": 1}}, DuplicateVideoError),
        ({"singleobj_1": {"aes_score": 0.5}, "singleobj_2": 3}, ScoreFileError),
        ({"singleobj_1": "error"}, ScoreFileError),
        ({}, ScoreFileError),
        ([], ScoreFileError),
        ([0.5, [entry("a-0", 0.5)]], ScoreFileError),
        (1, ScoreFileError),
        ({"color": 0.5}, ScoreFileError),
    ],
)
def test_what_no_suite_writes_is_refused(tmp_path: Path, document: Any, error: type[HfqError]) -> None:
    with pytest.raises(error):
        read(tmp_path, document)


@pytest.mark.parametrize("videos", [[], [entry("a b-0", 0.5)]])
def test_a_null_aggregate_names_its_dimension(tmp_path: Path, videos: Any) -> None:
    with pytest.raises(ScoreFileError, match=r"color: not a number; found null"):
        read(tmp_path, {"color": [None, videos]})


def test_a_null_is_a_video_without_a_value(tmp_path: Path) -> None:
    scores = read(tmp_path, {"singleobj_1": {"aes_score": None}, "singleobj_2": {"aes_score": 0.5}})["aes_score"]
    assert (values(scores), scores.unscored) == ([0.5], ("singleobj_1",))


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"color": [NaN, []]}', MalformedFileError),
        (b'{"color": [0.5, [', TruncatedFileError),
        (b'{"color": [0.5, []], "color": [0.6, []]}', DuplicateKeyError),
        (b'{"color": ' + b"[" * 5000 + b"]" * 5000 + b"}", MalformedFileError),
        (b'{"color": [0.5, [' + b"[]," * 1_000_000 + b"[]]]}", TooLargeError),
        (b"\xff\xfe{}", MalformedFileError),
        (b"", MalformedFileError),
    ],
)
def test_hostile_bytes(tmp_path: Path, text: bytes, error: type[HfqError]) -> None:
    (tmp_path / "scores.json").write_bytes(text)
    with pytest.raises(error):
        read_score_file(tmp_path / "scores.json")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(UnreadableFileError):
            read_score_file(path)
    with pytest.raises(MissingPathError):
        read_score_file(tmp_path / "gone")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES_OF_FIELDS = st.sampled_from(["video_path", "video_results", "aes_score", "cur_score", "x"])
VIDEOS = st.fixed_dictionaries({"video_path": st.text() | LEAVES, "video_results": st.floats(0, 100) | LEAVES})
DIMENSIONS = st.sampled_from(["color", "i2v_subject", "imaging_quality", "Imaging Quality", "camera_motion", "x"])
PARTS = LEAVES | st.lists(VIDEOS | LEAVES, max_size=3) | st.dictionaries(NAMES_OF_FIELDS, LEAVES, max_size=2)
DOCUMENTS = (
    st.dictionaries(DIMENSIONS, st.lists(PARTS, max_size=3) | LEAVES, max_size=3)
    | st.dictionaries(st.text(), st.dictionaries(NAMES_OF_FIELDS, LEAVES, max_size=3) | LEAVES, max_size=3)
    | PARTS
)


@given(document=DOCUMENTS, info=st.none() | st.lists(PARTS, max_size=2) | PARTS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_read_or_refused_by_name(tmp_path: Path, document: Any, info: Any) -> None:
    source, full_info = write(tmp_path / "scores.json", document), write(tmp_path / "info.json", info)
    try:
        scores = read_score_file(source, None if info is None else full_info)
    except HfqError as error:
        code = error.exit_code
    else:
        code = 0
        assert all(isinstance(video.value, float) for part in scores for video in part.videos)
    assert code in (0, 1)
