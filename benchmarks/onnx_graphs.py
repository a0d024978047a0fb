"""Exported graphs of the tiny Wan: time to export, size, nodes, time in ONNX Runtime, and what verification says.

    python benchmarks/onnx_graphs.py --work DIR --out benchmarks/results/onnx.json --docs docs/onnx.md

Three parts of the high-noise expert under every preset: a linear, a block, the whole expert. Each runs in ONNX Runtime
next to the same part in plain float32, which torch exports from the base's weights at the same opset: the two take
turns, so that a busy machine slows both. Times are minima, on one thread. Where timestep bins have graphs of their own
the middle one is timed and all are verified, on calls that the calibration kept.

An interrupted run goes on in DIR; take a new one after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

# Before torch is imported: threads that spin on a busy machine cost 3 to 10 times.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx_table import replace_figures, tables
from torch import Tensor, nn

import hfq
from hfq.commands.demo import CALIBRATION_PROMPTS
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.graphs.export import export_onnx, graph_paths
from hfq.convert.graphs.graph_attention import GraphAttention
from hfq.convert.graphs.reference import plain_module, sample_inputs
from hfq.convert.graphs.scope import MODEL, Axis, Scope, graph_inputs
from hfq.convert.graphs.verify_onnx import verify_onnx
from hfq.convert.provenance import machine, software
from hfq.convert.recipe import preset_names
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.schema.atomic import write_file

ROLE: Final = "high_noise"
PARTS: Final = {"site": Scope("site", "blocks.4.ffn.0"), "block": Scope("block", "4"), "model": MODEL}
SIZES: Final = {"batch": 1, "tokens": 324, "text": 4, "frames": 9, "height": 6, "width": 6}
"""The tiny model's own: nine frames of 24 x 24 in patches of 4, four words."""

OPSET: Final = 18
KEEP: Final = {"keep_inputs": 256, "keep_calls": 2}
LOADS: Final = 5
RUN_SECONDS: Final = 4.0
MOST_RUNS: Final = 400
MIDDLE_BIN: Final = 1

Feeds = dict[str, Any]


