"""Pixel measures and subject consistency against plain loops, and the clips they are taken from."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from hfq.registry.scores import measure
from hfq.registry.scores.frames import Frames, list_clips, read_frames
from hfq.registry.scores.subject import subject_consistency, subject_scores
from hfq.schema.errors import (
    ClipMismatchError,
    ClipTooSmallError,
    FeatureShapeError,
    MalformedFileError,
    MissingPathError,
    TooLargeError,
    UnreadableFileError,
)

RNG = np.random.default_rng(7)


def noise(frames: int = 3, height: int = 24, width: int = 20) -> Frames:
    return RNG.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def nearby(frames: Frames, amount: int = 20) -> Frames:
    moved = frames.astype(int) + RNG.integers(-amount, amount + 1, frames.shape)
    return np.clip(moved, 0, 255).astype(np.uint8)


def write_clip(path: Path, frames: Frames) -> Path:
    """Lossless: what is read back is what was written."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def slow_ssim(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """One picture [H, W], window by window, in float64."""
    taps = np.array([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)])
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x = first[top : top + 11, left : left + 11].astype(float)
            y = second[top : top + 11, left : left + 11].astype(float)
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            vxy = (window * (x - mx) * (y - my)).sum()
            a, b = (2 * mx * my + 6.5025) * (2 * vxy + 58.5225), (mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225)
            values.append(a / b)
    return float(np.mean(values))


def slow_clip_ssim(first: Frames, second: Frames) -> float:
    return float(
        np.mean([slow_ssim(a[..., c], b[..., c]) for a, b in zip(first, second, strict=True) for c in range(3)])
    )


# --- measures --------------------------------------------------------------------------------------------------------


def test_psnr() -> None:
    clip = noise()
    assert measure.psnr(clip, clip) == measure.MAX_PSNR_DB
    shifted = np.full((2, 12, 12, 3), 100, np.uint8)
    assert measure.psnr(shifted + np.uint8(5), shifted) == pytest.approx(20 * math.log10(255 / 5))
    other = nearby(clip)
    mse = np.mean((clip.astype(float) - other.astype(float)) ** 2)
    assert measure.psnr(clip, other) == pytest.approx(10 * math.log10(255**2 / mse))
    assert measure.psnr(np.zeros_like(clip), np.full_like(clip, 255)) == 0


def test_ssim_is_that_of_a_plain_loop() -> None:
    clip = noise()
    for other in (nearby(clip), nearby(clip, 3), noise(), 255 - clip):
        assert measure.ssim(clip, other) == pytest.approx(slow_clip_ssim(clip, other), abs=2e-6)
    assert measure.ssim(clip, clip) == pytest.approx(1, abs=1e-6)


def test_ssim_of_flat_bright_pictures_keeps_small_variances() -> None:
    """A variance of 1 around 250 is lost when squares are subtracted in single precision."""
    flat = (250 + RNG.integers(0, 3, (1, 16, 16, 3))).astype(np.uint8)
    other = (250 + RNG.integers(0, 3, (1, 16, 16, 3))).astype(np.uint8)
    assert measure.ssim(flat, other) == pytest.approx(slow_clip_ssim(flat, other), abs=2e-6)


def test_a_clips_own_measures() -> None:
    clip = nearby(np.repeat(noise(1), 4, axis=0))
    changes = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in zip(clip[1:], clip[:-1], strict=True)]
    assert measure.temporal_flicker(clip) == pytest.approx((255 - np.mean(changes)) / 255)
    similarity = measure.frame_similarity(clip)
    firsts = np.repeat(clip[:1], 3, axis=0)
    assert similarity is not None
    assert similarity.previous == pytest.approx(slow_clip_ssim(clip[1:], clip[:-1]), abs=2e-6)
    assert similarity.first == pytest.approx(slow_clip_ssim(clip[1:], firsts), abs=2e-6)
    still = np.repeat(clip[:1], 3, axis=0)
    assert measure.temporal_flicker(still) == 1
    assert measure.temporal_flicker(clip[:1]) is None
    assert measure.frame_similarity(clip[:1]) is None


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ClipMismatchError, match="3 frames of 20x24"):
        measure.psnr(noise(), noise(4))
    with pytest.raises(ClipMismatchError):
        measure.ssim(noise(), noise(3, 20, 24))
    with pytest.raises(ClipTooSmallError):
        measure.ssim(noise(1, 10, 40), noise(1, 10, 40))


def test_folders(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    base = {"a cat-0": noise(), "a cat-1": noise(), "gone": noise(), "one": noise(1)}
    made = {name.replace(" ", "_"): nearby(clip) for name, clip in base.items() if name != "gone"}
    for name, clip in base.items():
        write_clip(theirs / f"{name}.mkv", clip)
    for name, clip in (made | {"extra": noise()}).items():
        write_clip(ours / f"{name}.mkv", clip)
    (ours / "notes.txt").write_text("x")
    told: list[str] = []
    result = measure.measure_folders(ours, theirs, progress=told.append, prompt_set="mine")
    assert told == ["a_cat-0", "a_cat-1", "one"]
    assert (result.only_clips, result.only_reference) == (("extra",), ("gone",))
    variant = {part.metric: part for part in result.variant}
    reference = {part.metric: part for part in result.reference}
    assert set(variant) == set(measure.SCALES)
    assert set(reference) == set(measure.SCALES) - {"psnr", "ssim"}
    assert {part.prompt_set for part in (*result.variant, *result.reference)} == {"mine"}
    assert {part.metric_suite for part in result.variant} == {"hfq"}
    psnr = [video.value for video in variant["psnr"].videos]
    assert psnr == [measure.psnr(made[name], base[name.replace("_", " ")]) for name in told]
    flicker = [measure.temporal_flicker(base[name]) for name in ("a cat-0", "a cat-1")]
    assert [video.value for video in reference["temporal_flicker"].videos] == flicker
    similarity = measure.frame_similarity(made["a_cat-0"])
    assert similarity is not None
    assert variant["frame_to_frame_ssim"].videos[0].value == similarity.previous
    assert variant["first_frame_ssim"].videos[0].value == similarity.first
    assert variant["temporal_flicker"].unscored == reference["temporal_flicker"].unscored == ("one",)


def test_folders_without_pairs(tmp_path: Path) -> None:
    for name, clip in (("a", noise()), ("b", noise(2))):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / f"{name}.mkv", clip)
    with pytest.raises(ClipMismatchError, match="no clip has a reference"):
        measure.measure_folders(tmp_path / "a", tmp_path / "b")
    write_clip(tmp_path / "b" / "a.mkv", noise(2))
    with pytest.raises(ClipMismatchError, match=r"a\.mkv"):
        measure.measure_folders(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "a.mp4").write_bytes(b"")
    with pytest.raises(MalformedFileError, match=r"two clips of one name; found a\.mkv and a\.mp4; .* suffixes"):
        list_clips(tmp_path / "a")
    with pytest.raises(MissingPathError):
        list_clips(tmp_path / "none")


# --- decoding --------------------------------------------------------------------------------------------------------


def test_frames_are_read_as_written_and_within_limits(tmp_path: Path) -> None:
    clip = noise()
    path = write_clip(tmp_path / "a.mkv", clip)
    assert np.array_equal(read_frames(path), clip)
    assert np.array_equal(read_frames(path, limit=clip.size), clip)
    with pytest.raises(TooLargeError):
        read_frames(path, limit=clip.size - 1)


def test_what_is_no_clip(tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(os.urandom(4096))
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = write_clip(tmp_path / "whole.mkv", noise()).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[:200])
    with av.open(str(tmp_path / "sound.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name in ("junk.mp4", "empty.mp4", "cut.mkv", "sound.mka"):
        with pytest.raises(MalformedFileError):
            read_frames(tmp_path / name)
    os.mkfifo(tmp_path / "fifo.mp4")
    for path in (tmp_path / "fifo.mp4", tmp_path):
        with pytest.raises(UnreadableFileError):
            read_frames(path)
    with pytest.raises(MissingPathError):
        read_frames(tmp_path / "none.mp4")


# --- subject consistency ---------------------------------------------------------------------------------------------


def slow_subject(features: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """VBench's loop, frame by frame."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return max(0.0, dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))

    rows = features.tolist()
    previous = [cosine(rows[i - 1], rows[i]) for i in range(1, len(rows))]
    first = [cosine(rows[0], rows[i]) for i in range(1, len(rows))]
    both = [(a + b) / 2 for a, b in zip(previous, first, strict=True)]
    return sum(previous) / len(previous), sum(first) / len(first), sum(both) / len(both)


