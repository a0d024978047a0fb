"""The outputs of a block or a model: next to torch, next to a control, and next to the error of quantization itself.

A rounding somewhere upstream moves a few codes, each by a whole step, and the more blocks follow the more it matters.
How much it may matter is what the controls say: torch against torch, with inputs moved by one ulp in random directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.linear import QuantizedLinear
from hfq.convert.model_analysis import available_bytes

from .forced import OUTPUT, forced_errors
from .levels import Level, finite
from .origin import Origin
from .reference import plain_module, reference_module
from .running import RunningGraph
from .site_nodes import SiteNodes
from .site_runs import Flips, most_rows

__all__ = ["BLOCK_BOUND", "CONTROLS", "CONTROL_FACTOR", "FORCED_BOUND", "References", "output_level", "relative_error"]

BLOCK_BOUND: Final = 1e-3
FORCED_BOUND: Final = 1e-5
"""Largest error over largest value between linears; right graphs of the tiny model, 500 runs, stayed below 1.6e-6."""

CONTROL_FACTOR: Final = 3.0
CONTROLS: Final = 3
_ADVICE: Final = "beyond the controls, and below the error of quantization"
_KEPT_BYTES: Final = 2_000_000_000
"""Of values of linears that are kept at once: those of torch for counting flips, and the runtime's for forcing."""

