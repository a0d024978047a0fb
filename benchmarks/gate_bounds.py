"""How often a lower bound that claims 95 % is above the truth: the tables of docs/policy.md, as Markdown.

    python benchmarks/gate_bounds.py > bounds.md

A prompt's scores lie in 0..1. A bound of mean(variant) / mean(base) above its truth r is one of mean(variant - r base)
above 0, so every method gets these differences and their lowest possible value, -r. Two minutes; no model runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hfq.registry.scores.intervals import draw_weights, unseen_share

__all__ = ["CHOSEN", "COUNTS", "FAMILIES", "METHODS", "Family", "error_share", "table"]

Floats = npt.NDArray[np.float64]
Sampler = Callable[[np.random.Generator, int, int], tuple[Floats, Floats]]

COUNTS: Final = (6, 10, 20, 40, 80)
TRIALS: Final = 2000
CONFIDENCE: Final = 0.95
_T: Final = {6: 2.0150, 10: 1.8331, 20: 1.7291, 40: 1.6849, 80: 1.6644}
"""95 % quantile of Student's t with n - 1 degrees of freedom."""
_T_ONE_MORE: Final = {6: 1.9432, 10: 1.8125, 20: 1.7247, 40: 1.6839, 80: 1.6641}
_RESAMPLES: Final = 2000
_CHUNK: Final = 250


@dataclass(frozen=True, slots=True)
class Family:
    """Scores that look alike. `sample`: variant and base, [trials, prompts] each; `ratio`: of their true means."""

    kind: str
    name: str
    ratio: float
    sample: Sampler


def _alone(sample: Callable[[np.random.Generator, int, int], Floats]) -> Sampler:
    def both(generator: np.random.Generator, trials: int, prompts: int) -> tuple[Floats, Floats]:
        values = sample(generator, trials, prompts)
        return values, np.ones_like(values)

    return both


def _collapse(share: float, depth: float) -> Family:
    def sample(generator: np.random.Generator, trials: int, prompts: int) -> Floats:
        good = 0.95 + 0.01 * generator.standard_normal((trials, prompts))
        return good - 0.95 * depth * (generator.random((trials, prompts)) < share)

    return Family("collapse", f"{share:.0%} lose {depth:.0%}", 0.95 * (1 - share * depth), _alone(sample))


def _yes_no(share: float) -> Family:
    return Family("yes-no", f"{share:g}", share, _alone(lambda g, t, n: (g.random((t, n)) < share).astype(float)))


def _noisy_base(generator: np.random.Generator, trials: int, prompts: int) -> tuple[Floats, Floats]:
    base = generator.beta(6.0, 4.0, (trials, prompts))
    return 0.97 * base + 0.01 * generator.standard_normal(base.shape), base


def _unpaired_base(generator: np.random.Generator, trials: int, prompts: int) -> tuple[Floats, Floats]:
    return generator.beta(6.0, 4.0, (trials, prompts)), generator.beta(6.0, 4.0, (trials, prompts))


def _collapse_on_base(generator: np.random.Generator, trials: int, prompts: int) -> tuple[Floats, Floats]:
    base = generator.beta(6.0, 4.0, (trials, prompts))
    return base * (generator.random(base.shape) >= 0.1), base


def _yes_no_on_base(generator: np.random.Generator, trials: int, prompts: int) -> tuple[Floats, Floats]:
    base = (generator.random((trials, prompts)) < 0.95).astype(float)
    return base * (generator.random(base.shape) < 0.9), base


def _clusters(generator: np.random.Generator, trials: int, prompts: int) -> Floats:
    """Five clips of each prompt; where a prompt is hard, each of them collapses with probability 0.6."""
    hard = generator.random((trials, prompts, 1)) < 0.1
    lost = hard & (generator.random((trials, prompts, 5)) < 0.6)
    clips = 0.9 + 0.02 * generator.standard_normal((trials, prompts, 1)) + 0.01 * generator.standard_normal(lost.shape)
    return np.where(lost, 0.0, clips).mean(axis=2)


