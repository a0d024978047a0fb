"""Writing one registration. The caller holds the write lock, so a row that is not found stays not found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from hfq.schema.errors import DigestMismatchError

from .aliases import set_alias
from .events import record_event, utc_now
from .folder import DeltaFacts, ExpertFacts
from .models import (
    Base,
    BaseExpert,
    Calibration,
    CalibrationPrompt,
    Delta,
    Edge,
    KeptSite,
    Location,
    Recipe,
    RecipeStage,
    Witness,
)
from .prompts import store_selection
from .records import calibration_prompts
from .score_store import claim_scores

__all__ = ["Registration", "store_delta"]


@dataclass(frozen=True, slots=True)
class Registration:
    """What a registration did. A delta that was known keeps its row; a second copy of it is a second folder."""

    id: str
    folder: str
    is_new: bool
    is_new_folder: bool


def store_delta(session: Session, facts: DeltaFacts, aliases: tuple[str, ...] = ()) -> Registration:
    """Write what is new in `facts`: all of it for an unknown delta, nothing for one that was registered from here.

    What was selected on is added to a delta that was registered by a release which did not keep it.

    Raises:
        DigestMismatchError: a calibration or an analysis of that id is known with other prompts.
    """
    base = _store_base(session, facts)
    delta = session.scalar(sa.select(Delta).where(Delta.id == facts.id))
    is_new = delta is None
    if delta is None:
        delta = _add_delta(session, facts, base)
    store_selection(session, delta, facts)
    is_new_folder = _store_location(session, delta, facts, is_new)
    for name in aliases:
        set_alias(session, name, delta)
    return Registration(facts.id, facts.folder, is_new, is_new_folder)


def _add_delta(session: Session, facts: DeltaFacts, base: Base) -> Delta:
    recipe = _store_recipe(session, facts)
    calibration = _store_calibration(session, facts)
    delta = Delta(
        id=facts.id,
        base_key=base.key,
        recipe_key=recipe.key,
        calibration_key=calibration.key if calibration else None,
        state_sha256=facts.state_sha256,
        state_size_bytes=facts.state_size_bytes,
        state_tensors=facts.state_tensors,
        quantized=facts.quantized,
        kept=len(facts.kept),
        created=facts.created,
        registered_at=utc_now(),
    )
    session.add(delta)
    session.flush()
    if facts.kept:
        session.execute(
            sa.insert(KeptSite),
            [
                {"delta_key": delta.key, "expert": kept.expert, "site": kept.site, "reason": kept.reason}
                for kept in facts.kept
            ],
        )
    parents = [("bound-to", "base", facts.base_id), ("made-by", "recipe", facts.recipe_id)]
    if facts.calibration_id is not None:
        parents.append(("calibrated-by", "calibration", facts.calibration_id))
    session.execute(
        sa.insert(Edge),
        [
            {"child_id": facts.id, "relation": relation, "parent_id": parent_id, "child_kind": "delta",
             "parent_kind": kind}
            for relation, kind, parent_id in parents
        ],
    )  # fmt: skip
    claim_scores(session, facts.id, base.key)
    return delta


def _store_base(session: Session, facts: DeltaFacts) -> Base:
    known = sa.select(Base).where(Base.id == facts.base_id)
    base = session.scalar(known.options(selectinload(Base.experts).selectinload(BaseExpert.witnesses)))
    if base is None:
        base = Base(id=facts.base_id, model_type=facts.model_type)
        base.experts = [
            BaseExpert(role=expert.role, bf16_root=expert.bf16_root, tensors=expert.tensors) for expert in facts.experts
        ]
        session.add(base)
        session.flush()
        claim_scores(session, facts.base_id, base.key)
    by_role = {row.role: row for row in base.experts}
    for expert in facts.experts:
        _store_witnesses(session, by_role[expert.role], expert)
    return base


def _store_witnesses(session: Session, row: BaseExpert, expert: ExpertFacts) -> None:
    known = {(file.sha256, file.name, file.layout, file.exact_root): file for file in row.witnesses}
    for file in expert.witnesses:
        key = (file.sha256, file.name, file.layout, file.exact_root)
        if key not in known:
            known[key] = Witness(
                expert_key=row.key,
                layout=file.layout,
                exact_root=file.exact_root,
                name=file.name,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                trusted=file.trusted,
            )
            session.add(known[key])
        elif not file.trusted:
            known[key].trusted = False  # computed at least once is better than believed


def _store_recipe(session: Session, facts: DeltaFacts) -> Recipe:
    recipe = session.scalar(sa.select(Recipe).where(Recipe.id == facts.recipe_id))
    if recipe is None:
        recipe = Recipe(
            id=facts.recipe_id,
            name=facts.recipe["name"],
            weight_format=_format_name(facts.recipe["weight"]),
            activation_format=_format_name(facts.recipe["activation"]),
            document=facts.recipe_json,
        )
        recipe.stages = [
            RecipeStage(
                position=position,
                kind=stage["kind"],
                expert=stage.get("expert"),
                statistic=stage.get("statistic"),
                percentile=stage.get("percentile"),
                alpha=stage.get("alpha"),
            )
            for position, stage in enumerate(facts.recipe.get("stage", ()))
        ]
        session.add(recipe)
        session.flush()
    return recipe


def _format_name(part: Mapping[str, Any]) -> str:
    name = part.get("format")
    return name if isinstance(name, str) else "mixed"


def _store_calibration(session: Session, facts: DeltaFacts) -> Calibration | None:
    if facts.calibration_id is None:
        return None
    calibration = session.scalar(sa.select(Calibration).where(Calibration.id == facts.calibration_id))
    if calibration is None:
        calibration = Calibration(id=facts.calibration_id)
        session.add(calibration)
        session.flush()
        if facts.prompts:
            session.execute(
                sa.insert(CalibrationPrompt),
                [
                    {"calibration_key": calibration.key, "position": position, "sha256": digest}
                    for position, digest in enumerate(facts.prompts)
                ],
            )
        return calibration
    known = calibration_prompts(session, calibration.key)
    if known != facts.prompts:
        raise DigestMismatchError(
            "another delta names the same calibration with other prompts",
            where=facts.folder,
            expected=f"the {len(known)} prompts of calibration:{facts.calibration_id[:12]}",
            found=f"{len(facts.prompts)} prompts",
            todo="one of the two documents is wrong; make this delta again from the calibration's folder",
        )
    return calibration


def _store_location(session: Session, delta: Delta, facts: DeltaFacts, is_new: bool) -> bool:
    row = session.scalar(sa.select(Location).where(Location.folder == facts.folder))
    if row is not None and row.delta_key == delta.key:
        row.created = facts.created
        return False
    if row is not None:
        # The folder held another delta before. That delta stays registered; it merely no longer lies there.
        before = session.get_one(Delta, row.delta_key)
        record_event(session, "folder-reused", before.id, folder=facts.folder, by=delta.id)
        session.delete(row)
        session.flush()
    session.add(Location(delta_key=delta.key, folder=facts.folder, created=facts.created, registered_at=utc_now()))
    record_event(session, "registered" if is_new else "located", delta.id, folder=facts.folder)
    return True
