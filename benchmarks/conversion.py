"""inspect, convert and verify against what the same cores need for the hashes and the kernel alone, in the same run.

    python benchmarks/conversion.py --blocks 8 --work FOLDER --out benchmarks/results/conversion.json

A checkpoint of random weights with the widths of Wan 14B. The limit of each command is measured around it, before and
after: SHA-256 of every byte that the command has to hash (files, tensors, codes and scales; one file is one stream),
spread over the same number of threads, and for convert and verify the quantize kernel alone, on weights that are in
memory. No reading, no error figures, no documents, no start of Python. Commands run as a user runs them, each in a
process of its own, with the files in the page cache; a second figure leaves the start of Python and its imports out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
HASHED = 1 << 28  # bytes of the buffer that stands for a file's
KERNEL_ROWS, KERNEL_WIDTH = 2_048, 5_120

CHILD = """
import json, os, resource, sys, time
from hfq.cli import run
import hfq.convert.checkpoint, hfq.convert.inspect
if sys.argv[1] != "inspect":
    import hfq.convert.convert, hfq.convert.verify, torch
    from hfq.formats import hif4
    hif4.quantize(torch.zeros(1024, 1024, dtype=torch.bfloat16))
started, cpu = time.perf_counter(), time.process_time()
code = run(sys.argv[1:])
found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
from hfq.convert.peak_memory import peak_rss_bytes
print(json.dumps({**found, "peak_rss_bytes": peak_rss_bytes()}), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Costs:
    """Wall and CPU seconds. A busy machine stretches the first more than the second."""

    wall: float
    cpu: float

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, count: int) -> Costs:
        """Of `count` times the work."""
        return Costs(self.wall * count, self.cpu * count)

    def at_least(self, other: Costs) -> Costs:
        """The larger of both, for each."""
        return Costs(max(self.wall, other.wall), max(self.cpu, other.cpu))


def side_by_side(works: Sequence[Callable[[], None]]) -> tuple[float, float]:
    """Seconds until all are done, each on a thread of its own, and CPU seconds of all together."""
    threads = [threading.Thread(target=work) for work in works]
    started, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, time.process_time() - cpu


def hash_costs(threads: int) -> Costs:
    """SHA-256 of one byte, on all threads together."""
    buffer = np.random.default_rng(0).integers(0, 256, HASHED, dtype=np.uint8).data
    seconds, cpu = side_by_side([lambda: hashlib.sha256(buffer).digest()] * threads)  # type: ignore[list-item]
    return Costs(seconds / (threads * HASHED), cpu / (threads * HASHED))


def kernel_costs(threads: int) -> Costs:
    """Quantizing one element from BF16 to HiFloat4, on all threads together."""
    import torch

    from hfq.formats import hif4

    torch.set_num_threads(1)
    weights = [(torch.randn(KERNEL_ROWS, KERNEL_WIDTH) * 0.02).bfloat16() for _ in range(threads)]
    hif4.quantize(weights[0])
    rounds = 8

    def work(weight: torch.Tensor) -> None:
        for _ in range(rounds):
            hif4.quantize(weight)

    seconds, cpu = side_by_side([lambda weight=weight: work(weight) for weight in weights])  # type: ignore[misc]
    elements = threads * rounds * weights[0].numel()
    return Costs(seconds / elements, cpu / elements)


