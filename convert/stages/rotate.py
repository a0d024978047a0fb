"""`rotate`: a block Hadamard rotation of the input channels, with signs from a seed.

    x_q = Q(x R)      w_q = Q(w R)      R = diag(s) H_b, orthogonal, block by block

Outliers of a block are spread over its channels. A block of 64 is HiFloat4's scale group: no other group gets a share.
Blocks divide every width of the Wan models, 13824 among them, at which public code for a full rotation fails.
"""

from __future__ import annotations

from hfq.convert.stages.stage import StageInput, StageResult

__all__ = ["rotate"]


def rotate(given: StageInput) -> StageResult:
    """No state: block and seed say everything."""
    return StageResult({"op": "rotate", "block": int(given.options["block"]), "seed": int(given.options["seed"])})