class Work:
    """The folder that a run goes on in: calibration, deltas, graphs, rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("rows", "graphs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def calibration(self) -> Path:
        """As `hfq demo` makes it, with more inputs and with whole calls."""
        path = self.folder / "calibration"
        if not path.exists():
            say("calibration")
            resume = path.with_name("calibration.partial").exists()
            hfq.calibrate(WEIGHTS, list(CALIBRATION_PROMPTS), path, resume=resume, **KEEP).close()
        return path

    def delta(self, base: Checkpoint, preset: str) -> Path:
        """A preset's delta."""
        path = self.folder / preset
        if not path.exists():
            say(f"{preset}: convert")
            resume = path.with_name(f"{preset}.partial").exists()
            hfq.quantize(base, preset, calibration=self.calibration(), out=path, resume=resume).close()
        return path

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row from the folder, or a new one, kept."""
        path = self.folder / "rows" / f"{name}.json"
        if not path.exists():
            say(name)
            write_file(path, (json.dumps(make(), indent=1) + "\n").encode())
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def graph(self, name: str) -> Path:
        """Where a graph goes; what an interrupted run has left there is removed."""
        path = self.folder / "graphs" / f"{name}.onnx"
        for left in (*graph_paths(path), path.with_name(f"{path.name}.data")):
            left.unlink(missing_ok=True)
        return path


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def export_plain(base: Checkpoint, scope: Scope, path: Path) -> dict[str, Any]:
    """A part without quantization as torch exports it, weights in float32."""
    architecture = base.experts[ROLE].architecture
    started = time.perf_counter()
    module = plain_module(base, ROLE, scope)
    for part in module.modules():
        if hasattr(part, "set_processor") and hasattr(part, "add_k_proj"):
            part.set_processor(GraphAttention())  # as in our graphs; diffusers' own makes a ScatterND of each rotation
    inputs = sample_inputs(architecture, scope, count=1)[0]
    dynamic = {
        entry.name: {i: torch.export.Dim.AUTO for i, axis in enumerate(entry.axes) if isinstance(axis, Axis)}
        for entry in graph_inputs(architecture, scope)
    }
    program = torch.onnx.export(
        module, (), kwargs=dict(inputs), dynamo=True, dynamic_shapes=dynamic, opset_version=OPSET,
        input_names=list(inputs), output_names=["y"], verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    seconds = time.perf_counter() - started
    graph = onnx.load(str(path), load_external_data=False).graph
    check_plain(module, inputs, path)
    return {"export_seconds": round(seconds, 2), "size_bytes": path.stat().st_size, "nodes": len(graph.node)}


@torch.no_grad()
def check_plain(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """The graph that is raced computes what it should."""
    expected = module(**inputs).numpy()
    found = session_of(path).run(["y"], feeds_of(inputs))[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def session_of(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(inputs: dict[str, Tensor]) -> Feeds:
    return {name: value.numpy() for name, value in inputs.items()}


def in_turns(works: Sequence[Callable[[], Any]], seconds: float, most: int) -> list[float]:
    """The shortest time of each, in milliseconds: one after the other, again and again."""
    best = [float("inf")] * len(works)
    begun = time.perf_counter()
    for _ in range(most):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], 1000 * (time.perf_counter() - started))
        if time.perf_counter() - begun > seconds:
            break
    return [round(value, 3) for value in best]


def measure(work: Work, base: Checkpoint, preset: str, part: str) -> dict[str, Any]:
    """A row: one preset, one part."""
    scope, plain = PARTS[part], work.folder / "graphs" / f"plain-{part}.onnx"
    load = os.getloadavg()[0]
    with hfq.load_delta(work.delta(base, preset)) as delta, hfq.load_calibration(work.calibration()) as calibration:
        done = export_onnx(delta, base, work.graph(f"{preset}-{part}"), scope=scope, role=ROLE, opset=OPSET)
        paths = [graph.path for graph in done.graphs]
        timed = paths[MIDDLE_BIN if len(paths) > 1 else 0]
        loads = in_turns([lambda: session_of(timed), lambda: session_of(plain)], RUN_SECONDS, LOADS)
        feeds = feeds_of(sample_inputs(base.experts[ROLE].architecture, scope, count=1, sizes=SIZES)[0])
        sessions = [session_of(timed), session_of(plain)]
        runs = in_turns([lambda s=s: s.run(None, feeds) for s in sessions], RUN_SECONDS, MOST_RUNS)  # type: ignore[misc]
        started = time.perf_counter()
        calls = calibration.sampled_calls(ROLE)
        verified = [verify_onnx(delta, base, path, calls=calls, threads=1) for path in paths]
        seconds = time.perf_counter() - started
    return {
        "preset": preset,
        "part": part,
        "export_seconds": round(done.seconds["all"], 2),
        "size_bytes": done.data_bytes + sum(graph.size_bytes for graph in done.graphs),
        "graphs": len(paths),
        "nodes": sum(done.nodes.values()),
        "own_nodes": {name.partition("::")[2]: count for name, count in done.nodes.items() if "::" in name},
        "load_ms": loads[0],
        "plain_load_ms": loads[1],
        "run_ms": runs[0],
        "plain_run_ms": runs[1],
        "levels": [{name: level.verdict for name, level in entry.levels.items()} for entry in verified],
        "verify_seconds": round(seconds, 1),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
    }


def measure_all(work: Work, presets: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    """The document; rows that the folder has from before are in it."""
    with hfq.open_checkpoint(WEIGHTS) as base:
        for part in parts:
            make = lambda part=part: export_plain(base, PARTS[part], work.graph(f"plain-{part}"))  # noqa: E731
            work.kept(f"plain-{part}", make)
            for preset in presets:
                work.kept(f"{preset}-{part}", lambda part=part, preset=preset: measure(work, base, preset, part))
    rows = work.folder / "rows"

    def found(name: str) -> list[dict[str, Any]]:
        path = rows / f"{name}.json"
        return [json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []

    return {
        "role": ROLE,
        "parts": {part: str(scope) for part, scope in PARTS.items()},
        "sizes": SIZES,
        "opset": OPSET,
        "machine": machine(),
        "software": {**software(), "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        "plain": {part: row for part in PARTS for row in found(f"plain-{part}")},
        "rows": [row for part in PARTS for preset in preset_names() for row in found(f"{preset}-{part}")],
    }


def chosen(text: str | None, known: Sequence[str]) -> list[str]:
    """Names given with commas; all without it."""
    names = list(known) if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="presets, with commas; all without it")
    parser.add_argument("--parts", help=f"with commas, of {', '.join(PARTS)}; all without it")
    parser.add_argument("--work", type=Path, help="folder that an interrupted run goes on in")
    parser.add_argument("--render", action="store_true", help="measure nothing; tables from OUT")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the figures")
    parser.add_argument("--docs", type=Path, help="Markdown file whose marked part is replaced")
    options = parser.parse_args()
    presets, parts = chosen(options.only, preset_names()), chosen(options.parts, list(PARTS))
    if options.render:
        document = json.loads(options.out.read_text(encoding="utf-8"))
    elif options.work is None:
        parser.error("--work is needed")
    else:
        torch.set_num_threads(1)
        document = measure_all(Work(options.work), presets, parts)
        write_file(options.out, (json.dumps(document, indent=1) + "\n").encode())
    text = tables(document)
    print(text)
    if options.docs:
        options.docs.write_text(replace_figures(options.docs.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
