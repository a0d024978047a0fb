"""Which variant serves a workload: the cheapest that passes its gate, or the base.

A clip of the variant costs c4; the share f that reviewers reject is made again at c16. One accepted clip then costs
c4 + f c16 when every clip made again is accepted, less than c16 exactly when f < 1 - c4/c16. The reviewers' time is not
in it. Costs are seconds of one device: money is a factor that both sides share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .gate import GateResult
from .policy import Workload
from .values import Measurement, ReviewCounts, SettingValue

__all__ = ["Candidate", "Cost", "Route", "clip_cost", "route"]

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that could serve. `bits_per_weight` orders variants whose cost is not measured."""

    id: str
    gate: GateResult
    measurements: Sequence[Measurement] = ()
    review: ReviewCounts | None = None
    bits_per_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per clip on `device`; None is not measured, and `missing` says what is.

    `clip`: c4. `escalated`: c16. `fallback`: f. `break_even`: f below which the variant is worth its while.
    """

    clip: float | None
    escalated: float | None
    fallback: float | None
    device: str | None
    missing: tuple[str, ...]

    @property
    def accepted(self) -> float | None:
        """Per accepted clip."""
        if self.clip is None or self.escalated is None or self.fallback is None:
            return None
        return self.clip + self.fallback * self.escalated

    @property
    def break_even(self) -> float | None:
        """At most 0 when the variant is no faster than the target."""
        return None if self.clip is None or self.escalated is None else 1 - self.clip / self.escalated

    @property
    def worthwhile(self) -> bool | None:
        """Whether f is below break-even; None where that is not measured."""
        if self.break_even is None or self.fallback is None:
            return False if self.break_even is not None and self.break_even <= 0 else None
        return self.fallback < self.break_even


@dataclass(frozen=True, slots=True)
class Route:
    """`variant` is None for the base. `reason` is one sentence; `notes` say why each other candidate was not chosen."""

    variant: str | None
    reason: str
    costs: dict[str, Cost]
    notes: tuple[str, ...]


def clip_cost(variant: Sequence[Measurement], escalated: Sequence[Measurement], review: ReviewCounts | None) -> Cost:
    """Cost per accepted clip, from the last latency of the variant that the target has a counterpart of.

    A counterpart is a latency on the same device, with the same settings. Simulated kernels say nothing about speed and
    are not used.
    """
    ours, theirs = _latencies(variant), _latencies(escalated)
    pair = next(
        (
            (mine, other)
            for mine in reversed(ours)
            for other in reversed(theirs)
            if mine.device == other.device and _work(mine) == _work(other)
        ),
        None,
    )
    missing = []
    if pair is None:
        missing.append(f"latency: {_why_not(variant, ours, theirs)}")
    fallback = None
    if review is None or review.reviewed == 0:
        missing.append(f"fallback rate: {NOT_MEASURED}")
    else:
        fallback = 1 - review.accepted / review.reviewed
    if pair is None:
        return Cost(None, None, fallback, None, tuple(missing))
    return Cost(pair[0].value, pair[1].value, fallback, pair[0].device, tuple(missing))


def _work(measurement: Measurement) -> dict[str, SettingValue]:
    """Recorded settings without the seed, which decides what a clip shows and not what it costs."""
    return {name: value for name, value in measurement.settings.items() if value is not None and name != "seed"}


def _latencies(measurements: Sequence[Measurement]) -> list[Measurement]:
    return [part for part in measurements if part.quantity == "latency" and part.kernels == "real"]


def _why_not(variant: Sequence[Measurement], ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> str:
    if not ours:
        simulated = any(part.quantity == "latency" for part in variant)
        return f"{NOT_MEASURED} with real kernels" if simulated else NOT_MEASURED
    if not theirs:
        return f"{NOT_MEASURED} for the escalation target"
    return f"{NOT_MEASURED} on one device with the same settings as the escalation target"


def route(
    workload: Workload,
    candidates: Sequence[Candidate],
    escalated: Sequence[Measurement],
    *,
    budget: float | None = None,
) -> Route:
    """The cheapest variant that passes, or the base.

    Args:
        escalated: measurements of the workload's escalation target.
        budget: at most this many seconds of device per accepted clip.
    """
    costs = {candidate.id: clip_cost(candidate.measurements, escalated, candidate.review) for candidate in candidates}
    notes = [
        f"{candidate.id}: fails the gate: {'; '.join(candidate.gate.reasons)}"
        for candidate in candidates
        if not candidate.gate.passed
    ]
    passing = [candidate for candidate in candidates if candidate.gate.passed]
    if workload.prefer == "base":
        notes += [f"{candidate.id}: passes the gate and can be named by hand" for candidate in passing]
        reason = f"the policy serves {workload.name} with the base: {workload.control}"
        return Route(None, reason, costs, tuple(notes))
    fitting = []
    for candidate in passing:
        objection = _objection(costs[candidate.id], budget)
        if objection is None:
            fitting.append(candidate)
        else:
            notes.append(f"{candidate.id}: {objection}")
    if not fitting:
        what = "passes the gate" if not passing else "that passes is cheaper and within the budget"
        return Route(None, f"no variant {what}; {_base_cost(costs, escalated, budget)}", costs, tuple(notes))
    chosen = min(fitting, key=lambda candidate: _rank(candidate, costs[candidate.id]))
    notes += [f"{candidate.id}: passes too" for candidate in fitting if candidate is not chosen]
    return Route(chosen.id, _reason(chosen, costs[chosen.id], fitting, costs), costs, tuple(notes))


def _objection(cost: Cost, budget: float | None) -> str | None:
    if cost.worthwhile is False:
        fallback = NOT_MEASURED if cost.fallback is None else f"{cost.fallback:.1%}"
        return f"no cheaper than the escalation target: fallback rate {fallback}, break-even {cost.break_even:.1%}"
    if budget is not None and cost.accepted is None:
        return f"cannot be held against the budget of {budget:g} s per accepted clip: {'; '.join(cost.missing)}"
    if budget is not None and cost.accepted is not None and cost.accepted > budget:
        return f"{cost.accepted:.4g} s per accepted clip, over the budget of {budget:g}"
    return None


def _rank(candidate: Candidate, cost: Cost) -> tuple[float, float, str]:
    bits = math.inf if candidate.bits_per_weight is None else candidate.bits_per_weight
    return (math.inf if cost.accepted is None else cost.accepted, bits, candidate.id)


def _reason(chosen: Candidate, cost: Cost, fitting: Sequence[Candidate], costs: dict[str, Cost]) -> str:
    if cost.accepted is not None:
        unknown = sum(costs[candidate.id].accepted is None for candidate in fitting)
        tail = f"; the cost of {unknown} others that pass is {NOT_MEASURED}" if unknown else ""
        return (
            f"passes, and the cheapest measured: {cost.accepted:.4g} s per accepted clip on {cost.device}, "
            f"{cost.escalated:.4g} s with the escalation target{tail}"
        )
    if len(fitting) == 1:
        return f"the only variant that passes; cost per accepted clip {NOT_MEASURED} ({'; '.join(cost.missing)})"
    if chosen.bits_per_weight is None:
        return f"passes, first by id; cost per accepted clip {NOT_MEASURED} ({'; '.join(cost.missing)})"
    return (
        f"passes, with the fewest bits per weight ({chosen.bits_per_weight:.4g}); cost per accepted clip "
        f"{NOT_MEASURED} ({'; '.join(cost.missing)})"
    )


def _base_cost(costs: dict[str, Cost], escalated: Sequence[Measurement], budget: float | None) -> str:
    latencies = _latencies(escalated)
    if not latencies:
        return f"the base, whose cost per clip is {NOT_MEASURED}"
    last = latencies[-1]
    over = f", over the budget of {budget:g}" if budget is not None and last.value > budget else ""
    return f"the base, at {last.value:.4g} s per clip on {last.device}{over}"
