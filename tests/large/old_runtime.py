"""Run graphs in the ONNX Runtime that is installed and compare their outputs with those that another one wrote.

    python old_runtime.py FOLDER

FOLDER holds NAME.onnx, and beside each NAME.npz: cases, with arrays `CASE/in/INPUT` and `CASE/out/OUTPUT`. Prints one
JSON document: versions, and per graph and case what differs. Needs numpy and onnxruntime, nothing else.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Arrays = dict[str, Any]


def run_folder(folder: Path) -> dict[str, Any]:
    """Run every graph of a folder on one thread."""
    return {
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "graphs": {path.stem: run_graph(path) for path in sorted(folder.glob("*.onnx"))},
    }


def run_graph(path: Path) -> dict[str, Any]:
    """Case -> what differs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = {}
    for case, inputs, outputs in cases(path.with_suffix(".npz")):
        values = session.run(list(outputs), inputs)
        compared = [difference(value, outputs[name]) for name, value in zip(outputs, values)]  # noqa: B905
        found[case] = {key: max(entry[key] for entry in compared) for key in compared[0]}
        found[case]["elements"] = sum(value.size for value in outputs.values())
    return found


def cases(path: Path) -> Iterator[tuple[str, Arrays, Arrays]]:
    """(case, inputs, expected outputs) of a file."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for case in dict.fromkeys(name.rsplit("/", 2)[0] for name in arrays):
        yield case, _of(arrays, f"{case}/in/"), _of(arrays, f"{case}/out/")


def _of(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}


def difference(found: Any, expected: Any) -> dict[str, Any]:
    """Elements whose bits differ (NaN equals NaN), and the largest finite error over the largest finite value."""
    if found.shape != expected.shape or found.dtype != np.float32 or expected.dtype != np.float32:
        return {"differing": max(found.size, expected.size, 1), "error": float("inf")}
    both_nan = np.isnan(found) & np.isnan(expected)
    differing = (found.view(np.uint32) != expected.view(np.uint32)) & ~both_nan
    finite = np.isfinite(found) & np.isfinite(expected)
    left, right = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    largest = float(np.abs(right).max(initial=0.0))
    error = float(np.abs(left - right).max(initial=0.0))
    return {"differing": int(differing.sum()), "error": error / largest if largest else error}


if __name__ == "__main__":
    print(json.dumps(run_folder(Path(sys.argv[1]))))