Inputs = Sequence[Mapping[str, Tensor]]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what was expected, in float64."""
    if found.shape != expected.shape:
        return float("inf")
    error = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    return 0.0 if error == 0 else error / size if size else float("inf")


def _cosine(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return 0.0
    left, right = found.double().flatten(), expected.double().flatten()
    norms = float(left.norm() * right.norm())
    return float(left @ right) / norms if norms else float(bool((left == right).all()))


def _moved(inputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every number one ulp up or down."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name in sorted(inputs):
        x = inputs[name]
        up = torch.rand(x.shape, generator=generator) < 0.5
        towards = torch.where(up, torch.full_like(x, float("inf")), torch.full_like(x, float("-inf")))
        moved[name] = torch.nextafter(x, towards)
    return moved


@dataclass
class References:
    """What torch makes of the inputs of a graph.

    Attributes:
        outputs: quantized, one per input.
        plain: relative error of quantization, one per input.
        controls: relative errors of the quantized model with moved inputs, per input.
        quantized_inputs: per input site -> what is multiplied, BF16; empty where that is too much to keep.
        module: the quantized part.
        obstacle: why there is nothing, or None.
    """

    outputs: list[Tensor] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    controls: list[list[float]] = field(default_factory=list)
    quantized_inputs: list[dict[str, Tensor]] = field(default_factory=list)
    module: nn.Module | None = None
    obstacle: str | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, delta: Delta, base: Checkpoint, origin: Origin, inputs: Inputs) -> References:
        """Run both modules, one after the other, so that only one is in memory.

        Raises:
            DigestMismatchError, and what reading the base raises.
        """
        obstacle = _obstacle(base, origin)
        if obstacle is not None:
            return cls(obstacle=obstacle)
        module = plain_module(base, origin.role, origin.scope)
        unquantized = [module(**given) for given in inputs]
        del module
        quantized = reference_module(delta, base, origin.role, origin.scope, origin.bin)
        found = cls(module=quantized)
        for given, exact in zip(inputs, unquantized, strict=True):
            output, kept = _run(quantized, given)
            found.outputs.append(output)
            found.quantized_inputs.append(kept)
            found.plain.append(relative_error(output, exact))
            found.controls.append(
                [relative_error(quantized(**_moved(given, seed)), output) for seed in range(CONTROLS)]
            )
        return found


def _obstacle(base: Checkpoint, origin: Origin) -> str | None:
    shapes = base.experts[origin.role].architecture.tensors()
    elements = sum(torch.Size(shape).numel() for name, shape in shapes.items() if origin.scope.holds(name))
    needed, available = 4 * elements * 5 // 4, available_bytes()
    if available is None or needed <= available:
        return None
    return f"torch needs about {needed / 1e9:.1f} GB of memory for it, and {available / 1e9:.1f} GB are free"


def _run(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    kept: dict[str, Tensor] = {}
    total = 0

    def keep(linear: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal total
        assert isinstance(linear, QuantizedLinear)
        x = linear.quantize_input(args[0])
        total += x.numel() * x.element_size()
        if total <= _KEPT_BYTES:
            kept[linear.site] = x

    hooks = [linear.register_forward_pre_hook(keep) for linear in _linears(module)]
    try:
        output: Tensor = module(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return output, kept


def _linears(module: nn.Module) -> list[QuantizedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantizedLinear)]


def _measure(level: Level, found: Sequence[Tensor], references: References, flips: Flips) -> list[tuple[float, float]]:
    """Figures over all inputs, of the worst where there is one; returns (relative error, largest control) of each."""
    outputs = list(zip(found, references.outputs, strict=True))
    errors = [relative_error(*pair) for pair in outputs]
    controls = [max(values) for values in references.controls]
    worst = max(range(len(errors)), key=lambda index: errors[index])
    ratio = errors[worst] / references.plain[worst] if references.plain[worst] else None
    level.figures |= {
        "inputs": len(found),
        "relative_error": finite(errors[worst]),
        "cosine": finite(min(_cosine(*pair) for pair in outputs)),
        "controls": [finite(value) for values in references.controls for value in values],
        "largest_control": finite(max(controls)),
        "ratio_to_control": finite(errors[worst] / controls[worst]) if controls[worst] else None,
        "quantization_error": finite(references.plain[worst]),
        "ratio_to_quantization_error": None if ratio is None else finite(ratio),
        "flips": sum(flips.counts.values()),
        "flip_elements": flips.elements,
        "flips_by_site": {site: count for site, count in sorted(flips.counts.items()) if count},
    }
    return list(zip(errors, controls, strict=True))


def output_level(
    name: str,
    origin: Origin,
    graph: RunningGraph,
    inputs: Inputs,
    references: References,
    flips: Flips,
    sites: Mapping[str, SiteNodes],
) -> Level:
    """The level `block` or `model`.

    It fails when the computation between the linears differs (see `forced`), or when a free run is further from the
    delta's model than that is from the base. It passes within the controls, a block within a fixed bound, too. Between
    these the figures decide nothing: a code that rounding moved is a whole step, which three controls may all miss.

    Args:
        name: "block" or "model".

    Raises:
        GraphRunError
    """
    if origin.scope.kind != name:
        return Level.skipped(name, f"the graph is of a {origin.scope.kind}")
    if references.obstacle is not None:
        return Level(name, reason=references.obstacle, undecided=True)
    bound = BLOCK_BOUND if name == "block" else 0.0
    level = Level(
        name, {"bound": bound, "control_factor": CONTROL_FACTOR, "forced_bound": FORCED_BOUND, "forced": None}
    )
    _force(level, graph, inputs, references, sites)
    found = [graph.run(given)[OUTPUT] for given in inputs]
    for index, (error, control) in enumerate(_measure(level, found, references, flips)):
        allowed, limit = max(bound, CONTROL_FACTOR * control), references.plain[index]
        if error <= allowed:
            continue
        if error < limit:
            level.undecided, level.reason = True, _ADVICE
        else:
            what = "further from the delta's model than that is from the base"
            level.fail(f"{OUTPUT} of input {index}", what, f"at most {max(allowed, limit):.3g}", f"{error:.3g}")
    return level


def _force(
    level: Level, graph: RunningGraph, inputs: Inputs, references: References, sites: Mapping[str, SiteNodes]
) -> None:
    assert references.module is not None
    rows = max((most_rows(given) for given in inputs), default=0)
    widths = sum(linear.in_features + linear.out_features for linear in _linears(references.module))
    if torch.float32.itemsize * rows * widths > _KEPT_BYTES:
        return
    errors = forced_errors(references.module, graph, inputs, sites)
    worst = max(errors, key=lambda name: errors[name])
    level.figures["forced"] = {"largest": finite(errors[worst]), "site": worst}
    for site, error in errors.items():
        if not error <= FORCED_BOUND:
            what = "what comes before this differs, with all linears before it forced to be equal"
            where = sites[site].quantizer.name if site in sites else site
            level.fail(where or site, what, f"at most {FORCED_BOUND:g}", f"{error:.3g}")
