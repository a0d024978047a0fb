"""Selecting blocks: each rule, what it chooses, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import released_shapes, tiny
from test_recipe import recipe

import hfq
from hfq.convert.delta import Delta
from hfq.convert.derive import derive_architecture
from hfq.convert.recipe import Recipe, load_recipe
from hfq.convert.routing import Route, route_sites
from hfq.convert.selection import Ranking, select_blocks
from hfq.schema.canonical import content_id
from hfq.schema.errors import (
    HfqError,
    RecipeError,
    SchemaViolationError,
    UnmatchedRuleError,
)

DEPTH = 6
ROLES = ("high_noise", "low_noise")
DEEP = tiny(num_layers=DEPTH, dim=64, ffn_dim=64)
SITES = [site.name for site in DEEP.sites()]
PAIR = dict.fromkeys(ROLES, SITES)
REST = {"match": "*", "to": "quantize"}
TOP = {"select": "top-k", "score": "weight_nmse", "k": 2, "to": "keep"}
Change = Callable[[dict[str, Any]], object]


def selecting(*rules: dict[str, Any], **changes: Any) -> Recipe:
    return load_recipe(
        recipe(weight={"format": "hif8"}, activation={"format": "hif8"}, route=[*rules, REST], **changes)
    )


def kept_blocks(routes: dict[str, Route]) -> set[int]:
    """Blocks of which every linear is kept; the others may not have one."""
    places: dict[int, set[str]] = {}
    for site, route in routes.items():
        if site.startswith("blocks."):
            places.setdefault(int(site.split(".")[1]), set()).add(route.to)
    assert all(len(found) == 1 for found in places.values())
    return {block for block, found in places.items() if found == {"keep"}}


def ranking(**scores: list[float]) -> Ranking:
    """The same score `propagated`, one list per role."""
    return Ranking("0" * 64, "1" * 64, ["2" * 64], {role: {"propagated": values} for role, values in scores.items()})


def converted(base: Path, made: Any, out: Path, calibration: Path | None = None, **options: Any) -> Delta:
    with hfq.open_checkpoint(base) as checkpoint:
        return hfq.quantize(checkpoint, made, calibration, out=out, **options)


def edited(analysis: Path, file: Path, edit: Change) -> Path:
    """A copy of an analysis with a right id."""
    document = json.loads((analysis / "analysis.json").read_bytes())
    edit(document)
    document["id"] = content_id(document)
    file.write_text(json.dumps(document))
    return file


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["wan2.1-t2v-14B", "wan2.2-i2v-A14B-expert"])
def test_the_boundary_preset_on_a_released_model(release: str) -> None:
    sites = [site.name for site in derive_architecture(released_shapes(release), None, "test").sites()]
    routes = route_sites(load_recipe("boundary-hif8"), {"single": sites})["single"]
    assert sum(route.to == "quantize" for route in routes.values()) == 350
    assert kept_blocks(routes) == {0, 1, 37, 38, 39}
    kept = [site for site, route in routes.items() if route.to == "keep"]
    assert len(kept) == 56
    assert [site for site in kept if not site.startswith("blocks.")] == [
        "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1",
        "head.head",
    ]  # fmt: skip
    assert routes["blocks.37.ffn.2"].reason == "first 2 + last 3 of 40: block 37; boundary block"
    assert routes["blocks.2.ffn.0"].reason == "blocks.*: linear inside a block"


def test_the_boundary_preset_on_the_tiny_wan(tiny_weights: Path) -> None:
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        sites = {role: [site.name for site in expert.sites] for role, expert in checkpoint.experts.items()}
    for routes in route_sites(load_recipe("boundary-hif8"), sites).values():
        assert kept_blocks(routes) == {0, 1, 5, 6, 7}
        assert sum(route.to == "quantize" for route in routes.values()) == 30


@pytest.mark.parametrize(("first", "last", "kept"), [(2, 0, {0, 1}), (0, 3, {3, 4, 5}), (1, 4, {0, 2, 3, 4, 5})])
def test_first_and_last(first: int, last: int, kept: set[int]) -> None:
    routes = route_sites(selecting({"select": "first+last", "first": first, "last": last, "to": "keep"}), PAIR)
    assert [kept_blocks(routes[role]) for role in ROLES] == [kept, kept]


def test_a_list_of_blocks_for_one_expert() -> None:
    rule = {"select": "blocks", "blocks": [4, 0], "to": "keep", "expert": "low_noise", "reason": "measured"}
    routes = route_sites(selecting(rule), PAIR)
    assert kept_blocks(routes["low_noise"]) == {0, 4}
    assert kept_blocks(routes["high_noise"]) == set()
    assert routes["low_noise"]["blocks.4.ffn.0"] == Route("keep", 0, "listed: block 4; measured")


def test_the_largest_scores_are_chosen_per_expert_and_ties_go_to_the_lower_block() -> None:
    rule = {"select": "top-k", "score": "propagated", "k": 2, "to": "keep"}
    scores = ranking(high_noise=[1, 0.0123456, 1, 7, 1, 0], low_noise=[0.0] * DEPTH)
    chosen = select_blocks(selecting(rule), PAIR, scores)
    routes = route_sites(selecting(rule), PAIR, chosen)
    assert kept_blocks(routes["high_noise"]) == {0, 3}
    assert kept_blocks(routes["low_noise"]) == {0, 1}
    assert routes["high_noise"]["blocks.3.self_attn.q"].reason == "top-2 by propagated: block 3 (7)"
    three = select_blocks(selecting({**rule, "k": 5}), PAIR, scores)
    assert three.reason("high_noise", 0, "blocks.1.ffn.0") == "top-5 by propagated: block 1 (0.01235)"
    assert three.document is not None
    assert three.document["experts"]["high_noise"][0]["blocks"] == [0, 1, 2, 3, 4]


def measured(ranks: list[list[int]], weak: tuple[str, ...] = (), **scores: list[float]) -> Ranking:
    """Propagated errors with the ranks that each block may have."""
    plain = ranking(**scores)
    return dataclasses.replace(
        plain, ranks={role: {"propagated": ranks} for role in scores}, weak=dict.fromkeys(scores, weak)
    )


def test_a_cut_through_a_tie_is_said_and_stored() -> None:
    """Blocks whose ranges of ranks overlap across the cut are named on both sides; those on one side are no tie."""
    rule = {"select": "top-k", "score": "propagated", "k": 2, "to": "keep"}
    values = [9.0, 3.0, 2.0, 1.0, 0.5, 0.4]
    ranks = [[1, 1], [2, 3], [2, 4], [3, 4], [5, 6], [5, 6]]
    scores = measured(ranks, high_noise=values, low_noise=values)
    chosen = select_blocks(selecting(rule), PAIR, scores)
    assert chosen.document is not None
    for role in ROLES:
        (entry,) = chosen.document["experts"][role]
        assert (entry["blocks"], entry["tied"]) == ([0, 1], [1, 2, 3])
        assert chosen.document["analysis"]["ranks"][role] == {"propagated": ranks}
    assert chosen.warnings == [
        f"{role}: top-2 by propagated cuts through a tie: the analysis cannot tell the chosen 1 from 2, 3, not chosen"
        for role in ROLES
    ]
    four = select_blocks(selecting({**rule, "k": 4}), PAIR, scores)
    assert four.document is not None
    assert four.document["experts"]["low_noise"][0]["tied"] == []
    assert four.warnings == []


def test_equal_scores_across_a_cut_are_a_tie_without_ranks_too() -> None:
    """Nothing more is stored than before: the values are there."""
    rule = {"select": "top-k", "score": "propagated", "k": 2, "to": "keep", "expert": "high_noise"}
    found = select_blocks(selecting(rule), PAIR, ranking(high_noise=[5, 1, 1, 0, 1, 0], low_noise=[0.0] * DEPTH))
    assert ["the chosen 1 from 2, 4, not chosen" in line for line in found.warnings] == [True]
    assert found.document is not None
    assert "ranks" not in found.document["analysis"]
    assert "tied" not in found.document["experts"]["high_noise"][0]


def test_a_weak_ranking_is_said_where_it_decides() -> None:
    rule = {"select": "top-k", "score": "propagated", "k": 2, "to": "keep"}
    values, ranks = [6.0, 5, 4, 3, 2, 1], [[n, n] for n in range(1, 7)]
    found = select_blocks(selecting(rule), PAIR, measured(ranks, ("few calls",), high_noise=values, low_noise=values))
    assert found.warnings == [f"{role}: top-2 by propagated: the ranking is weak: few calls" for role in ROLES]


def test_the_random_control_can_be_recomputed_anywhere() -> None:
    routes = route_sites(selecting({"select": "random", "k": 3, "seed": 5, "to": "keep"}), PAIR)
    for role in ROLES:
        lines = [f"hfq.select/1\t5\t{role}\t{block}".encode() for block in range(DEPTH)]
        order = sorted(range(DEPTH), key=lambda block: hashlib.sha256(lines[block]).hexdigest())
        assert kept_blocks(routes[role]) == set(order[:3])
    assert kept_blocks(routes["high_noise"]) != kept_blocks(routes["low_noise"])


def test_a_vace_branch_is_neither_selected_nor_counted() -> None:
    sites = [site.name for site in tiny("vace", num_layers=8).sites()]
    assert any(site.startswith("vace_blocks.1.") for site in sites)
    routes = route_sites(load_recipe("boundary-hif8"), {"single": sites})["single"]
    assert kept_blocks(routes) == {0, 1, 5, 6, 7}
    assert {route.rule for site, route in routes.items() if site.startswith("vace_blocks.")} == {2}


# --- errors of a recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        ({"select": "blocks", "blocks": [0], "match": "*"}, RecipeError, "either patterns or a selection"),
        ({"select": "best", "k": 5}, RecipeError, "first+last, top-k"),
        ({"select": ["top-k"]}, RecipeError, "unknown selection"),
        ({"select": "blocks", "blocks": [3, 0, 3.0]}, RecipeError, "twice"),
        ({"select": "first+last", "first": 0, "last": 0}, RecipeError, "neither"),
        ({"select": "first+last", "first": 2}, SchemaViolationError, "'last' is a required property"),
        ({"select": "first+last", "first": -1, "last": 1}, SchemaViolationError, "-1"),
        ({"select": "top-k", "k": 5}, SchemaViolationError, "'score' is a required property"),
        ({"select": "top-k", "k": 0, "score": "propagated"}, SchemaViolationError, "route/0/k"),
        ({"select": "top-k", "k": 2.5, "score": "propagated"}, SchemaViolationError, "2.5"),
        ({"select": "random", "k": 5}, SchemaViolationError, "'seed' is a required property"),
        ({"select": "random", "k": 5, "seed": True}, SchemaViolationError, "route/0/seed"),
        ({"select": "random", "k": 5, "seed": 1, "first": 1}, SchemaViolationError, "'first' was unexpected"),
        ({"select": "blocks", "blocks": []}, SchemaViolationError, "route/0/blocks"),
        ({"select": "blocks", "blocks": ["0", 1]}, SchemaViolationError, "route/0/blocks"),
        ({"select": "blocks", "blocks": 3}, SchemaViolationError, "route/0/blocks"),
        ({}, SchemaViolationError, "'match' is a required property"),
    ],
)
def test_refused_rules(rule: dict[str, Any], error: type[HfqError], words: str) -> None:
    with pytest.raises(error) as caught:
        selecting({**rule, "to": "keep"})
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_two_spellings_of_a_selection_are_one_recipe() -> None:
    one = selecting({"select": "blocks", "blocks": [5, 0, 1], "to": "keep"}, max_kept_blocks=3)
    two = selecting({"select": "blocks", "blocks": [0, 1.0, 5], "to": "keep"}, max_kept_blocks=3)
    assert one.digest == two.digest
    assert one.digest != selecting({"select": "blocks", "blocks": [5, 0, 1], "to": "keep"}).digest


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"select": "blocks", "blocks": [0, 6, 9]}, "expected 0 to 5, found 6, 9"),
        ({"select": "first+last", "first": 3, "last": 3}, "expected fewer than 6, found 6"),
        ({"select": "random", "k": 7, "seed": 0}, "expected fewer than 6, found 7"),
        ({"select": "top-k", "k": 6, "score": "propagated"}, "expected fewer than 6, found 6"),
    ],
)
def test_more_blocks_than_the_model_has(rule: dict[str, Any], words: str) -> None:
    scores = ranking(high_noise=[1.0] * DEPTH, low_noise=[1.0] * DEPTH)
    with pytest.raises(RecipeError, match=words) as caught:
        select_blocks(selecting({**rule, "to": "keep"}), PAIR, scores)
    assert "route 1: high_noise" in str(caught.value)


def test_a_selection_without_effect_is_an_error() -> None:
    first = {"select": "first+last", "first": 1, "last": 2, "to": "keep"}
    with pytest.raises(UnmatchedRuleError, match="found blocks 4, 5"):
        route_sites(selecting(first, {"select": "blocks", "blocks": [4, 5], "to": "quantize"}), PAIR)
    with pytest.raises(RecipeError, match="no such expert"):
        route_sites(selecting({**first, "expert": "single"}), PAIR)


@pytest.mark.parametrize(
    "rules",
    [
        [{"select": "first+last", "first": 2, "last": 3, "to": "keep"}],
        [{"match": [f"blocks.{block}.ffn.0" for block in (0, 1, 3, 4, 5)], "to": "keep"}],
    ],
    ids=["whole blocks", "one linear each"],
)
def test_the_cap_names_the_blocks(rules: list[dict[str, Any]]) -> None:
    route_sites(selecting(*rules, max_kept_blocks=5), PAIR)
    with pytest.raises(RecipeError, match=r"high_noise: .*at most 4, found 5: 0, 1, 3, 4, 5"):
        route_sites(selecting(*rules, max_kept_blocks=4), PAIR)
