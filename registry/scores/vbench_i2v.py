"""VBench-I2V result files: VBench's shape, other dimensions, and an image beside the video.

Source: Vchitect/VBench at 45e79ec, `vbench2_beta_i2v`; its official scorer renames the dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .full_info import FullInfo
from .values import MetricScores
from .vbench import Omit, read_dimensions

__all__ = ["I2V", "I2V_DIMENSIONS", "I2V_QUALITY", "is_vbench_i2v", "parse_vbench_i2v"]

I2V: Final = ("camera_motion", "i2v_subject", "i2v_background")
I2V_QUALITY: Final = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip
I2V_DIMENSIONS: Final = (*I2V, *I2V_QUALITY, "temporal_flickering")
"""temporal_flickering is computed and is in no total."""

_RENAMED: Final = {
    "video-text_camera_motion": "camera_motion",
    "video-image_subject_consistency": "i2v_subject",
    "video-image_background_consistency": "i2v_background",
}


def is_vbench_i2v(document: Mapping[str, Any], info: FullInfo | None) -> bool:
    """Whether a file of VBench's shape is one of VBench-I2V.

    A file with shared dimensions alone does not say which of the two it is: then the prompt file decides.
    """
    own = {*I2V, *_RENAMED}
    if any(name.lower().replace(" ", "_") in own for name in document):
        return True
    parts = (value[1] for value in document.values() if isinstance(value, list) and len(value) > 1)
    videos = (entry for part in parts if isinstance(part, list) for entry in part)
    if any(isinstance(entry, dict) and "image_path" in entry for entry in videos):
        return True
    return info is not None and info.image_to_video


def parse_vbench_i2v(
    document: Mapping[str, Any], info: FullInfo | None, prompt_set: str | None, where: str, omit: Omit
) -> list[MetricScores]:
    """The dimensions of a VBench-I2V file, under their own names or those of the official scorer.

    Raises:
        ScoreFileError, UnknownMetricError, DuplicateVideoError
    """
    names = {dimension: dimension for dimension in I2V_DIMENSIONS} | _RENAMED
    return read_dimensions(document, names, "vbench-i2v", info, prompt_set, where, omit)
