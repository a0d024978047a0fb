"""Which prompt a video was made from: VBench's `_full_info.json` and the input file of OpenS2V-Eval.

A VBench file is a list of `{prompt_en, dimension, video_list}`, in VBench-I2V with `image_type` and `image_name` or
`custom_image_path`; an OpenS2V file maps an id to `{prompt, img_paths, class_label}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import MalformedFileError, ScoreFileError, TrailingBytesError, TruncatedFileError

from .names import match_key, numbered_series, prompt_in_name, split_sample, video_stem
from .values import VideoScore, prompt_hash

__all__ = [
    "OPENS2V_CLASSES",
    "FullInfo",
    "PromptInfo",
    "infer_prompt_set",
    "make_video",
    "make_videos",
    "parse_full_info",
    "read_full_info",
]

OPENS2V_CLASSES: Final = (
    "singleobj", "singlehuman", "singleface", "multiobject", "humanobj", "faceobj", "multiface", "multihuman",
)  # fmt: skip
"""The eight kinds of subject of OpenS2V-Eval; an id begins with one."""

_OPENS2V_ID: Final = re.compile(rf"({'|'.join(OPENS2V_CLASSES)})[_-]?\d+")


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """A prompt by its hash, and its category where one is written."""

    sha256: str
    category: str | None


@dataclass(frozen=True, slots=True)
class FullInfo:
    """Prompts by video and by their own text, both as match keys. `image_to_video`: the entries name images."""

    videos: Mapping[str, PromptInfo] = field(default_factory=dict)
    prompts: Mapping[str, PromptInfo] = field(default_factory=dict)
    image_to_video: bool = False

    def find(self, stem: str) -> PromptInfo | None:
        """By the listed video, else by the prompt in the file name."""
        listed = self.videos.get(match_key(stem))
        return listed or self.prompts.get(match_key(split_sample(stem)[0])) or self.prompts.get(match_key(stem))


def read_full_info(path: str | os.PathLike[str]) -> FullInfo:
    """Prompts of a file of either shape.

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError, DuplicateKeyError
        ScoreFileError: no JSON, such as a prompt file of `hfq generate`; neither shape; one video under two prompts.
    """
    place = Path(path)
    data = read_bytes(place)
    try:
        document = parse_json(data, str(place))
    except MalformedFileError as error:
        if type(error) not in (MalformedFileError, TrailingBytesError, TruncatedFileError):
            raise
        raise ScoreFileError(
            f"not a suite's prompt file: {error.what}",
            where=place,
            expected="VBench's JSON list of {prompt_en, video_list}, or OpenS2V's JSON object of ids",
            todo="a prompt file of `hfq generate` is not needed here: clips say themselves which prompt they show",
        ) from None
    return parse_full_info(document, str(place))


def parse_full_info(document: Any, where: str) -> FullInfo:
    """Prompts of a parsed file of either shape.

    Raises:
        ScoreFileError: neither shape, or one video under two prompts.
    """
    if isinstance(document, list):
        return _vbench(document, where)
    if isinstance(document, dict):
        return _opens2v(document, where)
    raise ScoreFileError("not a prompt file", where=where, expected="a list of prompt_en, or ids with a prompt")


def _vbench(document: list[Any], where: str) -> FullInfo:
    videos: dict[str, PromptInfo] = {}
    prompts: dict[str, PromptInfo] = {}
    images = False
    for index, entry in enumerate(document):
        place = f"{where}: entry {index}"
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
            raise ScoreFileError("not an entry of a full_info file", where=place, expected="an object with prompt_en")
        images = images or "image_name" in entry or "custom_image_path" in entry
        category = entry.get("image_type", entry.get("category"))
        if category is not None and not isinstance(category, str):
            raise ScoreFileError("not a category", where=place, found=category)
        info = PromptInfo(prompt_hash(entry["prompt_en"]), category)
        known = prompts.setdefault(match_key(entry["prompt_en"]), info)
        if known.category is None and category is not None:
            prompts[match_key(entry["prompt_en"])] = info
        listed = entry.get("video_list", [])
        for path in [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else [None]:
            if not isinstance(path, str):
                raise ScoreFileError("not a list of videos", where=place, found=path)
            before = videos.setdefault(match_key(video_stem(path)), info)
            if before.sha256 != info.sha256:
                raise ScoreFileError("a video of two prompts", where=place, found=path)
    return FullInfo(videos, prompts, images)


def _opens2v(document: dict[str, Any], where: str) -> FullInfo:
    videos: dict[str, PromptInfo] = {}
    for name, entry in document.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ScoreFileError("not an entry of a prompt file", where=f"{where}: {name}", expected="a prompt")
        videos[match_key(name)] = PromptInfo(prompt_hash(entry["prompt"]), _opens2v_class(name))
    return FullInfo(videos)


def _opens2v_class(stem: str) -> str | None:
    found = _OPENS2V_ID.fullmatch(stem)
    return found[1] if found else None


def make_video(
    stem: str, value: float, info: FullInfo | None, series: Collection[str] = (), seed: int | None = None
) -> VideoScore:
    """A video's score with what is known of its prompt.

    Without a prompt file the prompt is the file name's, where it is written out in full (`prompt_in_name`). Any other
    name may be a label or a rewritten prompt, and is not hashed.

    Args:
        series: names of numbered clips, see `numbered_series`.
    """
    text, sample = split_sample(stem)
    known = info.find(stem) if info is not None else None
    if known is None:
        prompt = prompt_in_name(stem)
        sha256 = None if prompt is None or text in series else prompt_hash(prompt)
        known_category = None
    else:
        sha256, known_category = known.sha256, known.category
    return VideoScore(stem, sha256, known_category or _opens2v_class(stem), sample, value, seed)


def make_videos(values: Iterable[tuple[str, float]], info: FullInfo | None) -> tuple[VideoScore, ...]:
    """The scores of one file, (stem, value) each; see `make_video`."""
    found = list(values)
    series = numbered_series(stem for stem, _ in found)
    return tuple(make_video(stem, value, info, series) for stem, value in found)


def infer_prompt_set(stems: list[str]) -> str | None:
    """`opens2v-eval` when every video has an id of that set; other sets cannot be told from file names."""
    return "opens2v-eval" if stems and all(_opens2v_class(stem) for stem in stems) else None
