"""Where a delta comes from: one value, three renderings (JSON, text, Mermaid)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .hub_records import describe_copy
from .models import Alias, Base, Calibration, Delta, Edge, Recipe
from .records import DeltaRecord, RecipeRecord, StageRecord
from .text import display_id, mermaid_label, printable

__all__ = ["EdgeRecord", "Lineage", "SiblingRecord", "read_lineage", "render_mermaid", "render_text"]

SIBLINGS_READ: Final = 20
SIBLINGS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class EdgeRecord:
    """`child` was made from `parent`."""

    child_kind: str
    child_id: str
    relation: str
    parent_kind: str
    parent_id: str


@dataclass(frozen=True, slots=True)
class SiblingRecord:
    """Another delta of the same base, and perhaps of the same calibration."""

    id: str
    aliases: tuple[str, ...]
    recipe: str
    same_base: bool
    same_calibration: bool


@dataclass(frozen=True, slots=True)
class Lineage:
    """A delta, its edges, and the newest of its siblings (`siblings_total` counts them all)."""

    delta: DeltaRecord
    edges: tuple[EdgeRecord, ...]
    siblings: tuple[SiblingRecord, ...]
    siblings_total: int

    def to_json(self) -> dict[str, Any]:
        """The document of `hfq lineage --format json`."""
        return {
            "delta": self.delta.to_json(),
            "edges": [
                {
                    "child": {"kind": edge.child_kind, "id": edge.child_id},
                    "relation": edge.relation,
                    "parent": {"kind": edge.parent_kind, "id": edge.parent_id},
                }
                for edge in self.edges
            ],
            "siblings": [
                {
                    "id": sibling.id,
                    "display": display_id(sibling.id),
                    "aliases": list(sibling.aliases),
                    "recipe": sibling.recipe,
                    "same_base": sibling.same_base,
                    "same_calibration": sibling.same_calibration,
                }
                for sibling in self.siblings
            ],
            "siblings_total": self.siblings_total,
        }


def read_lineage(session: Session, delta: DeltaRecord) -> Lineage:
    """The lineage of a delta that `get` has read in the same session."""
    edges = session.scalars(sa.select(Edge).where(Edge.child_id == delta.id).order_by(Edge.relation, Edge.parent_id))
    same_base = Base.id == delta.base.id
    related: sa.ColumnElement[bool] = same_base
    if delta.calibration is not None:
        related = sa.or_(same_base, Calibration.id == delta.calibration.id)
    query = (
        sa.select(Delta.key, Delta.id, Recipe.name, Base.id, Calibration.id)
        .join(Delta.base)
        .join(Delta.recipe)
        .outerjoin(Delta.calibration)
        .where(related, Delta.id != delta.id)
    )
    total = session.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
    rows = session.execute(query.order_by(Delta.key.desc()).limit(SIBLINGS_READ)).all()
    aliases: dict[int, list[str]] = {}
    of_these = sa.select(Alias).where(Alias.delta_key.in_([row[0] for row in rows])).order_by(Alias.name)
    for alias in session.scalars(of_these):
        aliases.setdefault(alias.delta_key, []).append(alias.name)
    calibration_id = delta.calibration.id if delta.calibration else None
    siblings = tuple(
        SiblingRecord(
            id=delta_id,
            aliases=tuple(aliases.get(key, ())),
            recipe=recipe,
            same_base=base_id == delta.base.id,
            same_calibration=calibration_id is not None and calibration == calibration_id,
        )
        for key, delta_id, recipe, base_id, calibration in rows
    )
    return Lineage(
        delta=delta,
        edges=tuple(
            EdgeRecord(edge.child_kind, edge.child_id, edge.relation, edge.parent_kind, edge.parent_id)
            for edge in edges
        ),
        siblings=siblings,
        siblings_total=total,
    )


def describe_stage(stage: StageRecord) -> str:
    """`smooth percentile 99.9 alpha 0.5`, with the expert when it has one."""
    words = [stage.kind]
    if stage.statistic is not None:
        words.append(f"{stage.statistic} {stage.percentile:g}" if stage.percentile is not None else stage.statistic)
    if stage.alpha is not None:
        words.append(f"alpha {stage.alpha:g}")
    if stage.expert is not None:
        words.append(f"for {stage.expert}")
    return printable(" ".join(words))


def describe_format(part: Any) -> str:
    """`hif4/ref` or `hif8/row` from the `weight` or `activation` of a recipe."""
    if not isinstance(part, dict):
        return "mixed"
    words = [str(part.get("format", "mixed"))]
    words += [str(part[key]) for key in ("profile", "scale") if part.get(key) not in (None, "none")]
    return printable("/".join(words))


def _formats(recipe: RecipeRecord) -> str:
    weight, activation = recipe.document.get("weight"), recipe.document.get("activation")
    return f"weights {describe_format(weight)}, activations {describe_format(activation)}"


def render_text(lineage: Lineage) -> str:
    """For a terminal: what was made from what, from the delta upwards."""
    delta = lineage.delta
    lines = [display_id(delta.id)]

    def say(label: str, text: str) -> None:
        lines.append(f"  {label:<12} {text}")

    say("id", delta.id)
    say("aliases", ", ".join(delta.aliases) or "none")
    say("registered", f"{delta.registered_at}, made {printable(delta.created)}")
    say("recipe", f"{printable(delta.recipe.name)}  {display_id(delta.recipe.id, 'recipe')}")
    say("", _formats(delta.recipe))
    for stage in delta.recipe.stages:
        say("", describe_stage(stage))
    if delta.calibration is None:
        say("calibration", "none")
    else:
        prompts = f"{len(delta.calibration.prompts)} prompts"
        say("calibration", f"{display_id(delta.calibration.id, 'calibration')}  {prompts}")
    say("base", f"{printable(delta.base.model_type)}  {display_id(delta.base.id, 'base')}")
    for expert in delta.base.experts:
        say("", f"{expert.role}: bf16 root {expert.bf16_root}, {expert.tensors} tensors")
        for file in expert.witnesses:
            trust = ", hash taken on trust" if file.trusted else ""
            say("", f"  {printable(file.name)}  {file.size_bytes} bytes  sha256 {file.sha256}{trust}")
            say("", f"    layout {printable(file.layout)}, exact root {file.exact_root}")
    for tied in delta.base.hub:
        say("", f"on the Hub: {printable(tied.url, 1000)}")
        for on_hub in tied.files:
            say("", f"  {on_hub.role}: {printable(on_hub.path, 1000)}  sha256 {on_hub.sha256}")
    say("sites", f"{delta.quantized} quantized, {len(delta.kept)} kept")
    kept = Counter((entry.expert, entry.reason) for entry in delta.kept)
    for (expert_role, reason), count in sorted(kept.items()):
        say("", f"{expert_role}: {count} kept, {printable(reason)}")
    for place in delta.locations:
        say("folder", printable(place.folder, 1000))
    for copy in delta.hub:
        say("hub", describe_copy(copy))
    for sibling in lineage.siblings[:SIBLINGS_SHOWN]:
        names = f"  ({', '.join(sibling.aliases)})" if sibling.aliases else ""
        shared = " and ".join(
            word for word, same in (("base", sibling.same_base), ("calibration", sibling.same_calibration)) if same
        )
        say("sibling", f"{display_id(sibling.id)}  {printable(sibling.recipe)}  same {shared}{names}")
    if (more := lineage.siblings_total - SIBLINGS_SHOWN) > 0:
        say("", f"and {more} more; `hfq list --base {delta.base.id[:12]}` shows those of this base")
    return "\n".join(lines)


def render_mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart for a README or a model card: files and roots, base, recipe, calibration, delta, aliases."""
    delta = lineage.delta
    nodes: list[str] = []
    arrows: list[str] = []

    def node(name: str, label: Sequence[object], shape: str = "[]") -> str:
        text = "<br/>".join(mermaid_label(part) for part in label)
        nodes.append(f'  {name}{shape[: len(shape) // 2]}"{text}"{shape[len(shape) // 2 :]}')
        return name

    target = node("delta", [display_id(delta.id), f"{delta.quantized} quantized, {len(delta.kept)} kept"])
    names = {delta.base.id: "base", delta.recipe.id: "recipe"}
    node("base", [display_id(delta.base.id, "base"), delta.base.model_type])
    node(
        "recipe",
        [
            delta.recipe.name,
            display_id(delta.recipe.id, "recipe"),
            _formats(delta.recipe),
            *(describe_stage(stage) for stage in delta.recipe.stages),
        ],
    )
    if delta.calibration is not None:
        names[delta.calibration.id] = "calibration"
        label = display_id(delta.calibration.id, "calibration")
        node("calibration", [label, f"{len(delta.calibration.prompts)} prompts"])
    for expert in delta.base.experts:
        name = node(f"expert_{expert.role}", [expert.role, f"bf16 root {expert.bf16_root[:12]}"])
        arrows.append(f"  {name} --> base")
        for number, file in enumerate(expert.witnesses):
            witness = node(f"file_{expert.role}_{number}", [file.name, f"sha256 {file.sha256[:12]}"], "([])")
            arrows.append(f"  {witness} --> {name}")
    for number, tied in enumerate(delta.base.hub):
        arrows.append(f"  {node(f'base_hub_{number}', [tied.repo, f'commit {tied.commit[:12]}'], '([])')} -.-> base")
    for number, edge in enumerate(lineage.edges):
        parent = names.get(edge.parent_id) or node(f"parent_{number}", [display_id(edge.parent_id, edge.parent_kind)])
        arrows.append(f'  {parent} -->|"{mermaid_label(edge.relation)}"| {target}')
    for number, copy in enumerate(delta.hub):
        name = node(f"hub_{number}", [copy.repo, f"commit {copy.commit[:12]}"], "([])")
        arrows.append(f"  {name} -.-> {target}")
    for number, alias in enumerate(delta.aliases):
        arrows.append(f"  {node(f'alias_{number}', [alias], '([])')} -.-> {target}")
    return "\n".join(["flowchart LR", *nodes, *arrows])
