"""Answers from recorded scores: the comparison of two variants, a gate, a route.

What counts and what it means is decided in `scores/`; here the rows are brought together for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import AmbiguousIdError, NotComparableError, UnknownIdError

from .clips.clip_document import Variant
from .folder import claims_id
from .lookup import MIN_PREFIX_DIGITS, resolve
from .models import Base, BaseExpert, Delta
from .prompts import Seen, describe_overlap, seen_by_deltas
from .score_store import (
    StoredScore,
    read_base_scores,
    read_measurements,
    read_reviews,
    read_scores,
    scored_deltas,
)
from .scores.gate import Copied, Evidence, GateResult, evaluate
from .scores.origin import ClipOrigin
from .scores.paired import Comparison, Pairs, compare, pair_scores
from .scores.policy import Policy, Workload
from .scores.ranges import LIMITS
from .scores.routing import Candidate, Route, route
from .scores.settings import SettingDifference, compare_settings, sort_differences
from .scores.values import MetricScores, ReviewCounts, count_reviews, set_labels, set_name
from .text import display_id

__all__ = [
    "BitsOf",
    "Compared",
    "Demand",
    "Gated",
    "Routed",
    "compare_variants",
    "find_base",
    "gate_delta",
    "overlap_of",
    "route_base",
]


BitsOf = Callable[[Path], float | None]
"""Bits per weight of the delta in a folder, None where they cannot be told; whoever can read deltas brings it along."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks for beside its workload.

    `budget`: at most this many seconds of device per accepted clip. `content_class`: the job's category. `bits_of` is
    asked about the deltas that pass and ranks those whose cost is not measured.
    """

    budget: float | None = None
    content_class: str | None = None
    bits_of: BitsOf | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Metrics that both variants have, with the differences of their settings; `left_out` says why others are not.

    `origins`: what is known of measured clips that are not all registered, one line each.
    """

    comparisons: tuple[Comparison, ...]
    settings: tuple[SettingDifference, ...]
    left_out: tuple[str, ...]
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gated:
    """A gate's result and, per suite, metric and prompt set, which of the scored prompts were seen before.

    `origins`: what is known of measured clips that are not all registered, one line each; among the notes as well.
    """

    delta_id: str
    base_id: str
    result: GateResult
    overlap: dict[str, str]
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Routed:
    """A route, and the deltas on the base that have no score a gate of the workload could use.

    `variant_id`: the delta that serves; None for the base. `target_id`: what the policy escalates to, likewise.
    """

    base_id: str
    workload: Workload
    route: Route
    gates: dict[str, Gated]
    unscored: tuple[str, ...]
    variant_id: str | None
    target_id: str | None


def find_base(session: Session, text: str | None) -> str:
    """The id of a registered base from the first digits of its id or of a bf16 root; without text, of the only one.

    Raises:
        UnknownIdError, AmbiguousIdError
    """
    query = sa.select(Base.id).order_by(Base.id).limit(6)
    if text is not None:
        digits = text.lower().removeprefix("base:")
        if len(digits) < MIN_PREFIX_DIGITS or not set(digits) <= set("0123456789abcdef"):
            raise UnknownIdError("no base has this id", found=repr(text), expected="base: and at least 4 hex digits")
        by_root = sa.select(BaseExpert.base_key).where(BaseExpert.bf16_root.startswith(digits))
        query = query.where(sa.or_(Base.id.startswith(digits), Base.key.in_(by_root)))
    found = session.scalars(query).all()
    if len(found) > 1:
        raise AmbiguousIdError(
            "several bases are registered" if text is None else "several bases begin like this",
            expected=None if text is None else "more digits",
            found=", ".join(display_id(one, "base") for one in found),
            todo="say which with --base" if text is None else None,
        )
    if not found:
        raise UnknownIdError(
            "no base is registered" if text is None else "no base has this id",
            found=None if text is None else repr(text),
            todo="`hfq register DELTA` registers its base as well" if text is None else "`hfq list` shows the bases",
        )
    return found[0]


def overlap_of(stored: StoredScore | Pairs, seen: Seen | None) -> str | None:
    """What is known of the prompts of a score, as one line; None for a base, which is made with no prompts."""
    if seen is None:
        return None
    videos = stored.pairs if isinstance(stored, Pairs) else stored.scores.videos
    return describe_overlap([video.prompt_sha256 for video in videos], seen)


