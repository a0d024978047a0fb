"""What the registry answers with: plain values, detached from the database."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .hub_records import HubBaseRecord, HubCopyRecord, hub_bases, hub_copies
from .models import Base, CalibrationPrompt, Delta, KeptSite, Recipe
from .text import display_id

__all__ = [
    "BaseRecord",
    "CalibrationRecord",
    "DeltaRecord",
    "DeltaSummary",
    "EventRecord",
    "ExpertRecord",
    "KeptRecord",
    "LocationRecord",
    "RecipeRecord",
    "StageRecord",
    "WitnessRecord",
]


@dataclass(frozen=True, slots=True)
class WitnessRecord:
    """A checkpoint file; `trusted` says that its hash was taken on trust and not computed."""

    name: str
    size_bytes: int
    sha256: str
    layout: str
    exact_root: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert of a base."""

    role: str
    bf16_root: str
    tensors: int
    witnesses: tuple[WitnessRecord, ...]


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """A base by its model-level id; `hub` are the commits that it is tied to, the last first."""

    id: str
    model_type: str
    experts: tuple[ExpertRecord, ...]
    hub: tuple[HubBaseRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage of a recipe and the parameters it has."""

    kind: str
    expert: str | None
    statistic: str | None
    percentile: float | None
    alpha: float | None


@dataclass(frozen=True, slots=True)
class RecipeRecord:
    """A recipe: searchable parameters and the whole document."""

    id: str
    name: str
    weight_format: str
    activation_format: str
    stages: tuple[StageRecord, ...]
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """A calibration's identity and the SHA-256 of each of its prompts."""

    id: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A site that stays as it is in the base."""

    expert: str
    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class LocationRecord:
    """A folder where a copy was registered; newest first in a record."""

    folder: str
    created: str
    registered_at: str


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One line of the history."""

    seq: int
    at: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeltaSummary:
    """A line of `hfq list`. Several smooth stages may have several percentiles."""

    id: str
    aliases: tuple[str, ...]
    recipe: str
    weight_format: str
    activation_format: str
    percentiles: tuple[float, ...]
    quantized: int
    kept: int
    state_size_bytes: int
    base_id: str
    bf16_roots: dict[str, str]
    calibration_id: str | None
    registered_at: str

    def to_json(self) -> dict[str, Any]:
        """A member of `deltas` in `hfq list --json`."""
        return {**asdict(self), "display": display_id(self.id)}


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """A registered delta with everything that it was made from, and where it lies: here, and on the Hub."""

    id: str
    aliases: tuple[str, ...]
    base: BaseRecord
    recipe: RecipeRecord
    calibration: CalibrationRecord | None
    quantized: int
    kept: tuple[KeptRecord, ...]
    state_sha256: str
    state_size_bytes: int
    state_tensors: int
    created: str
    registered_at: str
    locations: tuple[LocationRecord, ...]
    events: tuple[EventRecord, ...]
    hub: tuple[HubCopyRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `hfq show --json`."""
        return {**asdict(self), "display": display_id(self.id)}


def base_record(row: Base) -> BaseRecord:
    """A base with its experts, witnesses and commits on the Hub."""
    experts = tuple(
        ExpertRecord(
            expert.role,
            expert.bf16_root,
            expert.tensors,
            tuple(
                WitnessRecord(file.name, file.size_bytes, file.sha256, file.layout, file.exact_root, file.trusted)
                for file in expert.witnesses
            ),
        )
        for expert in row.experts
    )
    return BaseRecord(row.id, row.model_type, experts, hub_bases(row))


def recipe_record(row: Recipe) -> RecipeRecord:
    """A recipe with its stages."""
    stages = tuple(
        StageRecord(stage.kind, stage.expert, stage.statistic, stage.percentile, stage.alpha) for stage in row.stages
    )
    document = json.loads(row.document)
    return RecipeRecord(row.id, row.name, row.weight_format, row.activation_format, stages, document)


def calibration_prompts(session: Session, calibration_key: int) -> tuple[str, ...]:
    """The hashes of a calibration's prompts, in its order."""
    query = sa.select(CalibrationPrompt.sha256).where(CalibrationPrompt.calibration_key == calibration_key)
    return tuple(session.scalars(query.order_by(CalibrationPrompt.position)))


def delta_record(session: Session, row: Delta, events: tuple[EventRecord, ...]) -> DeltaRecord:
    """Everything about one delta."""
    calibration = row.calibration
    # Columns and not objects: hundreds of rows that are only passed on.
    kept = session.execute(
        sa.select(KeptSite.expert, KeptSite.site, KeptSite.reason)
        .where(KeptSite.delta_key == row.key)
        .order_by(KeptSite.expert, KeptSite.site)
    )
    return DeltaRecord(
        id=row.id,
        aliases=tuple(alias.name for alias in row.aliases),
        base=base_record(row.base),
        recipe=recipe_record(row.recipe),
        calibration=CalibrationRecord(calibration.id, calibration_prompts(session, calibration.key))
        if calibration
        else None,
        quantized=row.quantized,
        kept=tuple(KeptRecord(expert, site, reason) for expert, site, reason in kept),
        state_sha256=row.state_sha256,
        state_size_bytes=row.state_size_bytes,
        state_tensors=row.state_tensors,
        created=row.created,
        registered_at=row.registered_at,
        locations=tuple(LocationRecord(place.folder, place.created, place.registered_at) for place in row.locations),
        events=events,
        hub=hub_copies(row),
    )


def delta_summary(row: Delta) -> DeltaSummary:
    """A line of a list."""
    percentiles = {stage.percentile for stage in row.recipe.stages if stage.percentile is not None}
    return DeltaSummary(
        id=row.id,
        aliases=tuple(alias.name for alias in row.aliases),
        recipe=row.recipe.name,
        weight_format=row.recipe.weight_format,
        activation_format=row.recipe.activation_format,
        percentiles=tuple(sorted(percentiles)),
        quantized=row.quantized,
        kept=row.kept,
        state_size_bytes=row.state_size_bytes,
        base_id=row.base.id,
        bf16_roots={expert.role: expert.bf16_root for expert in row.base.experts},
        calibration_id=row.calibration.id if row.calibration else None,
        registered_at=row.registered_at,
    )
