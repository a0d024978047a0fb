"""What the file name of a video says: VBench names clips `{prompt}-{n}`, other people as they like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["MAX_SAMPLES", "match_key", "numbered_series", "prompt_in_name", "split_sample", "video_stem"]

_VIDEO_SUFFIX: Final = re.compile(r"\.(mp4|mkv|mov|webm|avi|gif|m4v)$", re.IGNORECASE)
_SAMPLE: Final = re.compile(r"(.+)-(\d{1,4})", re.DOTALL)
_WORD: Final = re.compile(r"[^\W\d_]+")
_LABELS: Final = frozenset(
    ("batch", "case", "clip", "copy", "demo", "example", "file", "final", "frame", "frames", "gen", "image", "img",
     "item", "job", "movie", "my", "new", "no", "number", "out", "output", "render", "result", "run", "sample", "scene",
     "seed", "shot", "step", "take", "test", "trial", "untitled", "version", "vid", "video", "videos", "wan")
)  # fmt: skip
"""Words of names that number clips: `clip 12-3` is of no prompt that anybody knows."""

MAX_SAMPLES: Final = 25
"""VBench takes five videos of a prompt, 25 for temporal flickering; more of one name are a numbered series."""


def video_stem(path: str) -> str:
    """File name without folders and video suffix; a prompt may hold any other dot."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    if "/" not in path:
        name = name.rsplit("\\", 1)[-1]
    return _VIDEO_SUFFIX.sub("", name)


def match_key(stem: str) -> str:
    """A stem as VBench writes it when it scores extracted frames: spaces to underscores, `videos` to `frames`."""
    return stem.replace("videos", "frames").replace(" ", "_")


def prompt_in_name(stem: str) -> str | None:
    """The prompt of `{prompt}-{n}`, VBench's standard mode, where it is written out: several words with spaces, and n
    as VBench writes it. None for labels, numbers, dates and rewritten prompts, which look alike and are no prompts.
    """
    text, sample = split_sample(stem)
    if sample is None or stem != f"{text}-{sample}" or " " not in text:
        return None
    words = _WORD.findall(text.lower())
    return text if any(word not in _LABELS for word in words) else None


def numbered_series(stems: Iterable[str]) -> frozenset[str]:
    """Names before the number that more than MAX_SAMPLES clips share, or could: they are series and no prompts."""
    parts = [split_sample(stem) for stem in stems]
    return frozenset(text for text, sample in parts if sample is not None and sample >= MAX_SAMPLES)


def split_sample(stem: str) -> tuple[str, int | None]:
    """`{prompt}-{n}` in its two parts, the naming of VBench's standard mode; n is None without one."""
    found = _SAMPLE.fullmatch(stem)
    return (found[1], int(found[2])) if found else (stem, None)
