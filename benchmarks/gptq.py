"""GPTQ of one linear in HiFloat4 against a loop written as in the paper, each in a process of its own, one thread.

    python benchmarks/gptq.py --size 5120 --out benchmarks/results/gptq.json
    python benchmarks/gptq.py --size 5120 --in-features 13824 --ours-only --out benchmarks/results/gptq.json

`paper`: arXiv 2210.17323, Algorithm 1, as usually written: damped Hessian, Cholesky, inverse, upper Cholesky of that;
weights [out, K] row-major, blocks of 128 columns, the rest of the block updated after every column and the rest of the
weight after every block. Scales of 64 columns are chosen when they start and columns rounded by the same code, in both.
Seconds are CPU time and wall time; other processes stretch the wall time, see `load_average`. `error` is what the
quantized weight's outputs miss, for some rows of the weight, relative to plain rounding: on the rows that the Hessian
is of, which GPTQ fits, above all where they are fewer than columns, and `error_held_out` on others. `low_rank`: the
factors of rank 32 that SVDQuant takes out before, here of the same weight and not taken out; the other arm takes a full
SVD in fp32 (`benchmarks/svd.py` compares their quality). --out keeps the entries of other shapes that the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfq.convert.gptq import Hif4Rounder, hessian, inverse_factor, quantize_columns
from hfq.convert.peak_memory import peak_rss_bytes
from hfq.convert.provenance import machine, software
from hfq.convert.truncated_svd import low_rank_factors
from hfq.formats import hif4
from hfq.formats.hif4_frozen import FrozenGroup

DAMP = 0.05
BLOCK = 128
CHUNK = 1024
CHECKED_ROWS = 256
HELD_OUT = 1024
RANK = 32


class Clock:
    """CPU and wall seconds per part."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    def timed(self, part: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.seconds[part] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return result


def ours(weight: Tensor, rows: Tensor, clock: Clock) -> Tensor:
    """What `hfq` does: the quantized weight's values fp32 [out, K]."""
    rounder = our_columns(weight, rows, clock)
    clock.timed("low_rank", lambda: low_rank_factors(weight, RANK))
    return rounder.result().dequantize(torch.float32)


def our_columns(weight: Tensor, rows: Tensor, clock: Clock) -> Hif4Rounder:
    rounder = Hif4Rounder(*weight.shape)
    h = clock.timed("hessian", lambda: hessian(rows))
    factor = clock.timed("factor", lambda: inverse_factor(h, DAMP, "benchmark"))
    clock.timed("columns", lambda: quantize_columns(weight, factor, rounder))
    return rounder


def paper(weight: Tensor, rows: Tensor, clock: Clock) -> Tensor:
    """The algorithm as published."""
    h = clock.timed("hessian", lambda: paper_hessian(rows))
    upper = clock.timed("factor", lambda: paper_factor(h))
    quantized: Tensor = clock.timed("columns", lambda: paper_columns(weight.clone(), upper))
    # The straightforward way to the factors of the low-rank branch.
    clock.timed("low_rank", lambda: torch.linalg.svd(weight, full_matrices=False))
    return quantized


def paper_hessian(rows: Tensor) -> Tensor:
    h, count = torch.zeros(rows.shape[1], rows.shape[1]), 0
    for chunk in rows.split(CHUNK):
        h *= count / (count + chunk.shape[0])
        count += chunk.shape[0]
        scaled = chunk.float().T * (2 / count) ** 0.5
        h += scaled @ scaled.T
    return h