def test_subject_consistency_in_two_parts() -> None:
    features = RNG.normal(size=(9, 16)) + 0.3
    found = subject_consistency(features.astype(np.float32))
    assert (found.previous, found.first, found.score) == pytest.approx(slow_subject(features), abs=1e-6)
    assert found.compared == 8
    skipped = subject_consistency(features, skip=3)
    assert (skipped.previous, skipped.first, skipped.score) == pytest.approx(slow_subject(features[3:]))


def test_drift_and_flicker_are_told_apart() -> None:
    """Both clips have nearly the same VBench score; only the parts say what is wrong with them."""
    angles = np.linspace(0, 1.5, 40)
    drift = subject_consistency(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    jump = subject_consistency(np.array([[1.0, 0.0], [0.7702, math.sqrt(1 - 0.7702**2)]] * 20))
    assert drift.previous > 0.999
    assert drift.first < 0.7
    assert jump.first > jump.previous
    assert abs(drift.score - jump.score) < 0.001


def test_opposite_features_count_as_nothing_not_as_less() -> None:
    found = subject_consistency([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert (found.previous, found.first) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("features", "skip"),
    [
        ([[1.0, 2.0]], 0),
        ([1.0, 2.0], 0),
        ([[1.0], [2.0]], 1),
        ([[1.0], [2.0]], -1),
        ([[], []], 0),
        ([[1.0], [0.0]], 0),
        ([[1.0], [math.nan]], 0),
        ([[1.0], [math.inf]], 0),
    ],
)
def test_features_that_are_refused(features: list[object], skip: int) -> None:
    with pytest.raises(FeatureShapeError, match="clip 7"):
        subject_scores({"clip 7": np.array(features, dtype=float)}, skip=skip)


def test_subject_scores_of_two_extractors_have_two_suites() -> None:
    features = {"singleobj_1": RNG.normal(size=(4, 8)) + 1, "singleobj_2": RNG.normal(size=(6, 8)) + 1}
    scores = {part.metric: part for part in subject_scores(features, extractor="dino-vitb16")}
    assert set(scores) == {"subject_consistency", "subject_previous", "subject_first"}
    whole, previous, first = (
        np.array([video.value for video in scores[name].videos])
        for name in ("subject_consistency", "subject_previous", "subject_first")
    )
    assert whole == pytest.approx((previous + first) / 2)
    assert scores["subject_first"].prompt_set == "opens2v-eval"
    suites = {subject_scores(features, extractor=name, skip=skip)[0].metric_suite for name in "ab" for skip in (0, 1)}
    assert len(suites) == 4
