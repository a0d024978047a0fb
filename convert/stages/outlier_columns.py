"""`outlier_columns`: the k input channels with the largest activations are multiplied in BF16, the others quantized.

The score of a channel is max |x_j| over the calibration (or its root mean square), as the stages before have left it:
after a mask, of the masked input (MixQ with SmoothQuant, arXiv 2606.29337). k is a multiple of 64, so that the
remaining channels are whole groups. The delta stores the indices alone: the columns are the base's.
"""

from __future__ import annotations

import numpy as np
import torch

from hfq.convert.stages.stage import StageInput, StageResult

__all__ = ["outlier_columns"]


def outlier_columns(given: StageInput) -> StageResult:
    """State `columns` int32 [k], rising; of equal scores the lower channel is chosen."""
    assert given.statistics is not None
    statistics = given.statistics
    found = statistics.channel_max() if given.options["statistic"] == "max" else statistics.channel_rms()
    scores = given.channels(found).numpy()
    chosen = np.argsort(-scores, kind="stable")[: int(given.options["k"])]
    return StageResult(
        {"op": "columns", "tensor": "columns"}, {"columns": torch.from_numpy(np.sort(chosen).astype(np.int32))}
    )
