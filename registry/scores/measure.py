"""Pixel measures of clips: PSNR and SSIM against a reference, flicker and similarity of a clip's own frames.

They say how much the pixels moved, not whether the clip is good: two equally good clips of one prompt can have a low
PSNR. None is a VBench score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from hfq.schema.errors import ClipMismatchError, ClipTooSmallError

from .frames import ClipFolder, Frames, list_clips, read_frames
from .full_info import FullInfo, infer_prompt_set, make_videos
from .pairing import Matched, match_clips
from .values import MetricScores, VideoScore, split_sample

if TYPE_CHECKING:  # a second to import, and most of the registry does without
    import torch

__all__ = [
    "MAX_PSNR_DB",
    "SCALES",
    "SUITE",
    "FolderClip",
    "FrameSimilarity",
    "Measured",
    "describe_clips",
    "frame_similarity",
    "measure_folders",
    "measure_pairs",
    "no_pair",
    "psnr",
    "ssim",
    "temporal_flicker",
]

SUITE: Final = "hfq"
MAX_PSNR_DB: Final = 100.0
"""Stands for equal pixels, whose PSNR is infinite and has no place in a mean or in JSON."""

_SSIM: Final = "Wang 2004: Gaussian window 11, sigma 1.5, mean of R, G, B"
SCALES: Final = {
    "psnr": f"dB, one mean squared error per clip over RGB 0-255, {MAX_PSNR_DB:.0f} for equal pixels",
    "ssim": f"mean over frames ({_SSIM})",
    "temporal_flicker": "(255 - mean absolute difference of neighbouring frames) / 255: VBench's formula, on moving "
    "clips as well",
    "frame_to_frame_ssim": f"mean SSIM of neighbouring frames ({_SSIM})",
    "first_frame_ssim": f"mean SSIM of later frames with the first ({_SSIM})",
}
"""Metric and what it is. The first two need a reference, the others are a clip's own."""

