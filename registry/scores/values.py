"""What a score is: a metric of one suite on one prompt set, with the value of every video."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from hfq.schema.errors import DuplicateVideoError, MeasurementError

from .names import match_key, split_sample, video_stem

__all__ = [
    "UNITS",
    "Direction",
    "Kernels",
    "Measurement",
    "MetricScores",
    "Omitted",
    "Quantity",
    "ReviewCounts",
    "ReviewOutcome",
    "SettingValue",
    "VideoScore",
    "count_reviews",
    "match_key",
    "prompt_hash",
    "refuse_doubles",
    "set_labels",
    "set_name",
    "split_sample",
    "video_stem",
]

Direction = Literal["higher", "lower"]
Kernels = Literal["real", "simulated"]
Quantity = Literal["latency", "peak-memory", "throughput"]
SettingValue = str | int | float | bool | None

UNITS: Final[Mapping[Quantity, str]] = {"latency": "s/clip", "peak-memory": "bytes", "throughput": "clips/h"}

_MAX_ROUNDING: Final = 0.005
"""Half a unit of the second decimal: `0.9` and `1.0` may have been written from exact numbers."""

_MIN_ROUNDING: Final = 1e-5
"""Means in single precision."""


@dataclass(frozen=True, slots=True)
class VideoScore:
    """One video's value. `stem`: file name without folder and video suffix. `sample`: the number at the end of the
    name. `seed`: of the initial noise, where the clip or the registry says it.
    """

    stem: str
    prompt_sha256: str | None
    category: str | None
    sample: int | None
    value: float
    seed: int | None = None

    @property
    def key(self) -> str:
        """The name as VBench writes it when it scores extracted frames."""
        return match_key(self.stem)

    @property
    def group(self) -> str:
        """The prompt: videos of one prompt are alike and no independent evidence. Where it is not known the video is a
        group of its own: names that only look alike, such as `clip-001` and `clip-002`, say nothing of prompts.
        """
        return self.prompt_sha256 or f"video {self.key}"


@dataclass(frozen=True, slots=True)
class MetricScores:
    """A metric on a set of videos.

    Args:
        prompt_set: what was generated, for example `vbench` or `opens2v-eval`; None where nobody said.
        metric_suite: who computed it, for example `vbench`: VBench metrics can be taken on any prompt set.
        scale: in words: the unit, and what was done to the numbers of the file.
        stated: the file's own aggregate, on the scale of the values; None where the file has none.
        unscored: stems that the file names without a value.

    Raises:
        DuplicateVideoError: two videos that no other variant's file could tell apart; both are named.
    """

    prompt_set: str | None
    metric_suite: str
    metric: str
    direction: Direction
    scale: str
    stated: float | None
    videos: tuple[VideoScore, ...]
    unscored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_doubles(((video.stem, video.stem) for video in self.videos), f"{self.metric_suite} {self.metric}")

    @property
    def recomputed(self) -> float | None:
        """The mean over the videos, each counted once; None without videos.

        VBench's own aggregate of subject consistency counts frames when it was computed in one process, and videos
        when in several.
        """
        return math.fsum(video.value for video in self.videos) / len(self.videos) if self.videos else None

    @property
    def known_prompts(self) -> int:
        """How many different prompts the videos are known to be of."""
        return len({video.prompt_sha256 for video in self.videos} - {None})

    @property
    def of_unknown_prompt(self) -> int:
        """How many videos nobody knows the prompt of; each of them counts as a prompt of its own."""
        return sum(video.prompt_sha256 is None for video in self.videos)

    @property
    def stated_agrees(self) -> bool | None:
        """Whether the file's own aggregate is the mean over its videos, as far as it was rounded; None without both."""
        if self.stated is None or self.recomputed is None:
            return None
        exponent = Decimal(repr(self.stated)).as_tuple().exponent
        half = 0.5 * 10.0**exponent if isinstance(exponent, int) else 0.0
        return abs(self.stated - self.recomputed) <= min(_MAX_ROUNDING, max(_MIN_ROUNDING, half))


