"""Speed of the number formats on this CPU: eager, compiled and `copy_` side by side, in the same run.

    python benchmarks/kernels.py [--elements 26214400] [--repeats 7] [--threads 1 2] [--clock wall|cpu] [--out FILE]

Prints JSON: million elements per second, the median of the repeats, and the median of the ratios of paired repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from hfq.formats import _compiled, hif4, hif8
from hfq.formats.rounding import round_to_bf16

COLUMNS = 5120


def cases(elements: int) -> dict[str, tuple[Tensor, Callable[[Tensor], Any]]]:
    """Name -> input and what is done with it."""
    rows = max(1, elements // COLUMNS)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(rows, COLUMNS, generator=generator).mul_(0.02)
    narrow = wide.bfloat16()
    mask = torch.rand(COLUMNS, generator=generator) + 0.5
    four, eight = hif4.quantize(narrow), hif8.quantize(narrow, scale="row")
    words = four.scale
    found: dict[str, tuple[Tensor, Callable[[Tensor], Any]]] = {
        "hif4.quantize bf16": (narrow, hif4.quantize),
        "hif4.quantize bf16 / mask": (narrow, lambda x: hif4.quantize(x, divisor=mask)),
        "hif4.quantize fp32": (wide, hif4.quantize),
        "hif4.quantize fp32 -> bf16 / mask": (
            wide,
            lambda x: hif4.quantize(x, through=torch.bfloat16, divisor=mask),
        ),
        "hif4.quantize bf16, scale search": (narrow, lambda x: hif4.quantize(x, scale_search=True)),
        "hif4.quantize_under bf16": (narrow, lambda x: hif4.quantize_under(x, words)),
        "hif4.qdq bf16 * mask": (narrow, lambda x: hif4.qdq(x, factor=mask)),
        "hif4.dequantize bf16": (narrow, lambda _: four.dequantize()),
        "hif4.dequantize bf16 * mask": (narrow, lambda _: four.dequantize(factor=mask)),
        "hif4.squared_error bf16": (narrow, four.squared_error),
        "hif8.quantize bf16": (narrow, hif8.quantize),
        "hif8.quantize bf16, row": (narrow, lambda x: hif8.quantize(x, scale="row")),
        "hif8.quantize fp32, row": (wide, lambda x: hif8.quantize(x, scale="row")),
        "hif8.qdq bf16": (narrow, hif8.qdq),
        "hif8.qdq bf16, row": (narrow, lambda x: hif8.qdq(x, scale="row")),
        "hif8.qdq bf16 * mask": (narrow, lambda x: hif8.qdq(x, factor=mask)),
        "hif8.dequantize bf16, row": (narrow, lambda _: eight.dequantize()),
        "hif8.squared_error bf16": (narrow, eight.squared_error),
        "round_to_bf16": (wide, round_to_bf16),
    }
    for name in hif4.PROFILES:
        found[f"hif4.qdq bf16, {name}"] = (narrow, lambda x, name=name: hif4.qdq(x, profile=name))
    return found


@contextmanager
def eager() -> Iterator[None]:
    """Nothing runs compiled."""
    before = _compiled.LOAD_FROM, _compiled.RUN_FROM
    _compiled.LOAD_FROM = _compiled.RUN_FROM = sys.maxsize
    try:
        yield
    finally:
        _compiled.LOAD_FROM, _compiled.RUN_FROM = before


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(work: Callable[[], Any], clock: str) -> float:
    start = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - start


def measure(x: Tensor, work: Callable[[Tensor], Any], repeats: int, clock: str) -> dict[str, float]:
    """One case: repeats of eager, compiled and `copy_`, one after the other."""
    target = torch.zeros_like(x)
    work(x)
    times: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        with eager():
            slow = seconds(lambda: work(x), clock)
        times.append((slow, seconds(lambda: work(x), clock), seconds(lambda: target.copy_(x), clock)))
    million = x.numel() / 1e6
    slow, fast, copy = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "eager": round(million / slow, 1),
        "compiled": round(million / fast, 1),
        "copy": round(million / copy, 1),
        "compiled_over_eager": round(statistics.median(slow / fast for slow, fast, _ in times), 2),
        "compiled_over_copy": round(statistics.median(copy / fast for _, fast, copy in times), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=5120 * COLUMNS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine, with one thread")
    parser.add_argument("--only", default="", help="cases whose name starts so")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    start = time.perf_counter()
    for module in ("hif4_kernels", "hif4_error_kernels", "hif8_kernels", "rounding_kernels"):
        _compiled.kernels(module)
    report: dict[str, Any] = {
        "elements": given.elements,
        "repeats": given.repeats,
        "clock": given.clock,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {"numba": numba.__version__, "numpy": np.__version__, "torch": torch.__version__},
        "kernels_ready_s": round(time.perf_counter() - start, 2),
        "million_elements_per_second": {},
    }
    for threads in sorted(set(given.threads)):
        torch.set_num_threads(threads)
        chosen = {name: case for name, case in cases(given.elements).items() if name.startswith(given.only)}
        rows = {name: measure(x, work, given.repeats, given.clock) for name, (x, work) in chosen.items()}
        report["million_elements_per_second"][f"{threads} threads"] = rows
    text = json.dumps(report, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
