"""What converting one site takes: bytes of the delta, memory, and time in terms of this machine's own speed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from .architecture import Site
from .threads import single_thread

__all__ = ["Speed", "measure_speed", "measuring_seconds", "site_bytes", "site_seconds", "stage_bytes",
           "trying_seconds"]  # fmt: skip

# Codes as a difference to plain rounding: `benchmarks/code_difference.py`.
_CODES_BITS: Final = 1.2

# What is done with each element takes as long as hashing so many bytes: rounding, measuring, hashing codes; with a mask
# also a copy in fp32 that outputs are computed from; with other ops several.
_PLAIN: Final = 5
_MASKED: Final = 20
_CHAINED: Final = 55
_TRIES: Final = 3
_SIDE: Final = 512
_OUTPUT_ROWS: Final = 256
_SUBSPACE: Final = 60


@dataclass(frozen=True)
class Speed:
    """Of one thread: `hash_bytes` hashed and `products` multiplied and added in fp32, per second."""

    hash_bytes: float
    products: float


def measure_speed() -> Speed:
    """The speed of this machine, now; takes a tenth of a second."""
    data = np.ones(8 << 20, dtype=np.uint8)
    square = torch.ones(_SIDE, _SIDE)
    hashing = min(_seconds(lambda: hashlib.sha256(data.data).digest()) for _ in range(_TRIES))
    with single_thread():
        multiplying = min(_seconds(lambda: square @ square) for _ in range(_TRIES))
    return Speed(data.size / hashing, _SIDE**3 / multiplying)


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return max(time.perf_counter() - started, 1e-9)


def stage_bytes(stages: list[Mapping[str, Any]], site: Site) -> tuple[int, int]:
    """What the stages of a site add to the delta, and the memory that they need while they run."""
    width, height = site.in_features, site.out_features
    state = memory = 0
    for stage in stages:
        match stage["kind"]:
            case "smooth":
                state += 4 * width
            case "outlier_columns":
                state += 4 * int(stage["k"])
            case "lowrank":
                state += 2 * int(stage["rank"]) * (width + height)
                memory = max(memory, 12 * width * height)
            case "gptq":
                state += int(_CODES_BITS * width * height / 8)
                memory = max(memory, 12 * width * width + 12 * width * height + 6 * width * int(stage["tokens"]))
            case "clip":
                memory = max(memory, 8 * width * height + 12 * height * int(stage["rows"]))
    return state, memory


def _is_light(stages: list[Mapping[str, Any]]) -> bool:
    return all(stage["kind"] in ("smooth", "clip") for stage in stages)


def site_bytes(stages: list[Mapping[str, Any]], site: Site) -> int:
    """Memory that converting a site takes beside its BF16 weight: codes, copies in fp32, what the stages need."""
    elements = site.in_features * site.out_features
    if not stages:
        return elements
    # A lone mask costs what measuring the output costs: one fp32 copy; other ops keep up to three.
    copies = 5 if _is_light(stages) else 13
    return copies * elements + stage_bytes(stages, site)[1]


def site_seconds(stages: list[Mapping[str, Any]], site: Site, speed: Speed) -> float:
    """Time of one thread on a site, beside reading and hashing its weight; within a factor of two."""
    width, height = site.in_features, site.out_features
    elements = width * height
    bytes_hashed = _PLAIN if not stages else _MASKED if _is_light(stages) else _CHAINED
    seconds = bytes_hashed * elements / speed.hash_bytes
    products = 0.0
    for stage in stages:
        match stage["kind"]:
            case "lowrank":
                products += 4 * min(_SUBSPACE, min(width, height) // (int(stage["rank"]) + 8)) * elements * 40
            case "gptq":
                # Covariance, factor and inverse, and each column's error taken out of the columns behind it.
                products += width * width * (int(stage["tokens"]) + width) + elements * width / 2
            case "clip":
                products += int(stage["rows"]) * 3 * elements * (1 + len(stage["candidates"]))
    return float(seconds + products / speed.products)


def measuring_seconds(site: Site, speed: Speed) -> float:
    """Time of one thread on the errors of a site's output."""
    return 2 * _OUTPUT_ROWS * site.in_features * site.out_features / speed.products


def trying_seconds(stages: list[Mapping[str, Any]], site: Site, speed: Speed) -> float:
    """Time of one thread on trying `gptq` on rows left out: covariance, factor and inverse once more."""
    tokens = max((int(stage["tokens"]) for stage in stages if stage["kind"] == "gptq"), default=0)
    return site.in_features**2 * (min(tokens, 2 * site.in_features) + site.in_features) / speed.products