def paper_factor(h: Tensor) -> Tensor:
    h.diagonal().add_(DAMP * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


def paper_columns(w: Tensor, upper: Tensor) -> Tensor:
    quantized = torch.zeros_like(w)
    for begin in range(0, w.shape[1], BLOCK):
        end = min(begin + BLOCK, w.shape[1])
        block = w[:, begin:end].clone()
        errors = torch.zeros_like(block)
        inner = upper[begin:end, begin:end]
        for j in range(end - begin):
            if j % hif4.GROUP == 0:
                group = FrozenGroup(hif4.quantize(block[:, j : j + hif4.GROUP]).scale[:, 0])
            levels = group.round(block[:, j], j % hif4.GROUP)
            value = group.values(levels, j % hif4.GROUP)
            errors[:, j] = (block[:, j] - value) / inner[j, j]
            block[:, j:] -= errors[:, j, None].matmul(inner[j, None, j:])
            quantized[:, begin + j] = value
        w[:, end:] -= errors.matmul(upper[begin:end, end:])
    return quantized


def missed(weight: Tensor, quantized: Tensor, rows: Tensor) -> float:
    """Squared error of the outputs of the first rows of the weight, in float64."""
    difference = (weight[:CHECKED_ROWS].double() - quantized[:CHECKED_ROWS]).T.contiguous()
    return float(sum((chunk.double() @ difference).square().sum() for chunk in rows.split(CHUNK)))


def materials(size: int, channels: int, rows: int) -> tuple[Tensor, Tensor]:
    """Weight fp32 [size, channels] with BF16 values, inputs BF16 [rows, channels] that correlate."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(size, channels, generator=generator) * 0.02).bfloat16().float()
    directions = torch.randn(channels // 8, channels, generator=generator) * (8 / channels) ** 0.5
    common = torch.randn(rows, channels // 8, generator=generator) @ directions
    gains = torch.randn(channels, generator=generator).mul(0.5).exp()
    return weight, (common + 0.5 * torch.randn(rows, channels, generator=generator)).mul(gains).bfloat16()


def peak_mb() -> float:
    return peak_rss_bytes() / 2**20


def run(arm: str, size: int, channels: int, row_count: int) -> dict[str, Any]:
    """One arm, in this process."""
    torch.set_num_threads(1)
    weight, both = materials(size, channels, row_count + HELD_OUT)
    rows, held_out = both[:row_count], both[row_count:]
    clock, before, load = Clock(), peak_mb(), os.getloadavg()[0]
    quantized = {"ours": ours, "paper": paper}[arm](weight, rows, clock)
    peak = peak_mb()
    plain = hif4.quantize(weight).dequantize(torch.float32)
    total = {kind: sum(part[kind] for part in clock.seconds.values()) for kind in ("cpu", "wall")}
    return {
        "seconds": {**clock.seconds, "total": total},
        "peak_mb": peak,
        "peak_before_mb": before,
        "error": missed(weight, quantized, rows) / missed(weight, plain, rows),
        "error_held_out": missed(weight, quantized, held_out) / missed(weight, plain, held_out),
        "load_average": [load, os.getloadavg()[0]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5120, help="rows of the weight")
    parser.add_argument("--in-features", type=int, help="columns of the weight; as many as rows by default")
    parser.add_argument("--rows", type=int, default=4096, help="input rows")
    parser.add_argument("--ours-only", action="store_true", help="leave the loop of the paper out")
    parser.add_argument("--arm", choices=("ours", "paper"), help="run one arm here and print its figures as JSON")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    size, channels = options.size, options.in_features or options.size
    if options.arm:
        print(json.dumps(run(options.arm, size, channels, options.rows)))
        return
    figures: dict[str, Any] = {"rows": options.rows, "damp": DAMP, "rank": RANK, "threads": 1}
    arms = ("ours",) if options.ours_only else ("ours", "paper")
    for arm in arms:
        sizes = ["--size", str(size), "--in-features", str(channels), "--rows", str(options.rows)]
        command = [sys.executable, __file__, "--arm", arm, *sizes]
        figures[arm] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(arm, json.dumps(figures[arm], indent=2), flush=True)
    if len(arms) == 2:
        seconds = {arm: figures[arm]["seconds"] for arm in arms}
        figures["ratio_cpu"] = {
            part: seconds["paper"][part]["cpu"] / seconds["ours"][part]["cpu"] for part in seconds["paper"]
        }
        print("paper to ours, CPU seconds", json.dumps(figures["ratio_cpu"], indent=2))
    figures |= {"machine": {**machine(), "threads": 1}, "software": software()}
    if options.out is not None:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        known[f"{size}x{channels}"] = figures
        options.out.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
