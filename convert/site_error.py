"""How far a quantized site is from the original: what `report.json` holds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from .restore import RestoredSite, effective_weight, sole_mask
from .site_output import SiteOutput, evenly

if TYPE_CHECKING:
    from .calibration_use import CalibrationUse
    from .weight_counts import Bits

__all__ = [
    "OUTPUT_ROWS",
    "block_of",
    "measure_site",
    "output_figures",
    "report_document",
    "weight_figures",
    "zero_lines",
]

_ROWS: Final = 512
OUTPUT_ROWS: Final = 256
"""Input rows that measure an output."""

_TINY: Final = 1e-300
_LISTED: Final = 5


def measure_site(weight: Tensor, restored: RestoredSite, inputs: Tensor | None) -> dict[str, Any]:
    """Error of one site.

    Args:
        weight: the original, BF16 [out_features, in_features].
        inputs: kept input rows, BF16 [rows, in_features]; at most 256, evenly spaced, are used. A site with a clip is
            measured by its search instead.

    Returns:
        `weight_error` and `weight_power`: sums of squares of effective minus original weight, and of the original;
        `output_error` and `output_power`: likewise for the linear's output, or None without inputs or when fp32 cannot
        hold it; `elements` and `bits_per_weight`.
    """
    found = weight_figures(_weight_error(weight, restored), weight.numel(), restored.bits())
    if inputs is not None and inputs.shape[0] > 0:
        x = evenly(inputs, OUTPUT_ROWS)
        exact = x.float() @ weight.float().T
        operand = restored.weight.dequantize(torch.float32)
        quantized = SiteOutput(restored.ops.ops, operand, restored.ops.activation, x).at()
        found |= output_error(quantized, exact)
    return found


def weight_figures(sums: tuple[float, float], elements: int, bits: int) -> dict[str, Any]:
    """Result of `measure_site` without outputs, from the two sums of squares, and the bits that all elements take."""
    return {
        "weight_error": sums[0],
        "weight_power": sums[1],
        "output_error": None,
        "output_power": None,
        "elements": elements,
        "bits_per_weight": bits / elements,
    }


def _weight_error(weight: Tensor, restored: RestoredSite) -> tuple[float, float]:
    """Sums of squares of effective minus original weight, and of the original, in binary64."""
    ops = restored.ops.ops
    mask = sole_mask(ops)
    if not ops or mask is not None:
        # Squares of large BF16 numbers overflow fp32.
        return restored.weight.squared_error(weight, factor=mask)
    operand = restored.operand()
    error = power = 0.0
    for begin in range(0, weight.shape[0], _ROWS):
        rows = slice(begin, begin + _ROWS)
        original = weight[rows].double()
        effective = effective_weight(operand[rows].float(), ops, rows)
        error += float((effective.double() - original).square_().sum())
        power += float(original.square_().sum())
    return error, power


def output_error(quantized: Tensor, exact: Tensor) -> dict[str, float]:
    """`output_figures` of fp32 outputs [rows, out_features]."""
    return output_figures(float((quantized - exact).double().square_().sum()), float(exact.double().square_().sum()))


def output_figures(error: float, power: float) -> dict[str, float]:
    """`output_error` and `output_power` from the two sums of squares; empty when fp32 could not hold the outputs."""
    return {"output_error": error, "output_power": power} if math.isfinite(error) and math.isfinite(power) else {}


def block_of(site: str) -> str:
    """`blocks.7` for a site inside a block, else `outside`."""
    parts = site.split(".")
    return ".".join(parts[:2]) if parts[0] in ("blocks", "vace_blocks") else "outside"


def _ratio(entries: list[Mapping[str, Any]], kind: str) -> float | None:
    known = [entry for entry in entries if entry[f"{kind}_power"] is not None]
    if not known:
        return None
    power = sum(entry[f"{kind}_power"] for entry in known)
    error = sum(entry[f"{kind}_error"] for entry in known)
    if error == power == 0:
        return None  # nothing but zeros, which every format keeps: there is no error to compare with
    # Weights near fp32's end can make a ratio that binary64 does not hold.
    return min(float(error / max(power, _TINY)), sys.float_info.max)


def zero_lines(errors: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A warning per expert some of whose quantized weights are nothing but zeros; arguments as `report_document`."""
    lines = []
    for role, sites in errors.items():
        zero = [site for site, entry in sites.items() if entry["weight_power"] == 0]
        if zero:
            what = "1 quantized weight is" if len(zero) == 1 else f"{len(zero)} quantized weights are"
            more = "" if len(zero) <= _LISTED else f" and {len(zero) - _LISTED} more"
            lines.append(
                f"{role}: {what} zero throughout ({', '.join(zero[:_LISTED])}{more}): trained weights are not; is the "
                "checkpoint whole?"
            )
    return lines


def report_document(
    delta_id: str,
    errors: Mapping[str, Mapping[str, Mapping[str, Any]]],
    warnings: Sequence[str],
    use: CalibrationUse,
    bits: Bits,
) -> dict[str, Any]:
    """`report.json` under `hfq.report/1`: normalised mean squared errors per site, block and expert; null where the
    original is nothing but zeros.

    Args:
        errors: role -> quantized site -> result of `measure_site`.
        warnings: what the conversion had to say, one line each.
        use: which calibration measured the outputs, and which channels had no percentile.
        bits: of the packed form.
    """
    experts: dict[str, Any] = {}
    sparse = use.sparse_counts()
    for role, sites in errors.items():
        blocks: dict[str, list[Mapping[str, Any]]] = {}
        shown: dict[str, Any] = {}
        for site, entry in sites.items():
            blocks.setdefault(block_of(site), []).append(entry)
            nmse = _ratio([entry], "weight")
            shown[site] = {
                "weight_nmse": nmse,
                "weight_sqnr_db": -10.0 * math.log10(nmse) if nmse else None,
                "output_nmse": _ratio([entry], "output"),
                "bits_per_weight": entry["bits_per_weight"],
            }
            channels = use.sparse.get(role, {}).get(site)
            if channels is not None:
                shown[site]["sparse_channels"] = {"floor": channels.floor, "maximum": channels.maximum}
        everything = list(sites.values())
        experts[role] = {
            "weight_nmse": _ratio(everything, "weight") if everything else None,
            "output_nmse": _ratio(everything, "output"),
            "blocks": {
                name: {"weight_nmse": _ratio(entries, "weight"), "output_nmse": _ratio(entries, "output")}
                for name, entries in blocks.items()
            },
            "sites": shown,
        }
        if role in sparse:
            experts[role]["sparse_channels"] = sparse[role]
    document: dict[str, Any] = {
        "schema": "hfq.report/1",
        "delta": delta_id,
        "warnings": list(warnings),
        "experts": experts,
        "bits_per_weight": {"quantized": bits.quantized, "model": bits.model},
    }
    if use.calibration is not None and use.measured:
        document["measured_with"] = {"calibration": use.calibration.id, "prompts": len(use.calibration.prompt_hashes)}
    return document
