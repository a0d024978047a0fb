"""The arms of the results table: every recipe can be read and fits the model that the table is about."""

from __future__ import annotations

from pathlib import Path

import pytest
from result_arms import COMPARISONS, FAMILIES, KEPT, Arm, all_arms

import hfq
from hfq.convert.recipe import load_recipe
from hfq.convert.routing import route_sites, stages_for
from hfq.convert.stage_rules import check_width

ARMS = all_arms()
RECIPES = [arm for arm in ARMS if arm.recipe is not None]
BOUNDARY = {
    "rtn-hif8": [(), ()],
    "boundary-hif8.first": [(0, 1)] * 2,
    "boundary-hif8.last": [(5, 6, 7)] * 2,
    "boundary-hif8": [(0, 1, 5, 6, 7)] * 2,
    "boundary-hif8.direct": [(0, 1, 5, 6, 7)] * 2,
}


def kept_blocks(arm: Arm, sites: dict[str, list[str]]) -> list[tuple[int, ...]]:
    """Per expert, the blocks of which every linear is kept; a block that is kept in part is none."""
    assert arm.recipe is not None
    found = []
    for routes in route_sites(load_recipe(arm.recipe), sites).values():
        blocks: dict[int, set[str]] = {}
        for site, route in routes.items():
            if site.startswith("blocks."):
                blocks.setdefault(int(site.split(".")[1]), set()).add(route.to)
        found.append(tuple(block for block, to in sorted(blocks.items()) if to == {"keep"}))
    return found


@pytest.fixture(scope="module")
def sites(tiny_weights: Path) -> dict[str, list[str]]:
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        return {role: [site.name for site in expert.sites] for role, expert in checkpoint.experts.items()}


@pytest.mark.parametrize("arm", RECIPES, ids=lambda arm: arm.key)
def test_every_recipe_reads_and_fits_the_tiny_wan(arm: Arm, tiny_weights: Path) -> None:
    assert arm.recipe is not None
    recipe = load_recipe(arm.recipe)
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        named = {role: {site.name: site for site in expert.sites} for role, expert in checkpoint.experts.items()}
    routes = route_sites(recipe, {role: list(own) for role, own in named.items()})
    quantized = 0
    for role, own in routes.items():
        for name, route in own.items():
            if route.to == "quantize":
                site = named[role][name]
                check_width(stages_for(recipe, role, name), site.in_features, site.out_features, name)
                quantized += 1
    assert quantized > 0


def test_keys_are_unique_and_comparisons_name_arms() -> None:
    keys = [arm.key for arm in ARMS]
    assert len(set(keys)) == len(keys)
    assert {arm.plain for arm in ARMS} - {None} <= set(keys)
    assert {key for comparison in COMPARISONS for pair in comparison.pairs for key in pair} <= set(keys)
    assert all(arm.family in FAMILIES for arm in ARMS)


def test_no_two_arms_are_the_same() -> None:
    """A row measured twice would look like a repetition."""
    seen = []
    for arm in ARMS:
        content = {key: value for key, value in (arm.recipe or {}).items() if key not in ("name", "description")}
        seen.append((content, arm.simulated))
        assert seen.count(seen[-1]) == 1, arm.key


@pytest.mark.parametrize("key", BOUNDARY)
def test_boundary_arms_keep_whole_blocks(key: str, sites: dict[str, list[str]]) -> None:
    arm = next(arm for arm in ARMS if arm.key == key)
    assert kept_blocks(arm, sites) == BOUNDARY[key]


def test_the_controls_keep_as_many_blocks_and_others(sites: dict[str, list[str]]) -> None:
    controls = [kept_blocks(arm, sites) for arm in ARMS if arm.key.startswith("boundary-hif8.random")]
    assert all(len(blocks) == KEPT for control in controls for blocks in control)
    # As docs/results.md says, where the overlap with the first two and last three is discussed.
    assert controls == [
        [(0, 1, 2, 4, 6), (1, 2, 4, 5, 6)], [(0, 2, 3, 5, 7), (1, 2, 4, 6, 7)], [(2, 4, 5, 6, 7), (1, 2, 4, 6, 7)],
    ]  # fmt: skip


def test_the_scopes_of_the_clip_differ_in_nothing_else() -> None:
    """Otherwise their comparison would be one of something else."""
    start = "svdquant-gptq-hif4.r4."
    stages = {arm.key.removeprefix(start): load_recipe(arm.recipe or {}).stages for arm in RECIPES if start in arm.key}
    assert set(stages) == {"none", "global", "expert", "bin"}
    assert all(own[:3] == stages["none"] for own in stages.values())
    clips = {scope: own[3] for scope, own in stages.items() if scope != "none"}
    assert all(clip["scope"] == scope for scope, clip in clips.items())
    assert len({str({**clip, "scope": None}) for clip in clips.values()}) == 1
