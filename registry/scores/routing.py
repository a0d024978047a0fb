"""Which variant serves a workload: the cheapest that passes its gate, or what the policy escalates to.

A clip of the variant costs c4; the share f that reviewers reject is made again at c16. One accepted clip then costs
c4 + f c16 when every clip made again is accepted, less than c16 exactly when f < 1 - c4/c16. The reviewers' time is not
in it. Costs are seconds of one device: money is a factor that both sides share. Seconds of another device, or of clips
of another size, length or number of steps, are not held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .gate import GateResult
from .policy import Workload
from .values import Measurement, ReviewCounts, SettingValue

__all__ = ["Candidate", "Conditions", "Cost", "Route", "clip_costs", "route"]

NOT_MEASURED: Final = "not measured"
_WORK: Final = ("frames", "height", "width", "steps")
"""What decides most of a clip's cost."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that could serve. `bits_per_weight` orders variants whose cost is not measured."""

    id: str
    gate: GateResult
    measurements: Sequence[Measurement] = ()
    review: ReviewCounts | None = None
    bits_per_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a latency was measured on and with. `settings`: sorted by name, without the seed, which costs nothing."""

    device: str
    settings: tuple[tuple[str, SettingValue], ...]

    def __str__(self) -> str:
        return self.text([name for name, _ in self.settings])

    def text(self, names: Iterable[str]) -> str:
        """The device and the settings of these names."""
        known = dict(self.settings)
        settings = ", ".join(f"{name} {known.get(name, 'not recorded')}" for name in names)
        return f"on {self.device}" + (f" with {settings}" if settings else "")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per clip under `conditions`; None is not measured, and `missing` says what is.

    `clip`: c4. `escalated`: c16. `fallback`: f. `break_even`: f below which the variant is worth its while.
    """

    clip: float | None
    escalated: float | None
    fallback: float | None
    conditions: Conditions | None
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
    """`variant` is what serves: a candidate, or the escalation target where that is no base; None is the base.

    `reason` is one sentence; `notes` say why each other candidate was not chosen. `costs`: of each candidate, under the
    conditions that candidates are ranked by where it was measured under these.
    """

    variant: str | None
    reason: str
    costs: dict[str, Cost]
    notes: tuple[str, ...]


def clip_costs(
    variant: Sequence[Measurement], escalated: Sequence[Measurement], review: ReviewCounts | None
) -> tuple[Cost, ...]:
    """Costs per accepted clip under each conditions under which variant and target were both measured, last measured
    last; one that says what is missing where there are none.

    Simulated kernels say nothing about speed and are not used.
    """
    missing = []
    fallback = None
    if review is None or review.reviewed == 0:
        missing.append(f"fallback rate: {NOT_MEASURED}")
    else:
        fallback = 1 - review.accepted / review.reviewed
    ours, theirs = _latencies(variant), _latencies(escalated)
    both = [conditions for conditions in ours if conditions in theirs]
    if not both:
        missing.insert(0, f"latency: {_why_not(variant, ours, theirs)}")
        return (Cost(None, None, fallback, None, tuple(missing)),)
    return tuple(Cost(ours[one], theirs[one], fallback, one, tuple(missing)) for one in both)


def _latencies(measurements: Sequence[Measurement]) -> dict[Conditions, float]:
    """Seconds by conditions, the last of each, in the order in which they were last measured."""
    found: dict[Conditions, float] = {}
    for part in measurements:
        if part.quantity == "latency" and part.kernels == "real":
            known = {name: value for name, value in part.settings.items() if value is not None and name != "seed"}
            conditions = Conditions(part.device, tuple(sorted(known.items())))
            found.pop(conditions, None)
            found[conditions] = part.value
    return found


def _why_not(
    variant: Sequence[Measurement], ours: Mapping[Conditions, float], theirs: Mapping[Conditions, float]
) -> str:
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
    target: str | None = None,
) -> Route:
    """The cheapest variant that passes, or the escalation target.

    Args:
        escalated: measurements of the workload's escalation target.
        budget: at most this many seconds of device per accepted clip.
        target: the id of the escalation target; None for the base.
    """
    measured = {one.id: clip_costs(one.measurements, escalated, one.review) for one in candidates}
    passing = [candidate for candidate in candidates if candidate.gate.passed]
    ranked_by = _common([measured[one.id] for one in passing if one.id != target])
    costs = {name: _shown(found, ranked_by) for name, found in measured.items()}
    notes = [
        f"{candidate.id}: fails the gate: {'; '.join(candidate.gate.reasons)}"
        for candidate in candidates
        if not candidate.gate.passed
    ]
    if workload.prefer == "base":
        notes += [f"{candidate.id}: passes the gate and can be named by hand" for candidate in passing]
        reason = f"the policy serves {workload.name} with the base: {workload.control}"
        return Route(None, reason, costs, tuple(notes))
    fitting = []
    for candidate in passing:
        objection = "the escalation target" if candidate.id == target else _objection(costs[candidate.id], budget)
        if objection is None:
            fitting.append(candidate)
        else:
            notes.append(f"{candidate.id}: {objection}")
    if not fitting:
        what = "passes the gate"
        if any(candidate.id != target for candidate in passing):
            what = "that passes is cheaper and within the budget"
        elif passing:
            what = "passes the gate but that which the policy escalates to"
        reason = f"no variant {what}; {_target_cost(escalated, budget, target, candidates)}"
        return Route(target, reason, costs, tuple(notes))
    chosen = min(fitting, key=lambda candidate: _rank(candidate, costs[candidate.id], ranked_by))
    notes += [f"{candidate.id}: passes too" for candidate in fitting if candidate is not chosen]
    if ranked_by is not None and (unknown := [name for name in _WORK if name not in dict(ranked_by.settings)]):
        notes.append(f"costs: {', '.join(unknown)} not recorded with the latencies, taken to be equal")
    return Route(chosen.id, _reason(workload, chosen, fitting, costs, ranked_by), costs, tuple(notes))


