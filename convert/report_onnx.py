"""Verified ONNX graphs for a page: from an entry of `hfq.onnx-report/1` to rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["graph_section"]

_SHOWN: Final = {
    "file": (("size_bytes", "bytes"), ("data_bytes", "bytes beside it"), ("initializers", "initializers")),
    "ops": (("elements", "elements"), ("mismatches", "mismatches")),
    "payload": (("initializers", "tensors"), ("decoded", "weights decoded")),
    "in_situ": (("nodes", "nodes"), ("elements", "elements"), ("differing", "differing")),
    "linear": (("sites", "linears"),),
    "block": (
        ("relative_error", "relative error"), ("largest_control", "largest control"),
        ("quantization_error", "quantization error"), ("flips", "codes flipped"),
    ),
    "model": (
        ("relative_error", "relative error"), ("largest_control", "largest control"),
        ("quantization_error", "quantization error"), ("flips", "codes flipped"),
    ),
    "reference_evaluator": (("op_mismatches", "op mismatches"), ("relative_error", "relative error")),
}  # fmt: skip
"""Level -> its figures for the table, with what they are called there."""


def graph_section(graph: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one graph: heading, facts, a row per level, a row per op and class of inputs."""
    part = graph["scope"] if graph["bin"] is None else f"{graph['scope']}, timestep bin {graph['bin']}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(graph["versions"].items()))
    facts = (
        f"opset {graph['opset']}, IR {graph['ir_version']}, {graph['provider']}, {versions}; inputs: {graph['inputs']}"
    )
    return {
        "file": graph["file"],
        "part": f"{graph['expert']} {part}",
        "facts": facts,
        "levels": [_row(name, graph["levels"][name]) for name in _SHOWN],
        "classes": graph["levels"]["ops"]["figures"].get("classes", []),
    }


def _row(name: str, level: Mapping[str, Any]) -> dict[str, Any]:
    figures = level["figures"]
    shown = [f"{label}: {_number(figures[key])}" for key, label in _SHOWN[name] if key in figures]
    for kind in ("product", "linear", "forced"):
        worst = figures.get(kind)
        if isinstance(worst, Mapping):
            shown.append(f"{kind}: at most {_number(worst['largest'])} ({worst['site']})")
    failures = [
        f"{entry['where']}: {entry['what']}"
        + "".join(f"; {word} {entry[word]}" for word in ("expected", "found") if entry[word] is not None)
        for entry in level["failures"]
    ]
    left = level["failure_count"] - len(failures)
    return {
        "name": name.replace("_", " "),
        "verdict": level["verdict"],
        "notes": [*failures, *([f"and {left} more"] if left else []), *filter(None, [level["reason"]])],
        "figures": ", ".join(shown),
        "seconds": level["seconds"],
    }


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return str(value) if isinstance(value, int) else f"{value:.3g}"