FAMILIES: Final = (
    Family("noise", "normal, sd 0.02", 0.9, _alone(lambda g, t, n: 0.9 + 0.02 * g.standard_normal((t, n)))),
    Family("noise", "skewed down, exponential", 0.95, _alone(lambda g, t, n: 0.97 - g.exponential(0.02, (t, n)))),
    Family("noise", "skewed down, log-normal", 0.97 - 0.02 * math.exp(0.5),
           _alone(lambda g, t, n: 0.97 - 0.02 * g.lognormal(0.0, 1.0, (t, n)))),
    Family("noise", "skewed up, exponential", 0.55, _alone(lambda g, t, n: 0.5 + g.exponential(0.05, (t, n)))),
    Family("noise", "wide, beta(2, 1)", 2 / 3, _alone(lambda g, t, n: g.beta(2.0, 1.0, (t, n)))),
    *(_collapse(share, depth) for share in (0.02, 0.05, 0.1, 0.2) for depth in (0.3, 1.0)),
    *(_yes_no(share) for share in (0.8, 0.9, 0.95, 0.99)),
    Family("ratio", "noisy base", 0.97, _noisy_base),
    Family("ratio", "base of other clips", 1.0, _unpaired_base),
    Family("ratio", "noisy base, 10% collapse", 0.9, _collapse_on_base),
    Family("ratio", "yes-no on a yes-no base", 0.9, _yes_no_on_base),
    Family("clusters", "10% hard prompts, 5 clips each", 0.9 * (1 - 0.06), _alone(_clusters)),
)  # fmt: skip


# --- methods: differences [trials, prompts] and their lowest possible value to bounds [trials] ------------------------


def percentile_bootstrap(values: Floats, lowest: float) -> Floats:
    count = values.shape[1]
    picks = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    return np.quantile(values @ picks.T, 1 - CONFIDENCE, axis=1)


def student_t(values: Floats, lowest: float) -> Floats:
    count = values.shape[1]
    return values.mean(axis=1) - _T[count] * values.std(axis=1, ddof=1) / math.sqrt(count)


def johnson_t(values: Floats, lowest: float) -> Floats:
    """Student's t with the skewness taken out (Johnson 1978)."""
    count = values.shape[1]
    mean, variance = values.mean(axis=1), values.var(axis=1, ddof=1)
    third = ((values - mean[:, None]) ** 3).mean(axis=1)
    skew = np.divide(third, variance, out=np.zeros_like(third), where=variance > 0)
    t = _T[count]
    return mean + skew * (1 / 6 + t * t / 3) / count - t * np.sqrt(variance / count)


def one_worst_t(values: Floats, lowest: float) -> Floats:
    """Student's t of the sample and one more prompt at the lowest value."""
    more = np.concatenate([values, np.full((len(values), 1), lowest)], axis=1)
    count = more.shape[1]
    return more.mean(axis=1) - _T_ONE_MORE[count - 1] * more.std(axis=1, ddof=1) / math.sqrt(count)


def wilson(values: Floats, lowest: float) -> Floats:
    """Of yes-no scores (Wilson 1927): differences of two values, their lowest and one above it by 1."""
    count, z = values.shape[1], 1.6448536
    share = np.clip(values.mean(axis=1) - lowest, 0.0, 1.0)
    centre = share + z * z / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count) + lowest


def anderson(values: Floats, lowest: float) -> Floats:
    """From the one-sided Dvoretzky-Kiefer-Wolfowitz band (Anderson 1969): the best values lose weight to the lowest."""
    count = values.shape[1]
    share = math.sqrt(math.log(1 / (1 - CONFIDENCE)) / (2 * count))
    steps = np.arange(1, count + 1) / count
    kept = np.clip(1 - share - steps + 1 / count, 0, 1 / count)  # the largest values first lose theirs
    return np.sort(values, axis=1) @ np.sort(kept)[::-1] + min(1.0, share) * lowest


