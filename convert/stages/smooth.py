"""`smooth`: a channel mask that moves the difficulty of an input's outlier channels into the weight.

    m_j = w_j^alpha / a_j^(1 - alpha)      x_q = Q(x * m)      w_q = Q(w / m)

with w_j the largest |weight| of input channel j and a_j a statistic of |x_j| over the calibration: its maximum, its
root mean square, or a percentile (Tail-Aware HiFloat4, arXiv 2605.26628). alpha weights the weight side, as in ViDiT-Q
(arXiv 2406.02540); SmoothQuant's alpha is 1 minus this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hfq.convert.calibration import GroupStatistics
from hfq.convert.stages.stage import StageInput, StageResult

__all__ = ["activation_statistic", "channel_mask", "smooth"]

_ROWS: Final = 64


def activation_statistic(statistics: GroupStatistics, options: Mapping[str, Any], where: str) -> Tensor:
    """a_j, float64 [in_features]; a percentile is no lower than its floor, others are before it.

    Raises:
        CalibrationRangeError: a number that is no percentile.
    """
    kind = options["statistic"]
    if kind == "percentile":
        return statistics.channel_percentile(
            float(options["percentile"]), float(options["activation_floor"]), where
        ).values
    return statistics.channel_max() if kind == "max" else statistics.channel_rms()


def channel_mask(
    weight_max: npt.NDArray[np.float64], activation: npt.NDArray[np.float64], options: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """m_j in float64, rounded once to float32.

    Args:
        weight_max, activation: float64 [in_features], not negative.
        options: alpha, floors and clamp.
    """
    w = np.maximum(weight_max, options["weight_floor"])
    a = np.maximum(activation, options["activation_floor"])
    alpha = float(options["alpha"])
    # Square roots are correctly rounded everywhere; a power function is not.
    mask = np.sqrt(w) / np.sqrt(a) if alpha == 0.5 else np.power(w, alpha) / np.power(a, 1.0 - alpha)
    clipped: npt.NDArray[np.float32] = np.clip(mask, options["mask_min"], options["mask_max"]).astype(np.float32)
    return clipped


def _column_max(weight: Tensor) -> Tensor:
    """Largest magnitude of each column of [out_features, in_features]; a few rows are copied at a time."""
    return torch.stack([rows.abs().amax(dim=0) for rows in weight.split(_ROWS)]).amax(dim=0)


def smooth(given: StageInput) -> StageResult:
    """The mask of one site: state `mask` float32 [in_features].

    Raises:
        CalibrationRangeError: see `activation_statistic`.
    """
    assert given.statistics is not None
    weight_max = _column_max(given.weight).double().numpy()
    activation = given.channels(activation_statistic(given.statistics, given.options, given.where)).numpy()
    mask = torch.from_numpy(channel_mask(weight_max, activation, given.options))
    return StageResult({"op": "mask", "tensor": "mask"}, {"mask": mask})
