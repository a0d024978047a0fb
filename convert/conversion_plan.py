"""What a conversion will do, checked as far as it can be without reading a weight."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hfq.schema.errors import MissingCalibrationError
from hfq.schema.version import VERSION

from .analyze import Analysis, load_analysis
from .architecture import Site
from .calibration import Calibration, load_calibration
from .calibration_use import CalibrationUse, StagedSite, use_calibration
from .checkpoint import Checkpoint
from .plain_site import PlainSite
from .progress import Progress
from .prompt_overlap import compare_prompts, overlap_line
from .prompts import Prompt
from .recipe import Recipe, load_recipe, preset_names
from .routing import Route, route_sites, stages_for
from .selection import Ranking, Selection, select_blocks
from .site_costs import site_bytes
from .stage_rules import check_width
from .weight_counts import keep_warnings
from .weights import NUMERICS

__all__ = ["SAMPLES_HELD", "STATISTICS_HELD", "Plan", "inputs_of_delta", "journal_inputs", "plan_conversion"]

STATISTICS_HELD: Final = 2
"""Input groups: sites that stand together in a file share a few."""

SAMPLES_HELD: Final = 8
"""Input groups whose rows for measuring are held: a block's, 7 MB each at most."""

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
        use: what is taken from the calibration.
        warnings: what the report repeats, one line each.
        selection: what the recipe's select rules chose.
        ranking: the scores that they chose by; None when none does.
        evaluation: overlap with the evaluation prompts, as `provenance.json` has it; None when none were given.
    """

    recipe: Recipe
    routes: dict[str, dict[str, Route]]
    sites: dict[str, dict[str, Site]]
    use: CalibrationUse
    warnings: list[str]
    selection: Selection
    ranking: Ranking | None
    evaluation: dict[str, Any] | None

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that decides; None when the recipe needs none."""
        return self.use.calibration if self.use.needed else None

    @property
    def memory_bytes(self) -> int:
        """What works on weights may take together, beside the weights themselves: the whole process stays under 2.5 GB,
        with gptq or lowrank under 6 GB."""
        factors = any(stage["kind"] in ("gptq", "lowrank") for stage in self.recipe.document["stage"])
        return _FACTORING_BYTES if factors else _WORKING_BYTES

    def stages(self, role: str, site: str) -> list[Mapping[str, Any]]:
        """The stages that a quantized site is expected to go through: without `gptq` where too few rows differ."""
        found = stages_for(self.recipe, role, site)
        return [stage for stage in found if stage["kind"] != "gptq"] if (role, site) in self.use.rounded else found

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
                found[f"{name}.weight"] = site_bytes(self.stages(role, name), site)
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
    """Check everything that can be checked without reading the large weights.

    Raises:
        RecipeError and subclasses, MissingAnalysisError, AnalysisBaseError, WrongRoleError, MissingCalibrationError,
        and what `use_calibration` raises
    """
    loaded = load_recipe(recipe)
    sites = {role: {site.name: site for site in expert.sites} for role, expert in checkpoint.experts.items()}
    ranking = _read_ranking(loaded, analysis, progress)
    selection = select_blocks(loaded, sites, ranking)
    routes = route_sites(loaded, sites, selection)
    staged = list(_staged(loaded, routes, sites))
    for role, site, stages in staged:
        check_width(stages, site.in_features, site.out_features, f"recipe {loaded.name}: {role} {site.name}")
    if loaded.name in preset_names() and loaded.digest != load_recipe(loaded.name).digest:
        progress.note(f"the recipe is named {loaded.name} like a preset and is another: give it a name of its own")
    if calibration is None and loaded.needs_calibration:
        inputs = " --keep-inputs 1024" if loaded.needs_inputs else ""
        raise MissingCalibrationError(
            f"the recipe {loaded.name} needs activation statistics",
            todo=f"calibrate once: hfq calibrate MODEL --prompts FILE{inputs} -o CAL, then --calibration CAL",
        )
    use = CalibrationUse()
    if calibration is not None:
        opened = calibration if isinstance(calibration, Calibration) else load_calibration(calibration)
        use = use_calibration(checkpoint, opened, staged, progress)
        _say_what_measures(loaded, use, progress)
    warnings = [*selection.warnings, *keep_warnings(loaded, routes, sites), *use.warnings]
    plan = Plan(loaded, routes, sites, use, warnings, selection, ranking, None)
    return _finish(plan, checkpoint, evaluation_prompts, progress)


def _say_what_measures(recipe: Recipe, use: CalibrationUse, progress: Progress) -> None:
    if use.needed:
        return
    if use.measured:
        progress.note(
            f"the recipe {recipe.name} needs no calibration; the given one is ignored for the delta and used for "
            "measuring alone"
        )
    else:
        progress.note(
            f"the recipe {recipe.name} needs no calibration; the given one kept no input rows to measure outputs with "
            "(--keep-inputs) and is ignored"
        )


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
        if plan.calibration is not None and plan.ranking is not None and role in plan.use.calibrated:
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
) -> Iterator[StagedSite]:
    """Quantized sites and the stages of each."""
    for role, expert_routes in routes.items():
        for name, route in expert_routes.items():
            if route.to == "quantize":
                yield role, sites[role][name], stages_for(recipe, role, name)


def journal_inputs(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What decides a conversion's result, for its journal."""
    measuring = None if plan.use.needed else plan.use.calibration
    return {
        "hfq": VERSION,
        "numerics": NUMERICS,
        # Values are compared site by site, when they are read.
        "base": {
            role: {name: list(expert.info(name).shape) for name in expert.names}
            for role, expert in checkpoint.experts.items()
        },
        # Another calibration explains another recipe: it stands before it.
        "calibration": None if plan.calibration is None else plan.calibration.id,
        "recipe": dict(plan.recipe.document),
        "selection": plan.selection.document,
        **({} if measuring is None else {"measuring": measuring.id}),
    }


def inputs_of_delta(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `journal_inputs` gave when a delta was made, as far as its document says."""
    return {
        "numerics": document["numerics"],
        "base": {
            role: {name: entry["shape"] for name, entry in expert["tensors"].items()}
            for role, expert in document["base"]["experts"].items()
        },
        "calibration": None if document["calibration"] is None else document["calibration"]["id"],
        "recipe": document["recipe"],
        "selection": document["selection"],
    }