_WINDOW: Final = 11
_SIGMA: Final = 1.5
_WEIGHTS: Final = [math.exp(-((index - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for index in range(_WINDOW)]
_TAPS: Final = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]
_C1: Final = (0.01 * 255) ** 2
_C2: Final = (0.03 * 255) ** 2


@dataclass(frozen=True, slots=True)
class FrameSimilarity:
    """Means over the frames after the first, in -1..1."""

    previous: float
    first: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What pairs of clips give.

    Args:
        variant: all metrics. reference: the reference's own ones, to pair with.
        identical: stems of the clips that have exactly the pixels of their reference.
        only_clips, only_reference: stems of clips without a counterpart.
    """

    variant: list[MetricScores]
    reference: list[MetricScores]
    identical: tuple[str, ...]
    only_clips: tuple[str, ...] = ()
    only_reference: tuple[str, ...] = ()


def psnr(frames: Frames, reference: Frames) -> float:
    """Peak signal-to-noise ratio in dB of uint8 clips [T, H, W, 3], from one mean squared error over all of it.

    Raises:
        ClipMismatchError: not of one shape.
    """
    _require_same_shape(frames, reference)
    # Exact: the squared error of a frame is an integer below 2**53.
    total = sum(
        int(np.square(ours.astype(np.int64) - theirs).sum()) for ours, theirs in zip(frames, reference, strict=True)
    )
    return MAX_PSNR_DB if total == 0 else min(MAX_PSNR_DB, 10 * math.log10(255**2 * frames.size / total))


def ssim(frames: Frames, reference: Frames) -> float:
    """Mean structural similarity of uint8 clips [T, H, W, 3] (Wang et al. 2004, K1 = 0.01, K2 = 0.03, L = 255).

    Windows that leave the picture are not counted.

    Raises:
        ClipMismatchError: not of one shape. ClipTooSmallError: smaller than the window.
    """
    _require_same_shape(frames, reference)
    pairs = zip(frames, reference, strict=True)
    return _mean([_Moments(ours).ssim(_Moments(theirs)) for ours, theirs in pairs])


def temporal_flicker(frames: Frames) -> float | None:
    """(255 - mean absolute difference of neighbouring frames) / 255, in 0..1; None for a single frame."""
    if len(frames) < 2:
        return None
    total = sum(int(np.abs(b.astype(np.int16) - a).sum(dtype=np.int64)) for a, b in pairwise(frames))
    return 1 - total / (frames[1:].size * 255)


def frame_similarity(frames: Frames) -> FrameSimilarity | None:
    """Mean SSIM of every later frame with the one before it and with the first; None for a single frame.

    Raises:
        ClipTooSmallError
    """
    if len(frames) < 2:
        return None
    moments = map(_Moments, frames)
    first = before = next(moments)
    previous_values, first_values = [], []
    for frame in moments:
        previous_values.append(frame.ssim(before))
        first_values.append(previous_values[-1] if before is first else frame.ssim(first))
        before = frame
    return FrameSimilarity(_mean(previous_values), _mean(first_values))


def _require_same_shape(frames: Frames, reference: Frames) -> None:
    if frames.shape != reference.shape:
        raise ClipMismatchError(
            "not the reference's size or length", expected=_size(reference), found=_size(frames),
            todo="generate both with the same frames, height and width",
        )  # fmt: skip


def _size(frames: Frames) -> str:
    return f"{frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]}"


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


class _Moments:
    """A frame [H, W, 3] with its means and variances under the window, fp32 [3, H - 10, W - 10]."""

    def __init__(self, frame: Frames) -> None:
        import torch

        if min(frame.shape[:2]) < _WINDOW:
            raise ClipTooSmallError(
                "smaller than the window of SSIM", expected=f"at least {_WINDOW}x{_WINDOW}",
                found=f"{frame.shape[1]}x{frame.shape[0]}",
            )  # fmt: skip
        # Centred colour by colour: in fp32 a variance of 1 would drown in a mean square of 65,025.
        centre = torch.from_numpy(frame.mean(axis=(0, 1)).round().astype(np.float32))[:, None, None]
        self.centred = torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32)) - centre
        self.centred_mean = _blur(self.centred)
        self.mean = self.centred_mean + centre
        self.variance = _blur(self.centred * self.centred) - self.centred_mean * self.centred_mean

    def ssim(self, other: _Moments) -> float:
        """Mean over the windows and colours."""
        covariance = _blur(self.centred * other.centred) - self.centred_mean * other.centred_mean
        alike = (2 * self.mean * other.mean + _C1) * (2 * covariance + _C2)
        apart = (self.mean * self.mean + other.mean * other.mean + _C1) * (self.variance + other.variance + _C2)
        return float((alike / apart).double().mean())


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """The window over planes [3, H, W], inside the picture alone. Ten times as fast as a convolution of one channel."""
    for axis in (1, 2):
        size = planes.shape[axis] - _WINDOW + 1
        total = planes.narrow(axis, _WINDOW // 2, size) * _TAPS[_WINDOW // 2]
        for index, tap in enumerate(_TAPS[: _WINDOW // 2]):
            mirror = _WINDOW - 1 - index
            total.add_(planes.narrow(axis, index, size) + planes.narrow(axis, mirror, size), alpha=tap)
        planes = total
    return planes


@dataclass(frozen=True, slots=True)
class FolderClip:
    """A clip to be measured, and what is known of it."""

    path: Path
    stem: str
    prompt_sha256: str | None = None
    category: str | None = None
    seed: int | None = None


def describe_clips(folder: ClipFolder, info: FullInfo | None = None) -> list[FolderClip]:
    """The clips of a folder with what a prompt file or their names say."""
    videos = make_videos(((stem, 0.0) for stem in folder.clips), info)
    return [
        FolderClip(path, video.stem, video.prompt_sha256, video.category)
        for path, video in zip(folder.clips.values(), videos, strict=True)
    ]


def measure_folders(
    clips: Path,
    reference: Path,
    *,
    info: FullInfo | None = None,
    prompt_set: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measured:
    """Every metric of the clips that lie in both folders under one name.

    Args:
        progress: is told the stem of every clip before it is read.

    Raises:
        what `list_clips` and `measure_clips` raise.
    """
    ours, theirs = (describe_clips(list_clips(folder), info) for folder in (clips, reference))
    pairs = match_clips(ours, theirs)
    if not pairs:
        raise no_pair(clips, len(ours), len(theirs))
    paired = {pair.first.stem for pair in pairs}, {pair.second.stem for pair in pairs}
    return replace(
        measure_pairs(pairs, (), prompt_set=prompt_set, progress=progress),
        only_clips=tuple(clip.stem for clip in ours if clip.stem not in paired[0]),
        only_reference=tuple(clip.stem for clip in theirs if clip.stem not in paired[1]),
    )


def no_pair(where: Path, clips: int, references: int) -> ClipMismatchError:
    """The error of a folder of which no clip has a reference."""
    return ClipMismatchError(
        "no clip has a reference", where=where, found=f"{clips} clips, {references} references",
        todo="name a clip and its reference alike",
    )  # fmt: skip


def measure_pairs(
    pairs: Sequence[Matched[FolderClip]],
    alone: Sequence[FolderClip],
    *,
    prompt_set: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measured:
    """Every metric of clips with their references, and the references' own ones.

    Args:
        alone: references without a counterpart; they are measured as well.
        progress: is told the stem of every clip before it is read.

    Raises:
        what `read_frames` raises.
        ClipMismatchError: a clip of another shape than its reference. ClipTooSmallError
    """
    variant = {name: _Table() for name in SCALES}
    base = {name: _Table() for name in SCALES if name not in ("psnr", "ssim")}
    identical: list[str] = []
    for pair in pairs:
        if progress is not None:
            progress(pair.first.stem)
        frames, target = read_frames(pair.first.path), read_frames(pair.second.path)
        try:
            variant["psnr"].add(pair.first, psnr(frames, target))
            variant["ssim"].add(pair.first, ssim(frames, target))
        except ClipMismatchError as error:
            raise ClipMismatchError(
                error.what, where=f"{pair.first.path} and {pair.second.path}", expected=error.expected,
                found=error.found, todo=error.todo,
            ) from None  # fmt: skip
        if np.array_equal(frames, target):
            identical.append(pair.first.stem)
        _add_own(variant, pair.first, frames)
        _add_own(base, pair.second, target)
    for clip in alone:
        if progress is not None:
            progress(clip.stem)
        _add_own(base, clip, read_frames(clip.path))
    named = prompt_set or infer_prompt_set([pair.first.stem for pair in pairs])
    return Measured(
        variant=[table.scores(name, named) for name, table in variant.items()],
        reference=[table.scores(name, named) for name, table in base.items()],
        identical=tuple(identical),
    )


def _add_own(tables: Mapping[str, _Table], clip: FolderClip, frames: Frames) -> None:
    similarity = frame_similarity(frames)
    tables["temporal_flicker"].add(clip, temporal_flicker(frames))
    tables["frame_to_frame_ssim"].add(clip, None if similarity is None else similarity.previous)
    tables["first_frame_ssim"].add(clip, None if similarity is None else similarity.first)


class _Table:
    """The values of one metric."""

    def __init__(self) -> None:
        self._videos: list[VideoScore] = []
        self._unscored: list[str] = []

    def add(self, clip: FolderClip, value: float | None) -> None:
        if value is None:
            self._unscored.append(clip.stem)
            return
        sample = split_sample(clip.stem)[1]
        self._videos.append(VideoScore(clip.stem, clip.prompt_sha256, clip.category, sample, value, clip.seed))

    def scores(self, name: str, prompt_set: str | None) -> MetricScores:
        return MetricScores(
            prompt_set=prompt_set,
            metric_suite=SUITE,
            metric=name,
            direction="higher",
            scale=SCALES[name],
            stated=None,
            videos=tuple(self._videos),
            unscored=tuple(self._unscored),
        )
