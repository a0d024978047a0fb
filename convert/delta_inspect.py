"""What a delta is, for `hfq inspect`, `hfq convert` and the registry's readers: routing, stored size, errors."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfq.schema.documents import read_document

from .delta import REPORT, STATE, Delta, load_delta
from .identity import same_weights
from .routing import Route
from .site_error import block_of
from .weight_counts import count_bits

__all__ = ["bits_lines", "clip_lines", "describe_delta", "error_lines", "inspect_delta", "rounded_lines",
           "routing_lines", "routing_table", "short_id", "sparse_lines"]  # fmt: skip


def short_id(delta_id: str) -> str:
    """`delta:9f2c1b7a90de`, for display."""
    return f"delta:{delta_id[:12]}"


def routing_table(routes: Mapping[str, Mapping[str, Route]]) -> list[dict[str, Any]]:
    """How many sites each rule decided, per expert: expert, to, rule, reason, sites, blocks."""
    rows = []
    for role, sites in routes.items():
        counts = Counter((route.rule, route.to, route.reason) for route in sites.values())
        for (rule, to, reason), count in sorted(counts.items()):
            blocks = {
                block_of(site) for site, route in sites.items() if (route.rule, route.reason) == (rule, reason)
            } - {"outside"}
            rows.append(
                {"expert": role, "to": to, "rule": rule, "reason": reason, "sites": count, "blocks": len(blocks)}
            )
    return rows


def routing_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table as text, one line per row."""
    return [
        f"routing     {row['expert']}: {row['to']} {_count(row['sites'], 'linear')}"
        + (f" in {_count(row['blocks'], 'block')}" if row["blocks"] else "")
        + f"  ({row['reason']})"
        for row in rows
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def bits_lines(described: Mapping[str, Any]) -> list[str]:
    """Both bits per weight of `describe_delta` as text, in one line."""
    quantized, model = described["restored_bits_per_weight"], described["model_bits_per_weight"]
    of_quantized = "" if quantized is None else f"{quantized:.4f} bits per quantized weight when packed, "
    return [f"restored    {of_quantized}{model:.4f} bits per weight over the whole model"]


def error_lines(described: Mapping[str, Any]) -> list[str]:
    """The errors of `describe_delta` as text, one line per expert that has quantized sites."""
    lines, with_, used = [], described["measured_with"], described["calibration"]
    note = " (on the inputs that gptq or clip were fitted to)" if described["fitted"] else ""
    if with_ is not None and used is None:
        note = f" (outputs on calibration {with_['calibration'][:12]}…, which decided nothing)"
    for role, error in described["error"].items():
        shown = [
            f"{kind} NMSE {error[f'{kind}_nmse']:.3e}"
            for kind in ("weight", "output")
            if error[f"{kind}_nmse"] is not None
        ]
        if shown:
            lines.append(f"error       {role}: {', '.join(shown)}{note}")
    return lines


def describe_delta(delta: Delta) -> dict[str, Any]:
    """A JSON-able summary: id, recipe, base roots, calibration, routing, sizes, bits per weight, errors."""
    report_path = delta.path / REPORT
    report = read_document(report_path, "report") if report_path.is_file() else None
    errors, warnings, measured_with, sparse = {}, [], None, {}
    if report is not None and report["delta"] == delta.id:
        warnings = list(report["warnings"])
        measured_with = report.get("measured_with")
        sparse = {
            role: entry["sparse_channels"] for role, entry in report["experts"].items() if "sparse_channels" in entry
        }
        errors = {
            role: {"weight_nmse": entry["weight_nmse"], "output_nmse": entry["output_nmse"]}
            for role, entry in report["experts"].items()
        }
    experts = {}
    quantized_weights = 0
    for role in delta.roles:
        tensors = delta.base_tensors(role)
        elements = [math.prod(tensors[f"{site}.weight"]["shape"]) for site in delta.quantized(role)]
        quantized_weights += sum(elements)
        experts[role] = {
            "bf16_root": delta.root(role),
            "quantized": len(elements),
            "kept": len(delta.routes[role]) - len(elements),
            "quantized_weights": sum(elements),
        }
    # Deltas of before say nothing of it themselves.
    warnings += [text for text in same_weights(map(delta.root, delta.roles)) if text not in warnings]
    bits = count_bits(delta.document)
    state_bytes = os.path.getsize(delta.path / STATE)
    base_bytes = sum(
        2 * math.prod(entry["shape"]) for role in delta.roles for entry in delta.base_tensors(role).values()
    )
    return {
        "id": delta.id,
        "recipe": delta.recipe.name,
        "recipe_digest": delta.recipe.digest,
        "weight": dict(delta.recipe.weight),
        "activation": dict(delta.recipe.activation),
        "model_type": delta.document["base"]["model_type"],
        "calibration": delta.document["calibration"],
        "experts": experts,
        "routing": routing_table(delta.routes),
        "error": errors,
        "stages": [str(stage["kind"]) for stage in delta.recipe.stages],
        "clip": _clip_counts(delta),
        "measured_with": measured_with,
        "sparse": sparse,
        "rounded": _rounded(delta),
        "fitted": delta.recipe.needs_inputs,
        "warnings": warnings,
        "delta_bytes": sum(path.stat().st_size for path in delta.path.iterdir() if path.is_file()),
        "state_bytes": state_bytes,
        "base_bytes": base_bytes,
        "stored_bits_per_weight": 8.0 * state_bytes / quantized_weights if quantized_weights else 0.0,
        "restored_bits_per_weight": bits.quantized,
        "model_bits_per_weight": bits.model,
    }


def _clip_counts(delta: Delta) -> dict[str, list[dict[str, int]]]:
    """role -> per timestep bin, how many linears have each headroom; empty without a clip stage."""
    found: dict[str, list[dict[str, int]]] = {}
    for role in delta.roles:
        for site in delta.quantized(role):
            for op in delta.site(role, site)["ops"]:
                if op["op"] == "clip":
                    counts = found.setdefault(role, [{} for _ in op["headroom"]])
                    for index, headroom in enumerate(op["headroom"]):
                        name = f"{headroom:.2f}"
                        counts[index][name] = counts[index].get(name, 0) + 1
    return {role: [dict(sorted(bin_.items())) for bin_ in counts] for role, counts in found.items()}


def clip_lines(counts: Mapping[str, list[dict[str, int]]]) -> list[str]:
    """The counts as text, one line per expert and timestep bin."""
    return [
        f"clip        {role}, bin {index}: " + ", ".join(f"{name} in {count}" for name, count in bin_.items())
        for role, bins in counts.items()
        for index, bin_ in enumerate(bins)
    ]


def _rounded(delta: Delta) -> dict[str, dict[str, str]]:
    """role -> site -> why it was rounded although the recipe has gptq for it; empty without any."""
    found: dict[str, dict[str, str]] = {}
    for role in delta.roles:
        for site in delta.quantized(role):
            reason = delta.site(role, site).get("rounded")
            if reason is not None:
                found.setdefault(role, {})[site] = reason
    return found


def sparse_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line per expert whose samples do not tell some channels' percentile."""
    return [
        f"percentile  {role}: not told by the samples for {_count(found['floor'] + found['maximum'], 'channel')} in "
        f"{_count(found['linears'], 'linear')}; {found['floor']} take the recipe's floor, {found['maximum']} their "
        "exact maximum"
        for role, found in counts.items()
    ]


def rounded_lines(rounded: Mapping[str, int]) -> list[str]:
    """One line per expert with linears that gptq has left to plain rounding."""
    return [
        f"gptq        {role}: {_count(count, 'linear')} rounded plainly, for want of different input rows"
        for role, count in rounded.items()
    ]


def inspect_delta(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """The summary of a delta folder as a document and as text.

    Raises:
        what `load_delta` raises
    """
    with load_delta(Path(path)) as delta:
        found = describe_delta(delta)
    lines = [f"delta       {found['id']}", f"recipe      {found['recipe']} ({found['recipe_digest'][:12]}…)"]
    lines.append(f"weight      {_options(found['weight'])}")
    lines.append(f"activation  {_options(found['activation'])}")
    for role, expert in found["experts"].items():
        lines.append(f"base        {role}: bf16 root {expert['bf16_root']}")
    calibration = found["calibration"]
    lines.append(
        "calibration none"
        if calibration is None
        else f"calibration {calibration['id'][:12]}…, {len(calibration['prompts'])} prompts"
    )
    if found["stages"]:
        lines.append(f"stages      {', '.join(found['stages'])}")
    lines += routing_lines(found["routing"])
    lines += clip_lines(found["clip"])
    lines += sparse_lines(found["sparse"])
    for role, sites in found["rounded"].items():
        lines += [f"rounded     {role} {site}  ({reason})" for site, reason in sites.items()]
    lines.append(
        f"stored      {found['state_bytes']} bytes of state, "
        f"{found['stored_bits_per_weight']:.4f} bits per quantized weight"
    )
    lines += bits_lines(found)
    lines += error_lines(found)
    lines += [f"warning     {text}" for text in found["warnings"]]
    return found, "\n".join(lines)


def _options(options: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in options.items() if key != "format")
    return f"{options['format']}" + (f" ({rest})" if rest else "")
