"""What a recipe's stages may say: orders that mean nothing, formats that cannot, sizes that do not fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hfq.convert.recipe import Recipe, load_recipe, preset_names
from hfq.convert.stage_rules import STAGE_KINDS, check_order, check_width, with_stage_defaults
from hfq.schema.errors import HfqError, RecipeError, SchemaViolationError, StageFormatError, StageOrderError

HIF4 = {"format": "hif4"}
HIF8 = {"format": "hif8"}
MASK = {"kind": "smooth", "statistic": "max"}


def recipe(*stages: dict[str, Any], weight: Any = HIF4, activation: Any = HIF4) -> Recipe:
    return Recipe.from_document(
        {
            "schema": "hfq.recipe/1",
            "name": "mine",
            "weight": dict(weight),
            "activation": dict(activation),
            "route": [{"match": ["blocks.*"], "to": "quantize"}, {"match": ["*"], "to": "keep"}],
            "stage": list(stages),
        }
    )


def stage(kind: str, **options: Any) -> dict[str, Any]:
    return {**(MASK if kind == "smooth" else {"kind": kind}), **options}


# The meaningful orders, written out by hand: a stage may come after those listed with it.
MAY_FOLLOW = {
    "smooth": {"outlier_columns"},
    "outlier_columns": {"smooth"},
    "rotate": {"smooth", "outlier_columns", "lowrank"},
    "lowrank": {"smooth", "outlier_columns", "rotate"},
    "gptq": {"smooth", "outlier_columns", "rotate", "lowrank"},
    "clip": {"smooth", "outlier_columns", "rotate", "lowrank", "gptq"},
}


@pytest.mark.parametrize(("earlier", "later"), list(itertools.product(MAY_FOLLOW, repeat=2)))
def test_every_pair_of_stages_is_accepted_or_refused_with_its_reason(earlier: str, later: str) -> None:
    assert set(MAY_FOLLOW) == set(STAGE_KINDS)
    if earlier in MAY_FOLLOW[later]:
        assert [found["kind"] for found in recipe(stage(earlier), stage(later)).stages] == [earlier, later]
        return
    with pytest.raises(StageOrderError) as caught:
        recipe(stage(earlier), stage(later))
    if earlier != later:
        assert any(words in str(caught.value) for words in (f"write {later} before", "write gptq after", "clip last"))
        assert caught.value.exit_code == 2


def test_a_mask_after_a_rotation_says_why() -> None:
    with pytest.raises(StageOrderError, match="a rotation mixes the channels"):
        recipe(stage("rotate"), MASK)


def test_stages_of_different_linears_have_no_order() -> None:
    found = recipe(stage("rotate", match=["blocks.*.ffn.*"]), stage("smooth", match=["blocks.*.self_attn.*"]))
    assert len(found.stages) == 2
    with pytest.raises(StageOrderError, match=r"blocks\.0\.ffn\.0"):
        check_order(["rotate", "smooth"], "high_noise blocks.0.ffn.0")


@pytest.mark.parametrize(
    ("stages", "weight", "activation", "words"),
    [
        ([stage("gptq")], HIF8, HIF8, "HiFloat4 weights"),
        ([stage("clip")], HIF4, HIF8, "HiFloat4 activations"),
        ([stage("clip")], HIF4, {"format": "bf16"}, "HiFloat4 activations"),
    ],
)
def test_a_stage_that_the_format_cannot_do(stages: Any, weight: Any, activation: Any, words: str) -> None:
    with pytest.raises(StageFormatError, match=words) as caught:
        recipe(*stages, weight=weight, activation=activation)
    assert caught.value.exit_code == 2
    recipe(*stages)


@pytest.mark.parametrize(
    "bad",
    [
        stage("rotate", block=96),
        stage("rotate", block="64"),
        stage("outlier_columns", k=65),
        stage("outlier_columns", k=0),
        stage("outlier_columns", k="64"),
        stage("lowrank", rank=0),
        stage("lowrank", rank=2.5),
        stage("lowrank", rank="32"),
        stage("gptq", damp=0),
        stage("gptq", damp=float("nan")),
        stage("gptq", inputs="both"),
        stage("clip", candidates=[]),
        stage("clip", candidates=[1.0, "x"]),
        stage("clip", candidates=[1.0, float("inf")]),
        stage("clip", candidates=[0.1]),
        stage("clip", scope="layer"),
        stage("spin"),
        stage("lowrank", ranks=4),
    ],
)  # fmt: skip
def test_a_value_that_means_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises((RecipeError, SchemaViolationError)) as caught:
        recipe(bad)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_global_clip_of_one_expert_means_nothing() -> None:
    with pytest.raises(RecipeError, match="one choice for both experts"):
        recipe(stage("clip", scope="global", expert="high_noise"))
    recipe(stage("clip", scope="expert", expert="high_noise"))


def test_two_spellings_are_one_recipe() -> None:
    left = recipe(stage("clip", candidates=[1, 0.9, 1.1, 1.0]), stage("lowrank", rank=8, match="blocks.0.*"))
    right = recipe(stage("clip", candidates=[1.1, 1.0, 0.9]), stage("lowrank", rank=8.0, match=["blocks.0.*"]))
    assert left.digest == right.digest


def test_defaults_are_written_out() -> None:
    assert with_stage_defaults({"kind": "lowrank"}) == {"kind": "lowrank", "rank": 32.0}
    document = recipe(stage("gptq")).stages[0]
    assert set(document) >= {"damp", "tokens", "inputs", "group_scale"}


@pytest.mark.parametrize(
    ("stages", "words", "fitting"),
    [
        ([{"kind": "rotate", "block": 256.0}], "does not divide", 512),
        ([{"kind": "outlier_columns", "k": 128.0}], "every column", 192),
        ([{"kind": "outlier_columns", "k": 64.0}, {"kind": "rotate", "block": 128.0}], "does not divide", 192),
        ([{"kind": "lowrank", "rank": 64.0}], "not low", 128),
    ],
)
def test_a_stage_that_does_not_fit_the_linear(stages: Any, words: str, fitting: int) -> None:
    with pytest.raises(RecipeError, match=words):
        check_width(stages, 128, 64, "here")
    check_width(stages, fitting, fitting, "here")


def test_what_a_recipe_needs() -> None:
    needs = {kind: (recipe(stage(kind)).needs_calibration, recipe(stage(kind)).needs_inputs) for kind in STAGE_KINDS}
    assert needs == {
        "smooth": (True, False), "outlier_columns": (True, False), "rotate": (False, False),
        "lowrank": (False, False), "gptq": (True, True), "clip": (True, True),
    }  # fmt: skip


def test_every_preset_reads() -> None:
    names = preset_names()
    assert {"svdquant-gptq-hif4", "tail-aware-rot-hif4", "smooth-mixq-hif4"} <= set(names)
    for name in names:
        try:
            assert load_recipe(name).name == name
        except HfqError as error:  # names the preset
            raise AssertionError(name) from error


def test_few_rows_is_absent_unless_it_is_written() -> None:
    """A default that was written out would be part of every recipe's digest, and change every id."""
    assert "few_rows" not in recipe(stage("gptq")).stages[0]
    assert recipe(stage("gptq", few_rows="round")).stages[0]["few_rows"] == "round"
    with pytest.raises(HfqError, match="few_rows"):
        recipe(stage("gptq", few_rows="maybe"))