def run_command(threads: int, *arguments: str) -> dict[str, Any]:
    """Run a command; its whole wall time, and time, CPU time and memory from after the imports."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hfq", *arguments, "--json"], env=environment, check=True, capture_output=True
    )
    whole = time.perf_counter() - started
    if arguments[0] == "convert":
        shutil.rmtree(arguments[-1])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments, "--json"], env=environment, check=True, capture_output=True, text=True
    )
    return {"command_seconds": whole, **json.loads(done.stderr.strip().splitlines()[-1])}


def floors(threads: int, sizes: dict[str, int]) -> dict[str, Costs]:
    """The least wall and CPU seconds of each command, now."""
    hashing, quantizing = hash_costs(threads), kernel_costs(threads)
    files, tensors, codes = (hashing.times(sizes[name]) for name in ("files", "tensors", "codes"))
    kernel = quantizing.times(sizes["quantized"])
    one_stream = Costs(hashing.wall * threads * sizes["largest_file"], 0.0)
    return {
        "inspect": (files + tensors).at_least(one_stream),
        "inspect --no-file-hashes": tensors,
        "convert": (files + tensors + codes + kernel).at_least(one_stream),
        "convert --no-file-hashes": tensors + codes + kernel,
        "verify": tensors + codes + kernel,
    }


def measure_sizes(model: Path) -> dict[str, int]:
    """Bytes and elements of a BF16 checkpoint whose linears inside blocks are quantized."""
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.recipe import load_recipe
    from hfq.convert.routing import route_sites
    from hfq.convert.selection import select_blocks

    with open_checkpoint(model) as checkpoint:
        expert = checkpoint.experts["single"]
        sites = {"single": {site.name: site for site in expert.sites}}
        recipe = load_recipe("rtn-hif4")
        routes = route_sites(recipe, sites, select_blocks(recipe, sites, None))["single"]
        quantized = sum(
            site.in_features * site.out_features
            for name, site in sites["single"].items()
            if routes[name].to == "quantize"
        )
        files = [size for _, size in expert.file_sizes()]
        tensors = sum(expert.info(name).size_bytes for name in expert.names)
    return {
        "files": sum(files), "largest_file": max(files), "tensors": tensors, "quantized": quantized,
        "codes": quantized // 2 + quantized // 16,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint: 0.7 GB a block")
    parser.add_argument("--model", type=Path, help="a checkpoint that is there already, in place of a new one")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sys.path[:0] = [str(TESTS / "convert"), str(TESTS / "large")]
    given.work.mkdir(parents=True, exist_ok=True)
    model = given.model
    if model is None:
        from large_runs import make_model

        model = make_model(given.work / "model", given.blocks, "BF16")
    sizes, delta = measure_sizes(model), given.work / "delta"
    converting = ("convert", str(model), "--recipe", "rtn-hif4")
    commands = {
        "inspect": ("inspect", str(model)),
        "inspect --no-file-hashes": ("inspect", str(model), "--no-file-hashes"),
        "convert": (*converting, "-o", str(delta)),
        "convert --no-file-hashes": (*converting, "--no-file-hashes", "-o", str(delta)),
        "verify": ("verify", str(delta), "--base", str(model)),
    }  # fmt: skip
    for path in sorted(model.glob("*.safetensors")):
        with open(path, "rb") as file:
            while file.read(HASHED):
                pass  # into the page cache
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    before = floors(given.threads, sizes)
    for _ in range(given.rounds):
        for name, arguments in commands.items():
            if arguments[0] == "convert" and delta.exists():
                shutil.rmtree(delta)
            entry = run_command(given.threads, *arguments)
            after = floors(given.threads, sizes)
            entry["limit_seconds"] = (before[name].wall + after[name].wall) / 2
            entry["limit_cpu_seconds"] = (before[name].cpu + after[name].cpu) / 2
            entry["ratio"] = entry["seconds"] / entry["limit_seconds"]
            entry["cpu_ratio"] = entry["cpu_seconds"] / entry["limit_cpu_seconds"]
            entry["command_ratio"] = entry["command_seconds"] / entry["limit_seconds"]
            before = after
            found[name].append(entry)
            print(f"{name:<26}" + "  ".join(f"{key} {value:.4g}" for key, value in entry.items()), flush=True)
    shutil.rmtree(delta, ignore_errors=True)
    document = {
        "sizes_bytes": sizes, "threads": given.threads, "load_average": os.getloadavg(), "rounds": given.rounds,
        "median": {
            name: {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
            for name, entries in found.items()
        },
        "runs": found,
    }  # fmt: skip
    print(json.dumps(document["median"], indent=1))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
