"""The fifth level: each linear, given the runtime's own input: the bare product in float64, and the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from .levels import Level, finite
from .site_nodes import SiteNodes
from .site_reference import ReferenceSite

__all__ = ["BOUND", "LinearLevel", "largest_error"]

BOUND: Final = 1e-5
"""Largest error over largest output; sums of float32 products in any order stay far below it."""

_PRODUCTS: Final = 4_000_000_000
"""Multiplications in float64 per site and input, for which rows are left out at real widths."""

_CHUNK: Final = 1 << 23


def largest_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|; infinite where one is finite and the other is not."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (found.double() - expected.double()).abs()
    equal = (found.double() == expected.double()) | (found.isnan() & expected.isnan())
    worst = float(difference.masked_fill(equal, 0).nan_to_num(nan=float("inf")).max())
    peak = float(expected.double().abs().nan_to_num(nan=0.0, posinf=0.0).max())
    return 0.0 if worst == 0 else worst / peak if peak else float("inf")


class LinearLevel:
    """Collects the comparison of sites as they are run."""

    def __init__(self) -> None:
        self.level = Level("linear", {"bound": BOUND, "sites": 0, "product": None, "linear": None})
        self._product: dict[str, float] = {}
        self._linear: dict[str, float] = {}

    def see(self, nodes: SiteNodes, reference: ReferenceSite, values: Mapping[str, Tensor]) -> None:
        """One site on one input: quantized input, product and output are the runtime's."""
        places = nodes.places
        product = _product_error(values[places.qdq], values[places.product], reference)
        whole = largest_error(values[places.output], reference.output(values[places.input]))
        self._note(self._product, nodes, product, "another product than that of the quantized input and the weight")
        self._note(self._linear, nodes, whole, "another output than the delta's linear")
        self.level.figures |= {
            "sites": len(self._product), "product": _worst(self._product), "linear": _worst(self._linear),
        }  # fmt: skip

    def _note(self, errors: dict[str, float], nodes: SiteNodes, error: float, what: str) -> None:
        errors[nodes.site] = max(error, errors.get(nodes.site, 0.0))
        if not error <= BOUND:
            self.level.fail(nodes.multiply.name or nodes.site, what, f"at most {BOUND:g}", f"{error:.3g}")


def _worst(errors: Mapping[str, float]) -> dict[str, Any]:
    site = max(errors, key=lambda name: errors[name])
    return {"largest": finite(errors[site]), "site": site}


def _product_error(x: Tensor, found: Tensor, reference: ReferenceSite) -> float:
    """The product in float64 from the same operands, of evenly spaced rows where there are too many."""
    weight = reference.linear.operand
    out_features, width = weight.shape
    if x.shape[-1] != width or found.shape != (*x.shape[:-1], out_features):
        return float("inf")
    rows, results = x.reshape(-1, width), found.reshape(-1, out_features)
    if not rows.shape[0]:
        return 0.0
    count = max(16, min(rows.shape[0], _PRODUCTS // max(1, width * out_features)))
    step = max(1, rows.shape[0] // count)
    chosen, results = rows[::step].double(), results[::step]
    per_part = max(1, _CHUNK // max(1, width))
    exact = torch.cat([chosen @ part.double().T for part in weight.split(per_part)], dim=1)
    return largest_error(results, exact)
