"""The best deltas of one base by the mean of one metric, from scores that were made alike.

What the clips were generated with decides which scores stand in one table: rows whose decisive settings differ from the
reference's are counted and left out. The reference is the base's own score, else the settings of most deltas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Final, Literal, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import AmbiguousScoresError, UnknownScoresError

from .clips.clip_document import Variant
from .models import Alias, Base, Delta, Recipe
from .prompts import describe_overlap, seen_by_deltas
from .score_models import Score, ScoreSettings, ScoreVideo
from .scores.settings import SettingDifference, compare_settings
from .scores.values import Direction, SettingValue
from .text import display_id

__all__ = ["LEADERS", "Leaderboard", "LeftOut", "Ranked", "read_leaderboard"]

LEADERS: Final = 20
"""Rows without --limit."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row. `rank` and `overlap` (scored prompts that it was calibrated or selected on) are None for the base.

    `settings`: differences from the reference that do not decide, and decisive settings that one side alone records:
    nobody knows whether such a mean may be ranked, and a gate does not pass it.
    """

    rank: int | None
    variant: Variant
    aliases: tuple[str, ...]
    recipe: str | None
    mean: float
    videos: int
    overlap: str | None
    settings: tuple[SettingDifference, ...]
    imported_at: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Scores that are not in the table because these settings, which decide, differ from the reference's."""

    scores: int
    settings: tuple[SettingDifference, ...]


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """`rows`: the best deltas, best first, and the base where its mean puts it; `total` counts the ranked deltas.

    `settings`: the reference's; `reference` says whose they are, `unrecorded` which decisive ones it does not have.
    """

    base_id: str
    metric_suite: str
    metric: str
    prompt_set: str | None
    direction: Direction
    rows: tuple[Ranked, ...]
    total: int
    reference: Literal["base", "most deltas"]
    settings: Mapping[str, SettingValue]
    unrecorded: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `hfq leaderboard --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Group:
    """Scores of one suite on one prompt set, of one direction and with the same settings."""

    suite: str
    prompt_set: str | None
    direction: str
    settings_key: int
    scores: int


def read_leaderboard(
    session: Session,
    base_id: str,
    metric: str,
    *,
    suite: str | None = None,
    prompt_set: str | None = None,
    limit: int = LEADERS,
) -> Leaderboard:
    """The best `limit` deltas of a base.

    Args:
        suite: who computed the metric; None where only one did.
        prompt_set: what was generated; None where there is only one, "" for the scores whose prompt set nobody named.

    Raises:
        UnknownScoresError: no delta of this base, nor the base, has such a score.
        AmbiguousScoresError: several suites or prompt sets have the metric; they are named.
    """
    base_key = session.scalars(sa.select(Base.key).where(Base.id == base_id)).one()
    groups = _choose(_groups(session, base_key, metric), base_id, metric, suite, prompt_set)
    suite, chosen_set = groups[0].suite, groups[0].prompt_set
    own = session.execute(
        sa.select(Score.key, Score.direction, Score.settings_key).where(
            Score.variant_id == base_id,
            Score.metric_suite == suite,
            Score.metric == metric,
            Score.prompt_set.is_not_distinct_from(chosen_set),
            Score.counts == sa.true(),
            Score.mean.is_not(None),
        )
    ).first()
    most = max(groups, key=lambda group: (group.scores, group.settings_key))
    direction = cast(Direction, own.direction if own else most.direction)
    documents = _documents(session, {group.settings_key for group in groups})
    reference = documents[own.settings_key if own else most.settings_key]
    alike, left_out = _sort_out(groups, direction, reference, documents)
    leaders = _leaders(session, base_key, metric, alike, direction, limit)
    found = leaders if own is None else [*leaders, session.get_one(Score, own.key)]
    return Leaderboard(
        base_id=base_id,
        metric_suite=suite,
        metric=metric,
        prompt_set=chosen_set,
        direction=direction,
        rows=_rows(session, found, direction, {key: _differences(reference, documents[key]) for key in documents}),
        total=sum(group.scores for group in alike) - (own is not None),
        reference="base" if own else "most deltas",
        settings=reference,
        unrecorded=tuple(one.name for one in compare_settings(reference, reference)),
        left_out=left_out,
    )


def _groups(session: Session, base_key: int, metric: str) -> list[_Group]:
    """What there is of a metric, from the index alone."""
    kinds = (Score.metric_suite, Score.prompt_set, Score.direction, Score.settings_key)
    rows = session.execute(
        sa.select(*kinds, sa.func.count(Score.mean))
        .where(Score.metric == metric, Score.base_key == base_key, Score.counts == sa.true())
        .group_by(*kinds)
    )
    return [_Group(*row) for row in rows if row[-1]]


def _choose(
    groups: Sequence[_Group], base_id: str, metric: str, suite: str | None, prompt_set: str | None
) -> list[_Group]:
    chosen = [
        group
        for group in groups
        if suite in (None, group.suite) and prompt_set in (None, group.prompt_set or "")
    ]  # fmt: skip
    kinds = dict.fromkeys((group.suite, group.prompt_set) for group in (chosen or groups))
    named = "; ".join(f"--suite {one} --prompt-set {'' if on is None else on!r}".rstrip() for one, on in kinds)
    where = display_id(base_id, "base")
    if not chosen:
        raise UnknownScoresError(
            "no score of this metric", where=where, expected=named or "an imported score", found=metric,
            todo="`hfq score import` or `hfq score measure` records one",
        )  # fmt: skip
    if len(kinds) > 1:
        raise AmbiguousScoresError("several suites or prompt sets have this metric", where=where, found=named,
                                   todo="say which with --suite and --prompt-set")  # fmt: skip
    return chosen


def _documents(session: Session, keys: Iterable[int]) -> dict[int, dict[str, SettingValue]]:
    rows = session.execute(sa.select(ScoreSettings.key, ScoreSettings.document).where(ScoreSettings.key.in_(keys)))
    return {key: json.loads(document) for key, document in rows}


def _sort_out(
    groups: Iterable[_Group],
    direction: Direction,
    reference: Mapping[str, SettingValue],
    documents: Mapping[int, Mapping[str, SettingValue]],
) -> tuple[list[_Group], tuple[LeftOut, ...]]:
    """The groups that may be ranked together, and the others."""
    alike: list[_Group] = []
    left_out: list[LeftOut] = []
    for group in groups:
        differences = compare_settings(reference, documents[group.settings_key])
        decisive = tuple(one for one in differences if one.kind == "decisive")
        if group.direction != direction:
            decisive = (*decisive, SettingDifference("direction", "decisive", direction, group.direction))
        if decisive:
            left_out.append(LeftOut(group.scores, decisive))
        else:
            alike.append(group)
    return alike, tuple(sorted(left_out, key=lambda one: -one.scores))


def _differences(
    reference: Mapping[str, SettingValue], settings: Mapping[str, SettingValue]
) -> tuple[SettingDifference, ...]:
    """Without what neither side records, which is said once of the whole table."""
    return tuple(one for one in compare_settings(reference, settings) if one.first != one.second)


def _leaders(
    session: Session, base_key: int, metric: str, groups: Iterable[_Group], direction: Direction, limit: int
) -> list[Score]:
    """The best deltas: of each group its best, which the index holds in order."""
    found: list[Score] = []
    order = (Score.mean.desc(), Score.key.desc()) if direction == "higher" else (Score.mean, Score.key)
    for group in groups:
        found += session.scalars(
            sa.select(Score)
            .where(
                Score.metric == metric,
                Score.base_key == base_key,
                Score.counts == sa.true(),
                Score.metric_suite == group.suite,
                Score.prompt_set.is_not_distinct_from(group.prompt_set),
                Score.direction == group.direction,
                Score.settings_key == group.settings_key,
                Score.mean.is_not(None),
                Score.variant_kind == "delta",
            )
            .order_by(*order)
            .limit(limit)
        )
    return sorted(found, key=_order(direction))[:limit]


def _order(direction: Direction) -> Any:
    sign = -1.0 if direction == "higher" else 1.0
    return lambda score: (sign * score.mean, sign * score.key)


def _rows(
    session: Session,
    scores: Sequence[Score],
    direction: Direction,
    differences: Mapping[int, tuple[SettingDifference, ...]],
) -> tuple[Ranked, ...]:
    ids = [score.variant_id for score in scores if score.variant_kind == "delta"]
    made_by = session.execute(sa.select(Delta.id, Recipe.name).join(Delta.recipe).where(Delta.id.in_(ids)))
    recipes: dict[str, str] = {delta_id: name for delta_id, name in made_by}  # noqa: C416 (dict() loses the types)
    named = session.execute(
        sa.select(Delta.id, Alias.name).join(Delta.aliases).where(Delta.id.in_(ids)).order_by(Delta.id, Alias.name)
    )
    aliases = {key: tuple(row[1] for row in group) for key, group in groupby(named, key=lambda row: row[0])}
    seen = seen_by_deltas(session, ids)
    prompts = _prompts(session, scores)
    rows: list[Ranked] = []
    rank = 0
    for score in sorted(scores, key=_order(direction)):
        is_delta = score.variant_kind == "delta"
        rank += is_delta
        rows.append(
            Ranked(
                rank=rank if is_delta else None,
                variant=Variant(score.variant_kind, score.variant_id),
                aliases=aliases.get(score.variant_id, ()),
                recipe=recipes.get(score.variant_id),
                mean=cast(float, score.mean),
                videos=score.videos,
                overlap=describe_overlap(prompts[score.prompts_sha256], seen[score.variant_id]) if is_delta else None,
                settings=differences[score.settings_key],
                imported_at=score.imported_at,
            )
        )
    return tuple(rows)


def _prompts(session: Session, scores: Iterable[Score]) -> dict[str, list[str | None]]:
    """Prompt hashes of the scored videos, read once for all scores of the same prompts."""
    found: dict[str, list[str | None]] = {}
    for score in scores:
        if score.prompts_sha256 not in found:
            query = sa.select(ScoreVideo.prompt_sha256).where(
                ScoreVideo.score_key == score.key, ScoreVideo.value.is_not(None)
            )
            found[score.prompts_sha256] = list(session.scalars(query))
    return found
