"""What a conversion will do, checked as far as it can be without reading a weight."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hfq.schema.errors import MissingCalibrationError, TooFewRowsError
from hfq.schema.version import VERSION

from .analyze import Analysis, load_analysis
from .architecture import Site
from .calibration import Calibration, load_calibration
from .checkpoint import Checkpoint
from .plain_site import PlainSite
from .progress import Progress
from .prompt_overlap import compare_prompts, overlap_line
from .prompts import Prompt
from .recipe import Recipe, load_recipe, preset_names
from .routing import Route, route_sites, stages_for
from .selection import Ranking, Selection, select_blocks
from .site_costs import site_bytes
from .stage_rules import NEEDS_CALIBRATION, NEEDS_INPUTS, check_width
from .weights import NUMERICS

__all__ = ["STATISTICS_HELD", "Plan", "journal_inputs", "plan_conversion"]

STATISTICS_HELD: Final = 2
"""Input groups: sites that stand together in a file share a few."""

# The process itself, statistics and the weights on their way take the rest of what DESIGN allows.
_WORKING_BYTES: Final = 900_000_000
_FACTORING_BYTES: Final = 4_000_000_000


@dataclass(frozen=True)
class Plan:
    """What will be done, known before any weight is read.

    Attributes:
        recipe: normalised.
        routes: role -> site -> route.
        sites: role -> site name -> Site.
        calibration: None when the recipe needs none.
        calibrated: experts whose statistics are used.
        edges: role -> timestep edges of the expert's bins, of the calibration.
        warnings: what the report repeats, one line each.
        selection: what the recipe's select rules chose.
        ranking: the scores that they chose by; None when none does.
        evaluation: overlap with the evaluation prompts, as `provenance.json` has it; None when none were given.
    """

    recipe: Recipe
    routes: dict[str, dict[str, Route]]
    sites: dict[str, dict[str, Site]]
    calibration: Calibration | None
    calibrated: frozenset[str]
    edges: dict[str, tuple[float, float]]
    warnings: list[str]
    selection: Selection
    ranking: Ranking | None
    evaluation: dict[str, Any] | None

    @property
    def memory_bytes(self) -> int:
        """What works on weights may take together, beside the weights themselves: the whole process stays under 2.5 GB,
        with gptq or lowrank under 6 GB."""
        factors = any(stage["kind"] in ("gptq", "lowrank") for stage in self.recipe.document["stage"])
        return _FACTORING_BYTES if factors else _WORKING_BYTES

    def is_quantized(self, role: str, tensor: str) -> bool:
        """Whether a tensor is the weight of a site that is quantized."""
        route = self.routes[role].get(tensor.removesuffix(".weight")) if tensor.endswith(".weight") else None
        return route is not None and route.to == "quantize"

    def needs_whole(self, role: str, tensor: str) -> bool:
        """Whether a tensor has to be there as a whole; others are handled a few rows at a time."""
        if not self.is_quantized(role, tensor):
            return False
        staged = stages_for(self.recipe, role, tensor.removesuffix(".weight"))
        return bool(staged) or not PlainSite.fits(self.recipe.weight)

    def working_bytes(self, role: str) -> dict[str, int]:
        """Tensor name -> memory that converting its site takes beside the weight; of weights that are needed whole."""
        found = {}
        for name, site in self.sites[role].items():
            if self.needs_whole(role, f"{name}.weight"):
                found[f"{name}.weight"] = site_bytes(stages_for(self.recipe, role, name), site)
        return found

    def check_root(self, role: str, root: str) -> None:
        """Check that an expert is the one whose scores decided.

        Raises:
            WrongRoleError, AnalysisBaseError
        """
        if self.ranking is not None and role in self.selection.ranked:
            self.ranking.check_root(role, root, "the base")


def plan_conversion(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None,
    progress: Progress,
    *,
    analysis: str | os.PathLike[str] | Analysis | None = None,
    evaluation_prompts: Sequence[Prompt] | None = None,
) -> Plan:
    """Check everything that can be checked without reading weights.

    Raises:
        RecipeError and subclasses, MissingAnalysisError, AnalysisBaseError, WrongRoleError, MissingCalibrationError,
        CalibrationBaseError, DigestMismatchError, TooFewRowsError
    """
    loaded = load_recipe(recipe)
    sites = {role: {site.name: site for site in expert.sites} for role, expert in checkpoint.experts.items()}
    ranking = _read_ranking(loaded, analysis, progress)
    selection = select_blocks(loaded, sites, ranking)
    routes = route_sites(loaded, sites, selection)
    warnings = list(selection.warnings)
    if not any(route.to == "quantize" for found in routes.values() for route in found.values()):
        warnings.append("the recipe quantizes no linear of this model: the delta will be the base itself")
    for role, site, stages in _staged(loaded, routes, sites):
        check_width(stages, site.in_features, site.out_features, f"recipe {loaded.name}: {role} {site.name}")
    if loaded.name in preset_names() and loaded.digest != load_recipe(loaded.name).digest:
        progress.note(f"the recipe is named {loaded.name} like a preset and is another: give it a name of its own")
    if not loaded.needs_calibration:
        if calibration is not None:
            progress.note(f"the recipe {loaded.name} needs no calibration; the given one is ignored")
        plan = Plan(loaded, routes, sites, None, frozenset(), {}, warnings, selection, ranking, None)
        return _finish(plan, checkpoint, evaluation_prompts, progress)
    if calibration is None:
        inputs = " --keep-inputs 1024" if loaded.needs_inputs else ""
        raise MissingCalibrationError(
            f"the recipe {loaded.name} needs activation statistics",
            todo=f"calibrate once: hfq calibrate MODEL --prompts FILE{inputs} -o CAL, then --calibration CAL",
        )
    opened = calibration if isinstance(calibration, Calibration) else load_calibration(calibration)
    opened.verify_bytes()
    calibrated = set[str]()
    few: dict[str, list[tuple[float, str]]] = {}
    for role, site, stages in _staged(loaded, routes, sites):
        if any(stage["kind"] in NEEDS_CALIBRATION for stage in stages):
            opened.check_group(role, site.input_group, site.in_features)
            calibrated.add(role)
            _check_rows(opened, role, site, stages, few)
    warnings += [
        f"{role}: gptq has fewer input rows than channels in {len(missing)} linears ({min(missing)[1]} channels); "
        "keep more (--keep-inputs), or calibrate more prompts where a prompt has no more, as for cross_attn.k and v"
        for role, missing in few.items()
    ]
    edges = {}
    for role in calibrated:
        early, late = opened.document["schedule"][role]["edges"]
        edges[role] = (float(early), float(late))
    plan = Plan(loaded, routes, sites, opened, frozenset(calibrated), edges, warnings, selection, ranking, None)
    return _finish(plan, checkpoint, evaluation_prompts, progress)


def _read_ranking(
    recipe: Recipe, analysis: str | os.PathLike[str] | Analysis | None, progress: Progress
) -> Ranking | None:
    if not recipe.needs_analysis:
        if analysis is not None:
            progress.note(f"the recipe {recipe.name} needs no analysis; the given one is ignored")
        return None
    if analysis is None:
        return None
    opened = analysis if isinstance(analysis, Analysis) else load_analysis(analysis)
    measured, wanted = opened.document["format"], recipe.weight["format"]
    if measured != wanted:
        progress.note(f"warning: the analysis measured {measured}; the recipe {recipe.name} has {wanted} weights")
    return Ranking.from_analysis(opened.document, str(opened.path))


def _finish(
    plan: Plan, checkpoint: Checkpoint, evaluation_prompts: Sequence[Prompt] | None, progress: Progress
) -> Plan:
    """Say the warnings, check the analysis against every root that is known without reading the base, compare prompts.

    Raises:
        WrongRoleError, AnalysisBaseError
    """
    for warning in plan.warnings:
        progress.note(f"warning: {warning}")
    for role in plan.selection.ranked:
        known = checkpoint.experts[role].known_root
        if known is not None:
            plan.check_root(role, known)
        if plan.calibration is not None and plan.ranking is not None and role in plan.calibrated:
            calibrated = plan.calibration.document["base"]["experts"][role]["bf16_root"]
            plan.ranking.check_root(role, calibrated, str(plan.calibration.path))
    prompts = [] if plan.calibration is None else plan.calibration.prompt_hashes
    evaluation = compare_prompts(evaluation_prompts, prompts, plan.selection.prompts)
    line = overlap_line(evaluation)
    if line is not None:
        progress.note(line)
    return replace(plan, evaluation=evaluation)


def _staged(
    recipe: Recipe, routes: Mapping[str, Mapping[str, Route]], sites: Mapping[str, Mapping[str, Site]]
) -> Iterator[tuple[str, Site, list[Mapping[str, Any]]]]:
    """Quantized sites and the stages of each."""
    for role, expert_routes in routes.items():
        for name, route in expert_routes.items():
            if route.to == "quantize":
                yield role, sites[role][name], stages_for(recipe, role, name)


def _check_rows(
    calibration: Calibration,
    role: str,
    site: Site,
    stages: list[Mapping[str, Any]],
    few: dict[str, list[tuple[float, str]]],
) -> None:
    """Check that enough input rows were kept for the stages of a site; notes in `few` what is short of the width.

    Raises:
        TooFewRowsError
    """
    kept = sum(calibration.plan(role, site.input_group).rows.values())
    for stage in stages:
        if stage["kind"] not in NEEDS_INPUTS:
            continue
        rows = min(kept, int(stage["tokens"])) if stage["kind"] == "gptq" else kept
        # A Hessian of fewer rows than an eighth of its size is mostly damping.
        least = -(-site.in_features // 8) if stage["kind"] == "gptq" else 1
        if kept >= least > rows:
            raise TooFewRowsError(
                "the recipe lets gptq see too few of the kept input rows",
                where=f"{role} {site.name}: tokens",
                expected=f"at least {least}",
                found=rows,
                todo="raise `tokens` of the stage",
            )
        if rows < least:
            raise TooFewRowsError(
                f"the calibration kept too few input rows for {stage['kind']}",
                where=f"{calibration.path}: {role} {site.input_group}",
                expected=f"at least {least}",
                found=rows,
                todo="calibrate with --keep-inputs 1024 (rows per timestep bin) and more prompts",
            )
        if stage["kind"] == "gptq" and rows < site.in_features:
            few.setdefault(role, []).append((rows / site.in_features, f"{site.name}: {rows} rows, {site.in_features}"))


def journal_inputs(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What decides a conversion's result, for its journal."""
    return {
        "hfq": VERSION,
        "numerics": NUMERICS,
        # Values are compared site by site, when they are read.
        "base": {
            role: {name: list(expert.info(name).shape) for name in expert.names}
            for role, expert in checkpoint.experts.items()
        },
        "recipe": dict(plan.recipe.document),
        "calibration": None if plan.calibration is None else plan.calibration.id,
        "selection": plan.selection.document,
    }
