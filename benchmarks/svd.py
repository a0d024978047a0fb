"""Truncated SVD of one weight against torch's full SVD in fp32, in the same process, on one thread.

    python benchmarks/svd.py --size 5120 --out benchmarks/results/svd.json

Two weights: Gaussian noise alone, whose spectrum has no gap anywhere, and the same with a few strong directions. What
our BF16 factors leave of the weight is summed in float64 and compared with what those of the full SVD leave, as they
are (the optimum) and rounded to BF16 as well. Seconds are the median of three runs of ours and one run of the full SVD.
Also timed: taking the product of the BF16 factors out of the weight, as restoring does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfq.convert.provenance import machine, software
from hfq.convert.truncated_svd import low_rank_factors, subtract_low_rank

STRONG = 8
REPEATS = 3


def gaussian(size: int) -> Tensor:
    """fp32 [size, size], sigma 0.02, as of a linear's weight."""
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.02


def strong(size: int) -> Tensor:
    """The same, and eight directions that are 2 to 16 times as strong as the strongest of the noise."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(size, STRONG, generator=generator)).Q for _ in range(2))
    edge = 2 * 0.02 * size**0.5
    return gaussian(size) + (left * torch.linspace(2, 16, STRONG) * edge) @ right.T


def left_over(weight: Tensor, product: Tensor) -> float:
    """Sum of squares of the difference, float64, a few rows at a time."""
    chunks = zip(weight.split(256), product.split(256), strict=True)
    return float(sum((a.double() - b.double()).square().sum() for a, b in chunks))


def measure(weight: Tensor, rank: int) -> dict[str, Any]:
    """Seconds and energies of one weight."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        down, up = low_rank_factors(weight, rank)
        seconds.append(time.perf_counter() - begin)
    ours_s = statistics.median(seconds)
    begin = time.perf_counter()
    rest = subtract_low_rank(weight, down, up)
    subtract_s = time.perf_counter() - begin
    del rest
    begin = time.perf_counter()
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    full_s = time.perf_counter() - begin
    root = S[:rank].sqrt()
    full_up, full_down = U[:, :rank] * root, root[:, None] * Vh[:rank]
    del U, Vh
    energy = left_over(weight, torch.zeros(1, 1).expand_as(weight))
    least = left_over(weight, full_up.double() @ full_down.double())
    rounded = left_over(weight, full_up.bfloat16().double() @ full_down.bfloat16().double())
    ours = left_over(weight, up.double() @ down.double())
    return {
        "seconds": ours_s,
        "seconds_full": full_s,
        "ratio": full_s / ours_s,
        "seconds_subtract": subtract_s,
        "captured_share_full": 1 - least / energy,
        "captured_bf16_to_full": (energy - ours) / (energy - least),
        "captured_bf16_to_full_bf16": (energy - ours) / (energy - rounded),
        "left_norm_excess_bf16_to_full": (ours / least) ** 0.5 - 1,
        "left_norm_excess_bf16_to_full_bf16": (ours / rounded) ** 0.5 - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5120, help="rows and columns of the weight")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"size": options.size, "rank": options.rank, "threads": 1}
    for make in (gaussian, strong):
        figures[make.__name__] = found = measure(make(options.size), options.rank)
        print(make.__name__, json.dumps(found, indent=2), flush=True)
    figures |= {"machine": machine(), "software": software()}
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
