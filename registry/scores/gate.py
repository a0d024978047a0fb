"""Does a variant pass a workload? Every condition is checked and reported, also after one has failed.

What is not measured does not pass. A workload that asks for bounds holds the one-sided lower confidence bound of the
ratio of means to the base over prompts (`paired.retained`) against its gates, so few prompts or scattered ones fail
rather than flatter; no bound, no pass. One that asks for means compares the ratio itself, and every line says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hfq.schema.errors import GateFailedError

from .intervals import mean_bound, prompts_needed, share_bound, unseen_share
from .paired import LEVEL, Pair, Pairs, Retained, retained
from .policy import Gate, Policy, Workload
from .ranges import Limits, is_possible, limits_of, limits_text
from .settings import BLOCKING, SettingDifference
from .values import ReviewCounts, set_labels

__all__ = ["Basis", "Check", "CheckKind", "Copied", "Evidence", "GateResult", "evaluate", "require_passed"]

CheckKind = Literal[
    "settings", "metric", "plausible", "copied", "held-out", "videos", "prompts", "paired", "retained", "category",
    "content-class", "review",
]  # fmt: skip
Basis = Literal["bound", "mean"]

MAX_RATIO: Final = 2.0
"""Ours. Quantization does not double a score: a ratio above is one of two scales, of a base too bad to be held against,
or of noise that a metric takes for motion."""


_NAMES: Final = 5
"""Clips that a reason names."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Measured clips that have exactly the pixels of their reference.

    Args:
        label: the metrics that were measured of them.
        clips: how many were measured. identical: how many have the pixels of their reference; `names` as far as known.
        unregistered: clips that the registry does not know as the variant's.
    """

    label: str
    clips: int
    identical: int
    unregistered: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a variant against its base.

    Args:
        pairs: per metric, the variant as the first side and the base as the second.
        settings: differences between the two generation runs.
        seen: hashes of prompts of the calibration and of any selection.
        review: outcomes over the scored clips; None where nobody reviewed.
        copied: measured clips that are the reference over again.
        selection_known: whether `seen` holds the prompts of the selection.
    """

    pairs: Sequence[Pairs]
    settings: Sequence[SettingDifference] = ()
    seen: frozenset[str] = frozenset()
    review: ReviewCounts | None = None
    copied: Sequence[Copied] = ()
    selection_known: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `found` is None where it was not measured; `text` says it for people.

    `basis`: whether `found` is a lower confidence bound or a mean; None where it is neither.
    """

    kind: CheckKind
    subject: str
    passed: bool
    found: float | None
    needed: float | None
    text: str
    basis: Basis | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """All checks of one workload. `notes` never decide; `conditions` bind whoever uses a variant that passed.
    `confidence`: of the bounds that decided; None where means did.
    """

    policy_id: str
    workload: str
    passed: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    conditions: tuple[str, ...]
    confidence: float | None = None

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
    checks = [*_settings(evidence), *_content_class(rules, content_class), *_copied(evidence)]
    if rules.held_out and not evidence.selection_known:
        text = "the prompts that the variant was selected on are not known; `hfq register` of its folder adds them"
        checks.append(Check("held-out", "selection", False, None, None, text))
    notes = [f"setting {difference}" for difference in evidence.settings if difference.kind not in BLOCKING]
    labels = set_labels(part.prompt_set for part in evidence.pairs)
    for gate in rules.gates:
        fitting = [part for part in evidence.pairs if part.metric == gate.metric and part.metric_suite in gate.suites]
        if not fitting:
            text = f"{gate.metric} of {' or '.join(gate.suites)}: not measured"
            checks.append(Check("metric", gate.metric, False, None, gate.min_retained, text))
        for part in fitting:
            name = f"{part.metric_suite} {part.metric}{labels[part.prompt_set]}"
            pairs: Sequence[Pair] = part.pairs
            if rules.held_out:
                pairs = [pair for pair in part.pairs if pair.prompt_sha256 not in evidence.seen]
                if len(pairs) < len(part.pairs):
                    left_out = len(part.pairs) - len(pairs)
                    notes.append(f"{name}: {left_out} videos left out, their prompts were calibrated or selected on")
            checks += _gate(rules, gate, name, part, pairs, categories)
            unknown = sum(pair.prompt_sha256 is None for pair in pairs)
            if unknown and not rules.held_out:
                notes.append(f"{name}: {unknown} videos of unknown prompt, overlap cannot be ruled out")
    checks += _review(rules, evidence.review)
    return GateResult(
        policy.id, rules.name, all(check.passed for check in checks), tuple(checks), tuple(notes), _conditions(rules),
        rules.confidence,
    )  # fmt: skip


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


def _copied(evidence: Evidence) -> Iterator[Check]:
    """Clips with the reference's pixels show the reference. A variant that hardly changes anything may have a few that
    it made itself: the registry knows those, and not all of its clips are such.
    """
    for copied in evidence.copied:
        if copied.identical and (copied.unregistered or copied.identical == copied.clips):
            names = ", ".join([*copied.names[:_NAMES], *(["..."] if len(copied.names) > _NAMES else [])])
            named = f" ({names})" if names else ""
            text = (
                f"{copied.label}: {copied.identical} of {copied.clips} clips have exactly the reference's pixels"
                f"{named} and show nothing of the variant; measure the clips that it made, or serve the base"
            )
            yield Check("copied", copied.label, False, copied.identical, 0, text)


def _gate(
    rules: Workload, gate: Gate, name: str, part: Pairs, pairs: Sequence[Pair], categories: Sequence[str]
) -> Iterator[Check]:
    yield from _implausible(name, gate, part)
    scored = len(part.pairs) + len(part.only_second)
    share = len(part.pairs) / scored if scored else 0.0
    yield Check(
        "paired", name, share >= rules.min_paired_share, share, rules.min_paired_share,
        f"{name}: {len(part.pairs)} of the base's {scored} videos are scored, {rules.min_paired_share:.0%} needed",
    )  # fmt: skip
    unknown = sum(pair.prompt_sha256 is None for pair in pairs)
    if rules.held_out and unknown:
        text = (
            f"{name}: {unknown} of {len(pairs)} videos are of unknown prompt, none may be where held-out prompts are "
            "asked for; name their prompts with --full-info"
        )
        yield Check("held-out", name, False, unknown, 0, text)
    prompts = len({pair.group for pair in pairs})
    yield _count("videos", name, len(pairs), rules.min_videos)
    yield _count("prompts", name, prompts, rules.min_prompts)
    yield _retained("retained", name, gate, pairs, part, rules.confidence)
    for category in categories:
        members = [pair for pair in pairs if pair.category == category]
        label = f"{name} in {category}"
        yield _count("category", label, len(members), rules.min_category_videos)
        if gate.each_category:
            yield _retained("category", label, gate, members, part, rules.confidence)


def _implausible(name: str, gate: Gate, part: Pairs) -> Iterator[Check]:
    """Values that the metric cannot have, or that the policy rules out, and a variant too much better than its base: no
    figure of these can pass.
    """
    own = limits_of(part.metric_suite, part.metric)
    for side, values in (
        ("variant", [pair.first for pair in part.pairs]), ("base", [pair.second for pair in part.pairs]),
    ):  # fmt: skip
        for limits, advice in (
            (own, "import them again on the metric's own scale"),
            (gate.limits, "the policy takes no clip to be there: look at these"),
        ):
            wrong = [] if limits is None else [value for value in values if not is_possible(value, limits)]
            if limits is not None and wrong:
                text = (
                    f"{name}: {len(wrong)} values of the {side} are outside {limits_text(limits)}, such as "
                    f"{wrong[0]:g}; {advice}"
                )
                yield Check("plausible", name, False, wrong[0], None, text)
                break
    ratio = retained(part.pairs, part.direction).ratio
    if ratio is not None and ratio > MAX_RATIO:
        text = f"{name}: {ratio:.4g} times the base, over the {MAX_RATIO:g} that is plausible: compare the two scales"
        yield Check("plausible", name, False, ratio, MAX_RATIO, text)


def _count(kind: Literal["videos", "prompts", "category"], name: str, found: int, needed: int) -> Check:
    unit = "prompts" if kind == "prompts" else "videos"
    return Check(kind, name, found >= needed, found, needed, f"{name}: {found} {unit}, {needed} needed")


def _retained(
    kind: Literal["retained", "category"],
    name: str,
    gate: Gate,
    pairs: Sequence[Pair],
    part: Pairs,
    confidence: float | None,
) -> Check:
    limits = None if confidence is None else gate.limits_in(part.metric_suite)
    share = retained(pairs, part.direction, limits=limits, confidence=LEVEL if confidence is None else confidence)
    needed = f"{gate.min_retained:g} needed ({gate.source})"
    basis: Basis = "mean" if confidence is None else "bound"
    found = share.ratio if confidence is None else share.lower
    if share.ratio is None or found is None:
        what = "nothing to compare" if confidence is None else f"no {confidence_text(confidence)} bound"
        return Check(kind, name, False, None, gate.min_retained, f"{name}: {what}: {share.no_bound}; {needed}", basis)
    passed = found >= gate.min_retained
    if confidence is None:
        text = f"{name}: {found:.4f} of the base, {needed}; means of {share.prompts} prompts, no confidence bound"
    else:
        text = f"{name}: {share.ratio:.4f} of the base, lower {confidence_text(confidence)} bound {found:.4f}, {needed}"
        text += "" if passed else _too_few(share, limits, gate.min_retained, confidence)
    return Check(kind, name, passed, found, gate.min_retained, text, basis)


def _too_few(share: Retained, limits: Limits | None, needed: float, confidence: float) -> str:
    """How many prompts it takes, where so few could not show it however alike they were, or that none are enough."""
    if share.means is None or limits is None or limits[1] is None:
        return ""
    prompts = prompts_needed(*share.means, (limits[0], limits[1]), needed, confidence)
    if prompts is None and share.ratio is not None and share.ratio >= needed:
        return f"; a bound lies below the share itself: no number of prompts that keep {share.ratio:.4f} can show it"
    if prompts is None or prompts <= share.prompts:
        return ""
    unseen = unseen_share(share.prompts, confidence)
    return f"; {share.prompts} prompts may miss a collapse of {unseen:.1%} of all, at least {prompts} can show it"


def confidence_text(confidence: float) -> str:
    """`95%`, and `97.5%` where a whole number would be another."""
    return f"{100 * confidence:.6g}%"


def _review(rules: Workload, review: ReviewCounts | None) -> Iterator[Check]:
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
    needed = rules.review.min_accepted
    said = f"human review: {review.accepted} of {review.reviewed} accepted"
    if rules.confidence is None:
        accepted = review.accepted / review.reviewed if review.reviewed else 0.0
        text = f"{said}, {needed:g} needed; a share without a confidence bound"
        yield Check("review", "accepted", accepted >= needed, accepted, needed, text, "mean")
        return
    bound = _accepted_bound(review, rules.confidence)
    text = f"{said}, lower {confidence_text(rules.confidence)} bound {bound:.3f}, {needed:g} needed"
    yield Check("review", "accepted", bound >= needed, bound, needed, text, "bound")


def _accepted_bound(review: ReviewCounts, confidence: float) -> float:
    """Lower bound of the accepted share: exact where each clip is of another prompt, else over the prompts' shares."""
    if review.reviewed == 0:
        return 0.0
    if len(review.by_prompt) in (0, review.reviewed):
        return share_bound(review.accepted, review.reviewed, confidence)
    return mean_bound(review.by_prompt, 0.0, confidence)


def _conditions(rules: Workload) -> tuple[str, ...]:
    conditions = [rules.control]
    if rules.review_in_use:
        conditions.append(f"a person reviews {rules.review_in_use:.0%} of the delivered clips")
    return (*conditions, f"rejected clips are made again with {rules.escalate_to}")
