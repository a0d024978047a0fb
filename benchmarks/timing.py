"""One way of timing: candidates in turns, several rounds, ratios from the same round.

A machine's speed drifts, so figures of different minutes are no ratio. Here every candidate runs once in each round, in
an order that moves on by one from round to round, and a ratio is taken within a round. Its interval is the smallest and
the largest of the rounds: of 7 independent rounds these enclose the true median with a probability of 98 %.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["ROUNDS", "Candidate", "OtherWork", "Ratio", "paired", "ratio", "spread", "system_share"]

ROUNDS: Final = 7
SAMPLE_S: Final = 0.005
"""A sample is as many calls as last this long; one, when a call lasts longer."""
PAUSE_S: Final = 0.005
"""Before a sample: OpenMP's threads spin for a while after a parallel region, and would take a core from the next."""

Ratio = list[float]
"""Median, then the smallest and the largest of the rounds."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
        run: one call; what it returns is freed within the sample, as it is in use.
        around: makes a context that its calls run in, entered outside the clock.
    """

    run: Callable[[], Any]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def paired(
    candidates: Mapping[str, Candidate], *, rounds: int = ROUNDS, sample_s: float = SAMPLE_S
) -> dict[str, list[float]]:
    """Seconds per call of every candidate, one figure per round, after two calls that do not count.

    Raises:
        ValueError: no round.
    """
    if rounds < 1:
        raise ValueError("at least one round")
    names = list(candidates)
    calls = {name: _calls(candidate, sample_s) for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names) if names else 0
            for name in names[first:] + names[:first]:
                time.sleep(PAUSE_S)
                seconds[name].append(_sample(candidates[name], calls[name]))
    finally:
        if collecting:
            gc.enable()
    return seconds


def ratio(others: Sequence[float], ours: Sequence[float], *, scale: float = 1.0) -> Ratio:
    """How many times longer the other takes, round by round: above 1, ours is faster.

    Args:
        scale: factor of the other's seconds, when it did a part of the work only.

    Raises:
        ValueError: not the same number of rounds, or none.
    """
    quotients = [scale * other / own for other, own in zip(others, ours, strict=True)]
    if not quotients:
        raise ValueError("no rounds")
    return spread(quotients)


def spread(values: Sequence[float]) -> Ratio:
    """Median, smallest and largest."""
    return [statistics.median(values), min(values), max(values)]


def system_share(candidate: Candidate, calls: int) -> float:
    """The share of the CPU time of some calls that the system took, mostly to provide memory; all threads counted."""
    begin = resource.getrusage(resource.RUSAGE_SELF)
    with candidate.around():
        for _ in range(calls):
            candidate.run()
    end = resource.getrusage(resource.RUSAGE_SELF)
    system, user = end.ru_stime - begin.ru_stime, end.ru_utime - begin.ru_utime
    return system / max(system + user, 1e-9)


def _calls(candidate: Candidate, sample_s: float) -> int:
    _sample(candidate, 1)
    return max(1, math.ceil(sample_s / max(_sample(candidate, 1), 1e-9)))


def _sample(candidate: Candidate, calls: int) -> float:
    """Mean seconds of a call."""
    run = candidate.run
    with candidate.around():
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - begin) / calls


class OtherWork:
    """How busy other processes keep the machine, from when this is made until `share` is asked."""

    def __init__(self) -> None:
        self._begin = self._now()

    def share(self) -> float | None:
        """CPU time of other processes over that of all cores, 0 to 1; None where the system does not say."""
        begin, end = self._begin, self._now()
        if begin is None or end is None or end[0] <= begin[0]:
            return None
        return max(0.0, (end[1] - begin[1]) / (end[0] - begin[0]))

    @staticmethod
    def _now() -> tuple[float, float] | None:
        """Seconds of all cores, and seconds in which they worked for others."""
        path = Path("/proc/stat")
        if not path.exists():
            return None
        ticks = [int(word) for word in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        hertz = os.sysconf("SC_CLK_TCK")
        own = os.times()
        busy = (sum(ticks) - ticks[3] - ticks[4]) / hertz  # less idle and waiting for disks
        return sum(ticks) / hertz, busy - (own.user + own.system + own.children_user + own.children_system)
