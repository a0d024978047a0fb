"""Routing: every linear once, by the first rule that fits; rules and stages that do nothing are errors."""

from __future__ import annotations

from typing import Any

import pytest
from made import SMALL
from test_recipe import SMOOTH, recipe

from hfq.convert.recipe import load_recipe
from hfq.convert.routing import matches, route_sites, stages_for
from hfq.schema.errors import RecipeError, UnmatchedRuleError, UnroutedSiteError

NAMES = [site.name for site in SMALL.sites()]
PAIR = {"high_noise": NAMES, "low_noise": NAMES}


def routed(*rules: dict[str, Any], stage: list[dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    return route_sites(load_recipe(recipe(route=list(rules), stage=stage or [])), PAIR)


def test_the_first_rule_that_fits_decides() -> None:
    routes = routed(
        {"match": ["blocks.0.*"], "to": "keep", "reason": "boundary block"},
        {"match": ["blocks.*"], "to": "quantize"},
        {"match": ["*"], "to": "keep"},
    )
    assert all(list(routes[role]) == NAMES for role in PAIR)
    first, second = routes["high_noise"]["blocks.0.ffn.0"], routes["high_noise"]["blocks.1.ffn.0"]
    assert (first.to, first.rule, first.reason) == ("keep", 0, "blocks.0.*: boundary block")
    assert (second.to, second.rule, second.reason) == ("quantize", 1, "blocks.*")
    assert routes["low_noise"]["head.head"].to == "keep"


def test_a_rule_may_be_for_one_expert() -> None:
    routes = routed({"match": ["blocks.*"], "to": "keep", "expert": "high_noise"}, {"match": ["*"], "to": "quantize"})
    assert routes["high_noise"]["blocks.0.ffn.0"].to == "keep"
    assert routes["low_noise"]["blocks.0.ffn.0"].to == "quantize"


@pytest.mark.parametrize(
    ("pattern", "site", "fits"),
    [
        ("blocks.1", "blocks.1.ffn.0", False),
        ("blocks.1.*", "blocks.11.ffn.0", False),
        ("blocks.?.ffn.0", "blocks.1.ffn.0", True),
        ("blocks.?.ffn.0", "blocks.11.ffn.0", False),
        ("blocks.[01].*", "blocks.1.ffn.2", True),
        ("blocks.[!01].*", "blocks.1.ffn.2", False),
        ("*.self_attn.[qkv]", "blocks.3.self_attn.k", True),
        ("BLOCKS.*", "blocks.1.ffn.0", False),
        ("blocks.1xffn.0", "blocks.1.ffn.0", False),
    ],
)
def test_patterns_are_globs_over_whole_names(pattern: str, site: str, fits: bool) -> None:
    assert (matches({"match": [pattern]}, "single", site) is not None) == fits


def test_an_undecided_linear_is_an_error_that_names_it() -> None:
    with pytest.raises(UnroutedSiteError, match="text_embedding"):
        routed({"match": ["blocks.*", "head.*"], "to": "quantize"})


@pytest.mark.parametrize(
    "rules",
    [
        [{"match": ["blocks.7.*"], "to": "keep"}, {"match": ["*"], "to": "quantize"}],
        [{"match": ["blocks.0.*", "block.1.*"], "to": "keep"}, {"match": ["*"], "to": "quantize"}],
        [{"match": ["*"], "to": "quantize"}, {"match": ["blocks.0.*"], "to": "keep"}],
    ],
    ids=["nothing", "one pattern of two", "decided before"],
)
def test_a_rule_or_pattern_without_effect_is_an_error(rules: list[dict[str, Any]]) -> None:
    with pytest.raises(UnmatchedRuleError):
        routed(*rules)


@pytest.mark.parametrize("match", [["blocks.9.*"], ["head.*"]], ids=["no linear", "kept linears only"])
def test_a_stage_without_effect_is_an_error(match: list[str]) -> None:
    rules = [{"match": ["head.*"], "to": "keep"}, {"match": ["*"], "to": "quantize"}]
    with pytest.raises(UnmatchedRuleError):
        routed(*rules, stage=[{**SMOOTH, "match": match}])


def test_an_expert_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no such expert"):
        routed({"match": ["*"], "to": "keep", "expert": "single"}, {"match": ["*"], "to": "quantize"})


def test_stages_are_chosen_by_pattern_and_expert() -> None:
    loaded = load_recipe(
        recipe(
            stage=[
                {**SMOOTH, "match": ["*.ffn.2"], "alpha": 0.7},
                {**SMOOTH, "match": ["*.ffn.0"], "expert": "low_noise"},
            ]
        )
    )
    assert [stage["alpha"] for stage in stages_for(loaded, "high_noise", "blocks.0.ffn.2")] == [0.7]
    assert stages_for(loaded, "high_noise", "blocks.0.ffn.0") == []
    assert len(stages_for(loaded, "low_noise", "blocks.0.ffn.0")) == 1


def test_two_stages_of_one_kind_for_one_linear_are_an_error() -> None:
    loaded = load_recipe(recipe(stage=[{**SMOOTH, "match": ["*.ffn.*"]}, {**SMOOTH, "match": ["blocks.*"]}]))
    with pytest.raises(RecipeError, match="two stages"):
        stages_for(loaded, "single", "blocks.0.ffn.0")
