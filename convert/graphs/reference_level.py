"""The last level: a second runtime, `onnx.reference`, on the same file at small size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from .levels import Level, finite
from .linear_level import largest_error
from .onnx_file import OnnxFile
from .op_level import reference_evaluator_check
from .origin import Origin
from .output_level import CONTROL_FACTOR, References, relative_error
from .running import RunningGraph

__all__ = ["reference_level"]

BOUND: Final = 1e-5
_WEIGHTS: Final = 2_000_000


def reference_level(
    file: OnnxFile,
    origin: Origin,
    weights: int,
    graph: RunningGraph,
    inputs: Sequence[Mapping[str, Tensor]],
    references: References,
) -> Level:
    """Run the whole graph, and each body on a sample of the adversarial classes, in the second runtime.

    Args:
        weights: packed weights of the graph.
    """
    kind = origin.scope.kind
    if kind == "model" or weights > _WEIGHTS:
        reason = f"only graphs of a linear or a block of at most {_WEIGHTS} weights: this evaluator is slow"
        return Level.skipped("reference_evaluator", reason)
    level = Level("reference_evaluator", {"bound": BOUND})
    nodes = list(file.model.graph.node)
    results = reference_evaluator_check(list(file.model.functions), nodes, file.opset, file.ir_version)
    level.figures |= {
        "op_elements": sum(result.elements for result in results),
        "op_mismatches": sum(result.mismatches for result in results),
    }
    for result in results:
        if result.mismatches:
            text = f"{result.mismatches} of {result.elements}: {result.first}"
            level.fail(result.op, f"other bits on the class {result.elements_class}", "equal bits", text)
    given = inputs[-1]  # the smallest of the made-up ones
    found = _evaluate(file, given)
    if isinstance(found, str):
        level.fail("y", "the second runtime does not run the graph", found=found)
        return level
    expected = graph.run(given)["y"]
    if kind == "site":
        _judge(level, largest_error(found, expected), BOUND, None)
    else:
        # A code that one runtime rounds the other way moves a block's output by a step, as some controls show; three
        # of them may all miss it, so that what is small beside quantization decides nothing. Norms as in the controls.
        control = max(references.controls[-1], default=0.0) if references.controls else 0.0
        step = references.plain[-1] if references.plain else None
        _judge(level, relative_error(found, expected), max(BOUND, CONTROL_FACTOR * control), step)
    return level


def _judge(level: Level, error: float, allowed: float, undecided_below: float | None) -> None:
    level.figures |= {"relative_error": finite(error), "allowed": finite(allowed)}
    if error <= allowed:
        return
    if undecided_below is not None and error < undecided_below:
        level.undecided, level.reason = True, "beyond the controls, and below the error of quantization"
    else:
        level.fail("y", "the second runtime gives another output", f"at most {allowed:.3g}", f"{error:.3g}")


def _evaluate(file: OnnxFile, inputs: Mapping[str, Tensor]) -> Tensor | str:
    model = file.model if not file.is_external else onnx.load(str(file.path))
    feeds = {name: value.contiguous().numpy() for name, value in inputs.items()}
    # Written in Python, it fails in as many ways as there are ops.
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(model).run(["y"], feeds)
            found = np.asarray(results[0])
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