def _common(measured: Sequence[Sequence[Cost]]) -> Conditions | None:
    """The conditions under which most candidates have a cost, the last measured of several with the same candidates.

    None without any cost, and where one part of the candidates was measured so and as large a part otherwise.
    """
    having: dict[Conditions, set[int]] = {}
    for index, found in enumerate(measured):
        for cost in found:
            if cost.conditions is not None and cost.accepted is not None:
                having.setdefault(cost.conditions, set()).add(index)
    most = max(map(len, having.values()), default=0)
    best = [conditions for conditions, members in having.items() if len(members) == most]
    return best[-1] if best and all(having[one] == having[best[0]] for one in best) else None


def _shown(found: Sequence[Cost], ranked_by: Conditions | None) -> Cost:
    return next((cost for cost in found if cost.conditions == ranked_by), found[-1])


def _objection(cost: Cost, budget: float | None) -> str | None:
    if cost.worthwhile is False:
        fallback = NOT_MEASURED if cost.fallback is None else f"{cost.fallback:.1%}"
        return f"no cheaper than the escalation target: fallback rate {fallback}, break-even {cost.break_even:.1%}"
    if budget is not None and cost.accepted is None:
        return f"cannot be held against the budget of {budget:g} s per accepted clip: {'; '.join(cost.missing)}"
    if budget is not None and cost.accepted is not None and cost.accepted > budget:
        return f"{cost.accepted:.4g} s per accepted clip {cost.conditions}, over the budget of {budget:g}"
    return None


def _rank(candidate: Candidate, cost: Cost, ranked_by: Conditions | None) -> tuple[float, float, str]:
    known = cost.accepted is not None and cost.conditions == ranked_by
    bits = math.inf if candidate.bits_per_weight is None else candidate.bits_per_weight
    return (cost.accepted if known and cost.accepted is not None else math.inf, bits, candidate.id)


def _reason(
    workload: Workload,
    chosen: Candidate,
    fitting: Sequence[Candidate],
    costs: Mapping[str, Cost],
    ranked_by: Conditions | None,
) -> str:
    cost = costs[chosen.id]
    passes = "passes" if workload.confidence is not None else "passes by means, without a confidence bound"
    known = {one.id: costs[one.id] for one in fitting if costs[one.id].accepted is not None}
    elsewhere = {name: one for name, one in known.items() if one.conditions != ranked_by}
    apart = f"costs cannot be ranked: {_listed(known, known)}"
    if cost.accepted is not None and cost.conditions == ranked_by:
        unknown = len(fitting) - len(known)
        tail = f"; the cost of {unknown} others that pass is {NOT_MEASURED}" if unknown else ""
        tail += f"; measured otherwise and not ranked: {_listed(elsewhere, known)}" if elsewhere else ""
        return (
            f"{passes}, and the cheapest measured: {cost.accepted:.4g} s per accepted clip {cost.conditions}, "
            f"{cost.escalated:.4g} s with the escalation target{tail}"
        )
    why = f"cost per accepted clip {NOT_MEASURED} ({'; '.join(cost.missing)})" if cost.accepted is None else apart
    why += f"; {apart}" if elsewhere and cost.accepted is None else ""
    if len(fitting) == 1:
        return f"the only variant that {passes}; {why}"
    if chosen.bits_per_weight is None:
        return f"{passes}, first by id; {why}"
    return f"{passes}, with the fewest bits per weight ({chosen.bits_per_weight:.4g}); {why}"


def _listed(costs: Mapping[str, Cost], known: Mapping[str, Cost]) -> str:
    """Costs with the conditions in which those that are known differ."""
    tables = [dict(one.conditions.settings) for one in known.values() if one.conditions is not None]
    names = sorted({name for table in tables for name in table})
    differing = [name for name in names if any(table.get(name) != tables[0].get(name) for table in tables)]
    return "; ".join(
        f"{name} {cost.accepted:.4g} s {cost.conditions.text(differing)}"
        for name, cost in costs.items()
        if cost.conditions is not None
    )


def _target_cost(
    escalated: Sequence[Measurement], budget: float | None, target: str | None, candidates: Sequence[Candidate]
) -> str:
    name = "the base" if target is None else f"{target}, which the policy escalates to"
    own = next((one.gate for one in candidates if one.id == target), None)
    if target is not None and (own is None or not own.passed):
        name += f" although it {'has no score to pass by' if own is None else 'fails the gate itself'}"
    latencies = _latencies(escalated)
    if not latencies:
        return f"{name}, {'whose' if target is None else 'and whose'} cost per clip is {NOT_MEASURED}"
    conditions, seconds = list(latencies.items())[-1]
    over = f", over the budget of {budget:g}" if budget is not None and seconds > budget else ""
    return f"{name}, at {seconds:.4g} s per clip {conditions}{over}"