def maurer_pontil(values: Floats, lowest: float) -> Floats:
    """The empirical Bernstein bound (Maurer and Pontil 2009), over the range that the values can have."""
    count = values.shape[1]
    log = math.log(2 / (1 - CONFIDENCE))
    spread = np.sqrt(2 * values.var(axis=1, ddof=1) * log / count)
    return values.mean(axis=1) - spread - 7 * log * (1.0 - lowest) / (3 * (count - 1))


def weighed_with_the_worst(values: Floats, lowest: float) -> Floats:
    """What hfq uses: `intervals.ratio_bound`, of many samples at once."""
    weights = np.concatenate(list(draw_weights(values.shape[1], CONFIDENCE)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    place = math.floor((1 - CONFIDENCE) * len(weights)) - 1
    ordered = np.concatenate([np.full((len(values), 1), lowest), np.sort(values, axis=1)], axis=1)
    parts = [
        np.partition(ordered[start : start + _CHUNK] @ weights.T, place, axis=1)[:, place]
        for start in range(0, len(values), _CHUNK)
    ]
    return np.concatenate(parts)


CHOSEN: Final = "weighed with the worst"
METHODS: Final[Mapping[str, Callable[[Floats, float], Floats]]] = {
    CHOSEN: weighed_with_the_worst,
    "percentile bootstrap": percentile_bootstrap,
    "Student's t": student_t,
    "Johnson's t": johnson_t,
    "t with one worst": one_worst_t,
    "Wilson": wilson,
    "Anderson": anderson,
    "Maurer-Pontil": maurer_pontil,
}


def error_share(family: Family, method: str, prompts: int, trials: int = TRIALS) -> tuple[float, float]:
    """Share of bounds above the truth, and how far below it the middle one is, as a share of the base's mean."""
    first, second = family.sample(np.random.default_rng(prompts), trials, prompts)
    bounds = METHODS[method](first - family.ratio * second, -family.ratio)
    return float((bounds > 1e-12).mean()), float(-np.median(bounds) / second.mean())


def _fits(family: Family, method: str) -> bool:
    return method != "Wilson" or family.kind == "yes-no"


def table(trials: int = TRIALS) -> str:
    """Both tables: of every method the error in the worst family of three kinds, with its mean width over them, and of
    the chosen method both in every family.
    """
    kinds = ("noise", "collapse", "yes-no")
    found = {
        (family.name, method, count): error_share(family, method, count, trials)
        for family in FAMILIES
        for method in METHODS
        if _fits(family, method)
        for count in COUNTS
    }
    lines = ["| method | scores | " + " | ".join(f"n = {count}" for count in COUNTS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(COUNTS))
    for method in METHODS:
        for kind in kinds:
            cells = []
            for count in COUNTS:
                cell = [
                    found[family.name, method, count]
                    for family in FAMILIES
                    if family.kind == kind and _fits(family, method)
                ]
                if cell:
                    wrong, width = max(one[0] for one in cell), sum(one[1] for one in cell) / len(cell)
                    cells.append(f"{_percent(wrong)}, {width:.3f}")
            if cells:
                lines.append(f"| {method} | {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| scores | | " + " | ".join(f"n = {count}" for count in COUNTS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(COUNTS))
    for family in FAMILIES:
        cells = []
        for count in COUNTS:
            wrong, width = found[family.name, CHOSEN, count]
            cells.append(f"{_percent(wrong)}, {width:.3f}")
        lines.append(f"| {family.kind} | {family.name} | " + " | ".join(cells) + " |")
    unseen = " | ".join(f"{unseen_share(count, CONFIDENCE):.3f}" for count in COUNTS)
    lines.append(f"| | may collapse unseen | {unseen} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    text = f"{100 * share:.1f} %"
    return f"**{text}**" if share > 0.07 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=TRIALS)
    print(table(parser.parse_args().trials))


if __name__ == "__main__":
    main()
