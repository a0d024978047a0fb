"""Which expert sees which steps, and the timestep bins within each expert.

An expert's steps are cut into three bins by the fraction of its own steps that lies behind it: .33/.66, and .20/.70
for the low-noise expert (Timestep-Aware SVDQuant-GPTQ, arXiv 2605.27003, released code). What is stored, and all that
counts at run time, are the edges in t, midway between neighbouring steps, so that another number of steps or another
shift still maps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["BRANCHES", "Call", "ExpertSchedule", "bin_of", "expert_schedules", "histogram_key", "movements"]

BRANCHES: Final = ("cond", "uncond")
_TIMESTEPS: Final = 1000
"""t of pure noise: sigma is t / 1000 in every scheduler of a Wan pipeline."""

_FRACTIONS: Final = {"high_noise": (0.33, 0.66), "low_noise": (0.20, 0.70), "single": (0.33, 0.66)}


@dataclass(frozen=True)
class Call:
    """One forward of an expert: step of the whole schedule, its timestep, the guidance branch, the timestep bin."""

    step: int
    t: float
    branch: str
    bin: int

    def to_json(self) -> dict[str, Any]:
        """The call as stored in a calibration."""
        return {"step": self.step, "t": self.t, "branch": self.branch, "bin": self.bin}


@dataclass(frozen=True)
class ExpertSchedule:
    """The calls of one expert in the order of the run, and its two bin edges in t, descending."""

    calls: tuple[Call, ...]
    edges: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """The schedule as stored in a calibration."""
        return {"calls": [call.to_json() for call in self.calls], "edges": list(self.edges)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ExpertSchedule:
        """The schedule of a calibration document that was checked against its schema."""
        calls = [Call(call["step"], float(call["t"]), call["branch"], call["bin"]) for call in document["calls"]]
        return cls(tuple(calls), (float(document["edges"][0]), float(document["edges"][1])))

    def histogram_keys(self, by: Collection[str]) -> list[str]:
        """The keys under which the histograms of these calls are kept, sorted."""
        return sorted({histogram_key(call, by) for call in self.calls})


def histogram_key(call: Call, by: Collection[str]) -> str:
    """`all`, `bin0`, `cond` or `bin0-cond`: where a call's samples are counted, for `by` of "bins" and "branch"."""
    parts = [f"bin{call.bin}"] if "bins" in by else []
    if "branch" in by:
        parts.append(call.branch)
    return "-".join(parts) or "all"


def bin_of(t: float, edges: Sequence[float]) -> int:
    """Timestep bin 0, 1 or 2 (early, middle, late) of a timestep; `edges` descend with t."""
    return sum(t < edge for edge in edges)


def _edges(role: str, timesteps: Sequence[float]) -> tuple[float, float]:
    """Midway between the last step of one bin and the first of the next; 0 stands after the last step."""
    following = [*timesteps[1:], 0.0]
    early, late = (sum(i / len(timesteps) < limit for i in range(len(timesteps))) - 1 for limit in _FRACTIONS[role])
    return (timesteps[early] + following[early]) / 2, (timesteps[late] + following[late]) / 2


def expert_schedules(
    timesteps: Sequence[float], roles: Sequence[str], boundary_t: float | None, branches: Sequence[str]
) -> dict[str, ExpertSchedule]:
    """Divide a run's timesteps (descending) among the experts.

    Args:
        timesteps: t of every step, in order.
        roles: `["single"]` or `["high_noise", "low_noise"]`.
        boundary_t: t at or above which the high-noise expert runs; None for one expert.
        branches: `("cond",)` or `("cond", "uncond")`.

    Returns:
        role -> schedule; an expert that gets no step is missing.
    """
    steps: dict[str, list[int]] = {role: [] for role in roles}
    for step, t in enumerate(timesteps):
        role = roles[0] if len(roles) == 1 or boundary_t is None or t >= boundary_t else roles[1]
        steps[role].append(step)
    result = {}
    for role, own in steps.items():
        if not own:
            continue
        edges = _edges(role, [timesteps[step] for step in own])
        calls = [
            Call(step, timesteps[step], branch, bin_of(timesteps[step], edges)) for step in own for branch in branches
        ]
        result[role] = ExpertSchedule(tuple(calls), edges)
    return result


def movements(schedules: Mapping[str, ExpertSchedule]) -> dict[int, float]:
    """step -> |d sigma|: how far the sampler moves the latent along what the model says at that step.

    An error of the model's output reaches the clip multiplied by it. Sigma goes from 1 to 0 over a whole run; the last
    step ends at 0.

    Args:
        schedules: of every expert of the run: the step after an expert's last one may be the other expert's.
    """
    t_of = {call.step: call.t for schedule in schedules.values() for call in schedule.calls}
    steps = sorted(t_of)
    ends = [*(t_of[step] for step in steps[1:]), 0.0]
    return {step: abs(t_of[step] - end) / _TIMESTEPS for step, end in zip(steps, ends, strict=True)}
