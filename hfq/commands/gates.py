"""`hfq compare`, `hfq gate` and `hfq route`: what recorded scores decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hfq.console import emit, json_option, note
from hfq.registry import open_registry
from hfq.registry.text import display_id, printable
from hfq.schema.errors import HfqError, UsageError

if TYPE_CHECKING:
    from hfq.registry.judging import Compared, Gated, Routed
    from hfq.registry.prompts import Seen
    from hfq.registry.scores.paired import Comparison, Difference
    from hfq.registry.scores.routing import Cost

__all__ = ["compare_command", "gate_command", "route_command"]

_workload = click.option("--workload", required=True, metavar="NAME", help="A workload of the policy.")
_policy = click.option("--policy", "policy_file", type=click.Path(), help="TOML or JSON file; else the default policy.")
_content_class = click.option(
    "--content-class", metavar="NAME", help="Category of the job at hand, held to what a required category is held to."
)


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--anyway", is_flag=True, help="Show the numbers even when the clips were generated differently.")
@json_option
def compare_command(first: str, second: str, anyway: bool, as_json: bool) -> None:
    """Compare two variants video by video: mean of A - B with a 95 % interval, in all and by category.

    A and B are deltas, or a base (base: and digits). Clips that were generated with another guidance, number of steps,
    shift or size, or of which one side alone records it, are no comparison: exit code 2, or with --anyway the numbers
    under that name. Scores of different prompt sets are never joined.
    """
    from hfq.registry.scores.settings import BLOCKING, require_alike

    registry = open_registry()
    one, other = registry.variant(first), registry.variant(second)
    found = registry.compare(one, other)
    if not anyway:
        require_alike(found.settings)
    seen = {side: registry.scores(variant)[1] for side, variant in (("A", one), ("B", other))}
    alike = not any(difference.kind in BLOCKING for difference in found.settings)
    document = {
        "first": asdict(one),
        "second": asdict(other),
        "comparison": alike,
        "settings": [asdict(difference) for difference in found.settings],
        "metrics": [_comparison_json(part, seen) for part in found.comparisons],
        "left_out": list(found.left_out),
        "clips": list(found.origins),
    }
    lines = [f"A  {one}", f"B  {other}", *_compared_lines(found, seen, alike)]
    emit(document, "\n".join(lines), as_json)


def _comparison_json(part: Comparison, seen: dict[str, Seen | None]) -> dict[str, Any]:
    from hfq.registry.judging import overlap_of

    return {
        "metric_suite": part.pairs.metric_suite,
        "metric": part.pairs.metric,
        "prompt_set": part.pairs.prompt_set,
        "direction": part.pairs.direction,
        "overall": asdict(part.overall),
        "by_category": {name: asdict(difference) for name, difference in part.by_category.items()},
        "uncategorised": part.uncategorised,
        "only_first": list(part.pairs.only_first),
        "only_second": list(part.pairs.only_second),
        "overlap": {side: overlap_of(part.pairs, prompts) for side, prompts in seen.items()},
    }


def _compared_lines(found: Compared, seen: dict[str, Seen | None], alike: bool) -> list[str]:
    from hfq.registry.judging import overlap_of
    from hfq.registry.scores.values import set_labels

    lines = []
    if not alike:
        decided = any(difference.kind == "decisive" for difference in found.settings)
        how = "were generated with other settings" if decided else "are not known to be generated alike"
        lines.append(f"NOT A COMPARISON of the variants: the clips {how}")
    lines += [f"setting      {difference.kind}  {printable(difference, 400)}" for difference in found.settings]
    lines += [f"clips        {printable(line, 400)}" for line in found.origins]
    labels = set_labels(part.pairs.prompt_set for part in found.comparisons)
    for part in found.comparisons:
        where = printable(labels[part.pairs.prompt_set])
        lines.append(f"metric       {printable(part.pairs.metric_suite)} {part.pairs.metric}{where}")
        lines.append(f"  all          {_difference(part.overall)}")
        lines += [f"  {printable(name, 40):<12} {_difference(one)}" for name, one in part.by_category.items()]
        if part.by_category and part.uncategorised:
            lines.append(f"  in no category: {part.uncategorised} videos")
        for side, stems in (("A", part.pairs.only_first), ("B", part.pairs.only_second)):
            if stems:
                lines.append(f"  only {side} has {len(stems)} more videos; they are not compared")
        for side, prompts in seen.items():
            if (overlap := overlap_of(part.pairs, prompts)) is not None:
                lines.append(f"  overlap {side}    {overlap}")
    return lines + [f"left out     {printable(line)}" for line in found.left_out]


def _difference(one: Difference) -> str:
    if one.interval is None:
        interval = f"no interval ({one.no_interval})"
    else:
        interval = f"{one.interval.level:.0%} interval {one.interval.low:+.4f} to {one.interval.high:+.4f}"
    return (
        f"{one.mean_first:.4f} against {one.mean_second:.4f}: {one.mean:+.4f}, {interval}  "
        f"({one.videos} videos, {one.prompts} prompts)"
    )


@click.command("gate")
@click.argument("delta", metavar="ID")
@_workload
@_policy
@_content_class
@json_option
def gate_command(delta: str, workload: str, policy_file: str | None, content_class: str | None, as_json: bool) -> None:
    """Say whether the delta ID has shown what WORKLOAD asks of it, against its base.

    Exit code 0: it passes. 4: it does not, with every reason; what is not measured does not pass.
    """
    from hfq.registry.scores.gate import require_passed
    from hfq.registry.scores.policy import load_policy
    from hfq.schema.errors import GateFailedError

    registry = open_registry()
    gated = registry.gate(load_policy(policy_file), workload, registry.variant(delta), content_class=content_class)
    failure = None
    try:
        require_passed(gated.result, display_id(gated.delta_id))
    except GateFailedError as error:
        failure = error
    document = _gate_json(gated) | ({} if failure is None else {"error": failure.to_json()})
    emit(document, "\n".join(_gate_lines(gated)), as_json)
    if failure is not None:
        note(f"hfq: {display_id(gated.delta_id)} fails the gate of {workload} [{failure.code}]")
        raise click.exceptions.Exit(failure.exit_code)


def _gate_json(gated: Gated) -> dict[str, Any]:
    result = gated.result
    return {
        "delta": gated.delta_id,
        "base": gated.base_id,
        "policy": result.policy_id,
        "workload": result.workload,
        "passed": result.passed,
        "confidence": result.confidence,
        "checks": [asdict(check) for check in result.checks],
        "reasons": list(result.reasons),
        "notes": list(result.notes),
        "conditions": list(result.conditions),
        "overlap": gated.overlap,
        "clips": list(gated.origins),
    }


def _gate_lines(gated: Gated) -> list[str]:
    result = gated.result
    how = "" if result.confidence is not None else " by means, without a confidence bound"
    lines = [f"{display_id(gated.delta_id)} {'passes' if result.passed else 'fails'} {result.workload}{how}"]
    lines += [f"  {'pass' if check.passed else 'FAIL'}       {printable(check.text, 400)}" for check in result.checks]
    lines += [f"  note       {printable(line, 400)}" for line in result.notes]
    if result.passed:
        lines += [f"  condition  {printable(line, 400)}" for line in result.conditions]
    lines += [f"  overlap    {printable(name)}: {line}" for name, line in gated.overlap.items()]
    return [*lines, f"  policy     {display_id(result.policy_id, 'policy')}"]


def _number(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """NaN is in every range and under no budget."""
    if value is not None and math.isnan(value):
        raise UsageError("not a budget", expected="seconds above 0", found=value)
    return value


@click.command("route")
@_workload
@click.option("--base", metavar="ID", help="The base to serve from: base: and digits, or a delta on it.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="S", callback=_number,
              help="At most so many seconds of device per accepted clip.")  # fmt: skip
@_policy
@_content_class
@json_option
def route_command(
    workload: str,
    base: str | None,
    budget: float | None,
    policy_file: str | None,
    content_class: str | None,
    as_json: bool,
) -> None:
    """Name the variant that serves WORKLOAD: the cheapest that passes its gate, or the escalation target, and why.

    Cost per accepted clip: c4 + f c16, with the latency c4 of the variant, c16 of what rejected clips are made again
    with, and the share f that reviewers reject. Below the break-even rate 1 - c4/c16 the variant is worth its while.
    """
    from hfq.registry.judging import Demand
    from hfq.registry.scores.policy import load_policy

    registry = open_registry()
    where = registry.variant(base, of_base=True)
    routed = registry.route(load_policy(policy_file), workload, where, Demand(budget, content_class, _bits_of))
    document = {
        "workload": workload,
        "base": routed.base_id,
        "variant": routed.variant_id,
        "escalates_to": {"name": routed.workload.escalate_to, "delta": routed.target_id},
        "reason": routed.route.reason,
        "costs": {routed.gates[name].delta_id: _cost_json(cost) for name, cost in routed.route.costs.items()},
        "notes": list(routed.route.notes),
        "gates": {gated.delta_id: _gate_json(gated) for gated in routed.gates.values()},
        "unscored": list(routed.unscored),
    }
    emit(document, "\n".join(_route_lines(routed)), as_json)


def _bits_of(folder: Path) -> float | None:
    from hfq.convert.delta_inspect import inspect_delta

    try:
        bits: float | None = inspect_delta(str(folder))[0]["model_bits_per_weight"]
    except HfqError:  # a folder that cannot be read ranks last; whoever uses the delta is told why
        return None
    return bits


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "clip_s": cost.clip,
        "escalated_s": cost.escalated,
        "fallback": cost.fallback,
        "accepted_clip_s": cost.accepted,
        "break_even_fallback": cost.break_even,
        "device": None if cost.conditions is None else cost.conditions.device,
        "settings": None if cost.conditions is None else dict(cost.conditions.settings),
        "missing": list(cost.missing),
    }


def _route_lines(routed: Routed) -> list[str]:
    found = routed.route
    chosen = found.variant or display_id(routed.base_id, "base")
    lines = [f"{routed.workload.name}: {chosen}", f"  reason     {printable(found.reason, 1000)}"]
    for name, cost in found.costs.items():
        lines += [f"  {name}", *_cost_lines(cost)]
        lines += [f"    overlap    {printable(key)}: {line}" for key, line in routed.gates[name].overlap.items()]
    lines += [f"  note       {printable(line, 1000)}" for line in found.notes]
    if routed.unscored:
        lines.append(f"  note       {_names(routed.unscored)}: no score that {routed.workload.name} asks for")
    if found.variant in routed.gates and routed.gates[found.variant].result.passed:
        lines += [f"  note       {printable(line, 400)}" for line in routed.gates[found.variant].origins]
        conditions = routed.gates[found.variant].result.conditions
        lines += [f"  condition  {printable(line, 400)}" for line in conditions]
    return lines


def _cost_lines(cost: Cost) -> list[str]:
    def show(value: float | None, form: str) -> str:
        return "not measured" if value is None else form.format(value)

    device = f" {printable(cost.conditions, 400)}" if cost.conditions else ""
    return [
        f"    per accepted clip    {show(cost.accepted, '{:.4g} s')}{device}",
        f"    fallback rate        {show(cost.fallback, '{:.1%}')}",
        f"    break-even rate      {show(cost.break_even, '{:.1%}')}",
        *(f"    missing              {printable(line)}" for line in cost.missing),
    ]


def _names(ids: Sequence[str]) -> str:
    shown = ", ".join(display_id(one) for one in ids[:5])
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"