def compare_variants(session: Session, first: Variant, second: Variant) -> Compared:
    """Every metric of one suite and prompt set that both have.

    Raises:
        NotComparableError: there is none.
    """
    ours, theirs = _scores_beside(session, first, second), _scores_beside(session, second, first)
    paired = _pair_all(ours, theirs, str(first), str(second))
    if not paired.pairs:
        raise NotComparableError(
            "nothing to compare",
            where=f"{first} and {second}",
            found="; ".join(paired.left_out) or f"{first} has no score",
            todo="`hfq score import` or `hfq score measure` both, on the same prompts",
        )
    comparisons = tuple(compare(pairs) for pairs in paired.pairs)
    return Compared(comparisons, paired.differences(), tuple(paired.left_out), paired.origin_lines())


def _scores_beside(session: Session, variant: Variant, other: Variant) -> Sequence[StoredScore]:
    """The scores of a variant; those of a base as they were measured beside the other, where that is a delta."""
    if variant.kind == "base" and other.kind == "delta":
        return read_base_scores(session, other.id, variant.id)
    return read_scores(session, variant.id)


@dataclass(slots=True)
class _Paired:
    """Metrics that two variants have, and why others are left out.

    `settings`: how the sides' settings differ, each with the labels of the metrics it concerns. `origins`: what is
    known of measured clips, by side and text, likewise.
    """

    pairs: list[Pairs] = field(default_factory=list)
    settings: dict[SettingDifference, list[str]] = field(default_factory=dict)
    origins: dict[tuple[str, ClipOrigin], list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def differences(self) -> tuple[SettingDifference, ...]:
        """Each difference once; it names its metrics where it is not of all."""
        found = (
            one if len(labels) == len(self.pairs) else replace(one, metrics=tuple(labels))
            for one, labels in self.settings.items()
        )
        return sort_differences(sorted(found, key=lambda one: one.name))

    def origin_lines(self) -> tuple[str, ...]:
        """Doubts about whose the clips are."""
        return tuple(
            f"{', '.join(labels)}, {side}: {origin}"
            for (side, origin), labels in self.origins.items()
            if origin.is_doubtful
        )


def _pair_all(ours: Sequence[StoredScore], theirs: Sequence[StoredScore], one: str, other: str) -> _Paired:
    """Pair every metric of variant `one` with the same of `other`, video by video. Prompt sets are never mixed."""
    found = _Paired()
    labels = set_labels(stored.scores.prompt_set for stored in (*ours, *theirs))
    for mine in ours:
        name = _name(mine.scores)
        label = f"{name}{labels[mine.scores.prompt_set]}"
        same = [stored for stored in theirs if _name(stored.scores) == name]
        counterpart = next((stored for stored in same if stored.scores.prompt_set == mine.scores.prompt_set), None)
        if counterpart is None:
            sets = ", ".join(set_name(stored.scores.prompt_set) for stored in same)
            missing = f"none on {set_name(mine.scores.prompt_set)}, only on {sets}: name it with --prompt-set"
            found.left_out.append(f"{label}: {other} has {missing if same else 'none'}")
            continue
        try:
            found.pairs.append(pair_scores(mine.scores, counterpart.scores))
        except NotComparableError as error:
            found.left_out.append(f"{label}: {error.what}")
            continue
        for difference in compare_settings(mine.settings, counterpart.settings):
            found.settings.setdefault(difference, []).append(label)
        for side, stored in ((one, mine), (other, counterpart)):
            if stored.origin is not None:
                found.origins.setdefault((side, stored.origin), []).append(label)
    return found


def _name(scores: MetricScores) -> str:
    return f"{scores.metric_suite} {scores.metric}"


def gate_delta(
    session: Session, policy: Policy, workload: str, delta_id: str, *, content_class: str | None = None
) -> Gated:
    """Whether a delta passes a workload against its base.

    Raises:
        UnknownWorkloadError
    """
    return _judge(session, policy, workload, delta_id, content_class)[0]


def _judge(
    session: Session, policy: Policy, workload: str, delta_id: str, content_class: str | None
) -> tuple[Gated, ReviewCounts | None]:
    metrics = _metrics(policy.workload(workload))
    base_id = _delta(session, delta_id).base.id
    seen = seen_by_deltas(session, [delta_id])[delta_id]
    scores = read_scores(session, delta_id, metrics)
    paired = _pair_all(scores, read_base_scores(session, delta_id, base_id, metrics), "the variant", "the base")
    notes = [*paired.left_out, *paired.origin_lines()]
    labels = set_labels(one.scores.prompt_set for one in scores)
    overlap = {
        f"{_name(one.scores)}{labels[one.scores.prompt_set]}": describe_overlap(
            [video.prompt_sha256 for video in one.scores.videos], seen
        )
        for one in scores
    }
    stems = dict.fromkeys(video.stem for one in scores for video in one.scores.videos)
    prompts = {video.stem: video.group for one in scores for video in one.scores.videos if video.prompt_sha256}
    outcomes = read_reviews(session, delta_id)
    review = count_reviews(outcomes, stems, prompts) if outcomes else None
    evidence = Evidence(
        paired.pairs,
        paired.differences(),
        seen.all,
        review,
        copied=_copied(session, delta_id, scores, labels),
        selection_known=seen.selection is not None,
    )
    result = evaluate(policy, workload, evidence, content_class=content_class)
    noted = replace(result, notes=(*result.notes, *notes))
    return Gated(delta_id, base_id, noted, overlap, paired.origin_lines()), review


def _copied(
    session: Session, delta_id: str, scores: Sequence[StoredScore], labels: Mapping[str | None, str]
) -> list[Copied]:
    """Measured clips of a delta that are its base's over again; metrics of the same clips are named together."""
    kinds: dict[tuple[ClipOrigin, str | None], list[str]] = {}
    for one in scores:
        if one.origin is not None and one.origin.identical:
            kinds.setdefault((one.origin, one.scores.prompt_set), []).append(_name(one.scores))
    if not kinds:
        return []
    # Which clips they are is not recorded; those without any difference have the highest PSNR there is.
    highest = LIMITS["hfq"]["psnr"][1] or math.inf
    likeness = {one.scores.prompt_set: one.scores for one in read_scores(session, delta_id, [("hfq", "psnr")])}
    found = []
    for (origin, prompt_set), names in kinds.items():
        psnr = likeness.get(prompt_set)
        equal = [video.stem for video in psnr.videos if video.value >= highest] if psnr else []
        named = tuple(equal) if len(equal) == origin.identical else ()
        label = f"{', '.join(names)}{labels[prompt_set]}"
        found.append(Copied(label, origin.clips, origin.identical, origin.clips - origin.registered, named))
    return found


def route_base(session: Session, policy: Policy, workload: str, base_id: str, demand: Demand) -> Routed:
    """The cheapest delta on a base that passes a workload, or what the policy escalates to.

    Raises:
        UnknownWorkloadError
        UnknownIdError: the policy escalates to an alias that is not set, or that is set to a delta of another base.
    """
    rules = policy.workload(workload)
    target_id = _target(session, rules, base_id)
    on_base = session.scalars(sa.select(Delta.id).join(Base).where(Base.id == base_id).order_by(Delta.id)).all()
    scored = set(scored_deltas(session, base_id, _metrics(rules)))
    gates: dict[str, Gated] = {}
    candidates: list[Candidate] = []
    for delta_id in (one for one in on_base if one in scored):
        gated, review = _judge(session, policy, workload, delta_id, demand.content_class)
        gates[display_id(delta_id)] = gated
        measured = read_measurements(session, delta_id)
        bits = _bits(session, delta_id, demand.bits_of) if gated.result.passed else None
        candidates.append(Candidate(display_id(delta_id), gated.result, measured, review, bits))
    target = None if target_id is None else display_id(target_id)
    chosen = route(
        rules, candidates, read_measurements(session, target_id or base_id), budget=demand.budget, target=target
    )
    unscored = tuple(one for one in on_base if one not in scored)
    ids = {display_id(one): one for one in on_base}
    variant_id = None if chosen.variant is None else ids[chosen.variant]
    return Routed(base_id, rules, chosen, gates, unscored, variant_id, target_id)


def _bits(session: Session, delta_id: str, bits_of: BitsOf | None) -> float | None:
    folders = (Path(place.folder) for place in _delta(session, delta_id).locations)
    folder = next((one for one in folders if claims_id(one, delta_id)), None)
    return None if bits_of is None or folder is None else bits_of(folder)


def _target(session: Session, rules: Workload, base_id: str) -> str | None:
    """The delta that the policy escalates to; None for the base."""
    if rules.escalate_to == "base":
        return None
    target = resolve(session, rules.escalate_to)
    found = _delta(session, target).base.id
    if found != base_id:
        raise UnknownIdError(
            "the policy escalates to a delta of another base", where=f"{rules.name}: {rules.escalate_to}",
            expected=display_id(base_id, "base"), found=display_id(found, "base"),
            todo=f"point {rules.escalate_to} at a delta of this base: `hfq alias set`",
        )  # fmt: skip
    return target


def _metrics(rules: Workload) -> tuple[tuple[str, str], ...]:
    return tuple((suite, gate.metric) for gate in rules.gates for suite in gate.suites)


def _delta(session: Session, delta_id: str) -> Delta:
    return session.scalars(sa.select(Delta).where(Delta.id == delta_id)).one()