@dataclass(frozen=True, slots=True)
class Omitted:
    """Something of a result file that is no score: a dimension, or with `video` one value of it."""

    file: str
    metric: str
    video: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.metric}{f': {self.video}' if self.video else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What running a variant took. `settings`: frames, size, steps and whatever else decides the work of a clip.

    Raises:
        MeasurementError: a value that is not finite and positive.
    """

    quantity: Quantity
    value: float
    device: str
    kernels: Kernels
    settings: Mapping[str, SettingValue]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise MeasurementError(
                "not a measurement", where=self.quantity, expected=f"{self.unit}, above 0", found=self.value
            )

    @property
    def unit(self) -> str:
        return UNITS[self.quantity]


@dataclass(frozen=True, slots=True)
class ReviewOutcome:
    """What one person decided about one clip."""

    stem: str
    accepted: bool
    category: str | None = None


@dataclass(frozen=True, slots=True)
class ReviewCounts:
    """Of `clips` clips, `reviewed` were looked at and `accepted` of those were accepted.

    `by_prompt`: the accepted share of each reviewed prompt; empty where each clip is of another, as far as is known.
    """

    clips: int
    reviewed: int
    accepted: int
    by_prompt: tuple[float, ...] = ()

    def to_json(self) -> dict[str, int]:
        """The counts; what follows from them for a gate is the gate's."""
        return {"clips": self.clips, "reviewed": self.reviewed, "accepted": self.accepted}


def count_reviews(
    outcomes: Iterable[ReviewOutcome], stems: Iterable[str], prompts: Mapping[str, str] | None = None
) -> ReviewCounts:
    """Counts over the clips `stems`. A clip that several people saw is accepted when all of them accepted it.

    Args:
        prompts: stem -> prompt, as far as they are known.
    """
    clips = {match_key(stem) for stem in stems}
    decisions: dict[str, bool] = {}
    for outcome in outcomes:
        key = match_key(outcome.stem)
        if key in clips:
            decisions[key] = decisions.get(key, True) and outcome.accepted
    groups: dict[str, list[bool]] = {}
    known = {match_key(stem): prompt for stem, prompt in (prompts or {}).items()}
    for key in sorted(decisions):
        groups.setdefault(known.get(key, f"clip {key}"), []).append(decisions[key])
    shares = tuple(sum(group) / len(group) for group in groups.values()) if len(groups) < len(decisions) else ()
    return ReviewCounts(len(clips), len(decisions), sum(decisions.values()), shares)


def refuse_doubles(names: Iterable[tuple[str, str]], where: str) -> None:
    """Check that no two videos of a suite's file are one video to the suite, which changes names on the way.

    Args:
        names: stem, and what the file calls the video.

    Raises:
        DuplicateVideoError: names both.
    """
    seen: dict[str, str] = {}
    for stem, name in names:
        key = match_key(stem)
        if key in seen:
            raise DuplicateVideoError("a video occurs twice", where=where, found=f"{seen[key]} and {name}")
        seen[key] = name


def set_name(prompt_set: str | None) -> str:
    """A prompt set in a sentence; scores that name none are a set of their own."""
    return "an unnamed prompt set" if prompt_set is None else repr(prompt_set)


def set_labels(prompt_sets: Iterable[str | None]) -> dict[str | None, str]:
    """What to write behind a metric so that sets shown together can be told apart: nothing where none has a name."""
    found = set(prompt_sets)
    unnamed = "" if found <= {None} else " (no prompt set named)"
    return {name: unnamed if name is None else f" on {name}" for name in found}


def prompt_hash(text: str) -> str:
    """Hex SHA-256 of a prompt's UTF-8 text, as calibrations record it."""
    return hashlib.sha256(text.encode()).hexdigest()
