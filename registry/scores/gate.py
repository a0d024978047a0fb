"""Does a variant pass a workload? Every condition is checked and reported, also after one has failed.

What is not measured does not pass. The bound of a gate is the one-sided lower confidence bound of the ratio of means to
the base over paired videos (`paired.retained`), so few videos or scattered ones fail rather than flatter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hfq.schema.errors import GateFailedError

from .paired import Pair, Pairs, retained
from .policy import Gate, Policy, Workload
from .ranges import is_possible, limits_of, limits_text
from .settings import BLOCKING, SettingDifference
from .values import ReviewCounts, set_labels

__all__ = ["Check", "CheckKind", "Evidence", "GateResult", "accepted_bound", "evaluate", "require_passed"]


CheckKind = Literal[
    "settings", "metric", "plausible", "videos", "prompts", "paired", "retained", "category", "content-class", "review"
]

MAX_RATIO: Final = 2.0
"""Ours. Quantization does not double a score: a ratio above is one of two scales, of a base too bad to be held against,
or of noise that a metric takes for motion."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a variant against its base.

    Args:
        pairs: per metric, the variant as the first side and the base as the second.
        settings: differences between the two generation runs.
        seen: hashes of prompts of the calibration and of any selection.
        review: outcomes over the scored clips; None where nobody reviewed.
    """

    pairs: Sequence[Pairs]
    settings: Sequence[SettingDifference] = ()
    seen: frozenset[str] = frozenset()
    review: ReviewCounts | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `found` is None where it was not measured; `text` says it for people."""

    kind: CheckKind
    subject: str
    passed: bool
    found: float | None
    needed: float | None
    text: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """All checks of one workload. `notes` never decide; `conditions` bind whoever uses a variant that passed."""

    policy_id: str
    workload: str
    passed: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    conditions: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it failed; empty when it passed."""
        return tuple(check.text for check in self.checks if not check.passed)


def evaluate(policy: Policy, workload: str, evidence: Evidence, *, content_class: str | None = None) -> GateResult:
    """All checks of a workload.

    Args:
        content_class: the category of the job at hand, validated like a required category.

    Raises:
        UnknownWorkloadError
    """
    rules = policy.workload(workload)
    categories = tuple(dict.fromkeys([*rules.required_categories, *([content_class] if content_class else [])]))
    checks = [*_settings(evidence), *_content_class(rules, content_class)]
    notes = [f"setting {difference}" for difference in evidence.settings if difference.kind not in BLOCKING]
    labels = set_labels(part.prompt_set for part in evidence.pairs)
    for gate in rules.gates:
        fitting = [part for part in evidence.pairs if part.metric == gate.metric and part.metric_suite in gate.suites]
        if not fitting:
            text = f"{gate.metric} of {' or '.join(gate.suites)}: not measured"
            checks.append(Check("metric", gate.metric, False, None, gate.min_retained, text))
        for part in fitting:
            name = f"{part.metric_suite} {part.metric}{labels[part.prompt_set]}"
            pairs, left_out, unhashed = _held_out(part.pairs, evidence.seen) if rules.held_out else (part.pairs, 0, 0)
            if left_out:
                notes.append(f"{name}: {left_out} videos left out, their prompts were calibrated or selected on")
            if unhashed:
                notes.append(f"{name}: {unhashed} videos of unknown prompt, overlap cannot be ruled out")
            checks += _gate(rules, gate, name, part, pairs, categories, policy.confidence)
    checks += _review(rules, evidence.review, policy.confidence)
    return GateResult(
        policy.id, rules.name, all(check.passed for check in checks), tuple(checks), tuple(notes), _conditions(rules)
    )


def require_passed(result: GateResult, variant: str) -> None:
    """Turn a failed result into the error that ends a command.

    Raises:
        GateFailedError: with every reason.
    """
    if not result.passed:
        raise GateFailedError(
            f"fails the gate of {result.workload}: {'; '.join(result.reasons)}", where=variant,
            todo=f"use the base for {result.workload}, or score what is missing",
        )  # fmt: skip


def accepted_bound(accepted: int, reviewed: int, confidence: float) -> float:
    """One-sided lower bound of the accepted share (Wilson 1927); 0 without reviews."""
    if reviewed == 0:
        return 0.0
    z = statistics.NormalDist().inv_cdf(confidence)
    share = accepted / reviewed
    centre = share + z * z / (2 * reviewed)
    spread = z * math.sqrt(share * (1 - share) / reviewed + z * z / (4 * reviewed * reviewed))
    return max(0.0, (centre - spread) / (1 + z * z / reviewed))


def _settings(evidence: Evidence) -> Iterator[Check]:
    for difference in evidence.settings:
        if difference.kind in BLOCKING:
            what = "generated with other settings than the base"
            if difference.kind == "one-sided":
                what = "not known to be generated with the base's settings"
            yield Check("settings", difference.name, False, None, None, f"{what}: {difference}")


def _content_class(rules: Workload, content_class: str | None) -> Iterator[Check]:
    if rules.content_class == "required":
        text = f"content class {content_class}" if content_class else "the content class of the job is not named"
        yield Check("content-class", content_class or "", content_class is not None, None, None, text)


def _held_out(pairs: Sequence[Pair], seen: frozenset[str]) -> tuple[tuple[Pair, ...], int, int]:
    kept = tuple(pair for pair in pairs if pair.prompt_sha256 not in seen)
    return kept, len(pairs) - len(kept), sum(pair.prompt_sha256 is None for pair in kept)


def _gate(
    rules: Workload,
    gate: Gate,
    name: str,
    part: Pairs,
    pairs: Sequence[Pair],
    categories: Sequence[str],
    confidence: float,
) -> Iterator[Check]:
    yield from _implausible(name, part, confidence)
    scored = len(part.pairs) + len(part.only_second)
    share = len(part.pairs) / scored if scored else 0.0
    yield Check(
        "paired", name, share >= rules.min_paired_share, share, rules.min_paired_share,
        f"{name}: {len(part.pairs)} of the base's {scored} videos are scored, {rules.min_paired_share:.0%} needed",
    )  # fmt: skip
    prompts = len({pair.group for pair in pairs})
    yield _count("videos", name, len(pairs), rules.min_videos)
    yield _count("prompts", name, prompts, rules.min_prompts)
    yield _retained("retained", name, gate, pairs, part, confidence)
    for category in categories:
        members = [pair for pair in pairs if pair.category == category]
        label = f"{name} in {category}"
        yield _count("category", label, len(members), rules.min_category_videos)
        if gate.each_category:
            yield _retained("category", label, gate, members, part, confidence)


def _implausible(name: str, part: Pairs, confidence: float) -> Iterator[Check]:
    """Values that the metric cannot have, and a variant too much better than its base: no figure of these can pass."""
    limits = limits_of(part.metric_suite, part.metric)
    for side, values in (
        ("variant", [pair.first for pair in part.pairs]), ("base", [pair.second for pair in part.pairs]),
    ):  # fmt: skip
        wrong = [] if limits is None else [value for value in values if not is_possible(value, limits)]
        if limits is not None and wrong:
            text = (
                f"{name}: {len(wrong)} values of the {side} are outside {limits_text(limits)}, such as {wrong[0]:g}; "
                "import them again on the metric's own scale"
            )
            yield Check("plausible", name, False, wrong[0], None, text)
    ratio = retained(part.pairs, part.direction, confidence=confidence, resamples=1).ratio
    if ratio is not None and ratio > MAX_RATIO:
        text = f"{name}: {ratio:.4g} times the base, over the {MAX_RATIO:g} that is plausible: compare the two scales"
        yield Check("plausible", name, False, ratio, MAX_RATIO, text)


def _count(kind: Literal["videos", "prompts", "category"], name: str, found: int, needed: int) -> Check:
    unit = "prompts" if kind == "prompts" else "videos"
    return Check(kind, name, found >= needed, found, needed, f"{name}: {found} {unit}, {needed} needed")


def _retained(
    kind: Literal["retained", "category"], name: str, gate: Gate, pairs: Sequence[Pair], part: Pairs, confidence: float
) -> Check:
    share = retained(pairs, part.direction, confidence=confidence)
    if share.lower is None:
        text = f"{name}: no confidence bound from {share.prompts} prompts, {gate.min_retained:g} needed ({gate.source})"
        return Check(kind, name, False, None, gate.min_retained, text)
    text = (
        f"{name}: {share.ratio:.4f} of the base, lower {confidence:.0%} bound {share.lower:.4f}, "
        f"{gate.min_retained:g} needed ({gate.source})"
    )
    return Check(kind, name, share.lower >= gate.min_retained, share.lower, gate.min_retained, text)


def _review(rules: Workload, review: ReviewCounts | None, confidence: float) -> Iterator[Check]:
    if rules.review is None:
        return
    if review is None or review.clips == 0:
        yield Check("review", "reviewed", False, None, rules.review.min_share, "human review: not measured")
        return
    share = review.reviewed / review.clips
    yield Check(
        "review", "reviewed", share >= rules.review.min_share, share, rules.review.min_share,
        f"human review: {review.reviewed} of {review.clips} clips, {rules.review.min_share:.0%} needed",
    )  # fmt: skip
    bound = accepted_bound(review.accepted, review.reviewed, confidence)
    yield Check(
        "review", "accepted", bound >= rules.review.min_accepted, bound, rules.review.min_accepted,
        f"human review: {review.accepted} of {review.reviewed} accepted, lower {confidence:.0%} bound {bound:.3f}, "
        f"{rules.review.min_accepted:g} needed",
    )  # fmt: skip


def _conditions(rules: Workload) -> tuple[str, ...]:
    conditions = [rules.control]
    if rules.review_in_use:
        conditions.append(f"a person reviews {rules.review_in_use:.0%} of the delivered clips")
    return (*conditions, f"rejected clips are made again with {rules.escalate_to}")
