"""Recipes: what may be written, what is filled in, and what is refused with which error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfq.convert.recipe import Recipe, load_recipe, preset_names
from hfq.schema.errors import (
    DuplicateKeyError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    RecipeError,
    SchemaViolationError,
    TooLargeError,
    UnknownSchemaVersionError,
    UnreadableFileError,
)

SMOOTH: dict[str, Any] = {"kind": "smooth", "statistic": "max"}


def recipe(**changes: Any) -> dict[str, Any]:
    """A short recipe as a person writes it; a change to None removes the field."""
    document: dict[str, Any] = {
        "schema": "hfq.recipe/1",
        "name": "mine",
        "weight": {"format": "hif4"},
        "activation": {"format": "hif4"},
        "route": [{"match": "*", "to": "quantize"}],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def test_the_presets_load_and_are_in_normal_form() -> None:
    assert {"tail-aware-hif4", "rtn-hif4", "rtn-hif8"} <= set(preset_names())
    for name in preset_names():
        loaded = load_recipe(name)
        assert loaded.name == name
        assert Recipe.from_document(loaded.document).document == loaded.document


def test_which_presets_need_a_calibration() -> None:
    assert load_recipe("tail-aware-hif4").needs_calibration
    assert not load_recipe("rtn-hif4").needs_calibration
    assert not load_recipe("rtn-hif8").needs_calibration


def test_two_spellings_of_one_recipe_are_one_recipe(tmp_path: Path) -> None:
    short = recipe(stage=[{**SMOOTH, "statistic": "percentile", "percentile": 99}])
    full = recipe(
        description="",
        weight={"format": "hif4", "profile": "ref", "scale_search": False},
        activation={"format": "hif4", "profile": "ref"},
        route=[{"match": ["*"], "to": "quantize"}],
        stage=[
            {
                "kind": "smooth", "statistic": "percentile", "percentile": 99.0, "alpha": 0.5, "activation_floor": 1e-3,
                "weight_floor": 1e-8, "mask_min": 1e-4, "mask_max": 10000,
            }
        ],
    )  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(full))
    (tmp_path / "b.toml").write_text(
        'schema = "hfq.recipe/1"\nname = "mine"\n[weight]\nformat = "hif4"\n[activation]\nformat = "hif4"\n'
        '[[route]]\nmatch = "*"\nto = "quantize"\n'
        '[[stage]]\nkind = "smooth"\nstatistic = "percentile"\npercentile = 99\n'
    )
    digests = {load_recipe(source).digest for source in (short, full, tmp_path / "a.json", str(tmp_path / "b.toml"))}
    assert len(digests) == 1


def test_reading_a_recipe_leaves_the_given_document_alone() -> None:
    given = recipe(stage=[dict(SMOOTH)])
    before = json.dumps(given)
    load_recipe(given)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"schema": "hfq.recipe/2"}, UnknownSchemaVersionError, "install hfq 2.x"),
        ({"schema": "hfq.report/1"}, SchemaViolationError, "another kind of document"),
        ({"schema": None}, SchemaViolationError, "no schema name"),
        ({"name": None}, SchemaViolationError, "'name' is a required property"),
        ({"name": "Mine!"}, SchemaViolationError, "name"),
        ({"name": "mine\n"}, SchemaViolationError, "name"),
        ({"extra": 1}, SchemaViolationError, "extra"),
        ({"weight": {"format": "int4"}}, SchemaViolationError, "weight"),
        ({"weight": {"format": "hif4", "profile": "mine"}}, SchemaViolationError, "profile"),
        ({"weight": {"format": "hif8", "profile": "ref"}}, SchemaViolationError, "weight"),
        ({"route": []}, SchemaViolationError, "route"),
        ({"route": {"match": "*"}}, SchemaViolationError, "[[route]]"),
        ({"route": ["*"]}, SchemaViolationError, "[[route]]"),
        ({"route": [{"match": "*", "to": "drop"}]}, SchemaViolationError, "drop"),
        ({"route": [{"match": "", "to": "keep"}]}, SchemaViolationError, "match"),
        ({"route": [{"match": "blocks/*", "to": "keep"}]}, SchemaViolationError, "match"),
        ({"route": [{"match": "*", "to": "keep", "expert": "middle"}]}, SchemaViolationError, "middle"),
        ({"stage": [{"kind": "spin"}]}, RecipeError, "unknown stage"),
        ({"stage": [{"statistic": "max"}]}, RecipeError, "unknown stage"),
        ({"stage": [{**SMOOTH, "percentile": 99}]}, RecipeError, "percentile goes with"),
        ({"stage": [{**SMOOTH, "statistic": "percentile"}]}, RecipeError, "percentile goes with"),
        ({"stage": [{**SMOOTH, "statistic": "median"}]}, SchemaViolationError, "median"),
        ({"stage": [{**SMOOTH, "alpha": 1.5}]}, SchemaViolationError, "1.5"),
        ({"stage": [{**SMOOTH, "alpha": float("nan")}]}, RecipeError, "not finite"),
        ({"stage": [{**SMOOTH, "alpha": 10**400}]}, RecipeError, "not finite"),
        ({"stage": [{**SMOOTH, "alpha": True}]}, SchemaViolationError, "alpha"),
        ({"stage": [{**SMOOTH, "mask_min": 2.0, "mask_max": 1.0}]}, RecipeError, "mask_min"),
        ({"stage": [{**SMOOTH, "mask_min": 1e-300}]}, RecipeError, "mask_min"),
        ({"stage": [{**SMOOTH, "mask_max": 1e300}]}, RecipeError, "mask_min"),
        ({"stage": [SMOOTH, SMOOTH]}, RecipeError, "twice"),
        ({"stage": [{**SMOOTH, "statistic": "percentile", "percentile": 100.1}]}, SchemaViolationError, "100.1"),
        (
            {"route": [{"match": ["*"] * 500, "to": "keep"}] * 5},
            RecipeError,
            "too many patterns",
        ),
        ({"route": [{"match": ["*"] * 501, "to": "keep"}]}, SchemaViolationError, "route/0/match"),
    ],
)
def test_refused_recipes(changes: dict[str, Any], error: type[HfqError], words: str) -> None:
    with pytest.raises(error) as caught:
        load_recipe(recipe(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.toml", b"[[route", MalformedFileError),
        ("a.toml", b"\xff\xfe", MalformedFileError),
        ("a.toml", b"a = " + b"[" * 5000, MalformedFileError),
        ("a.toml", b"a = " + b"9" * 5000, MalformedFileError),
        ("a.toml", b"#" * (2 << 20), TooLargeError),
        ("a.json", b'{"a": 1, "a": 2}', DuplicateKeyError),
        ("a.json", b"[1]", SchemaViolationError),
        ("a.json", b"{", MalformedFileError),
        ("a.toml", b"", SchemaViolationError),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, name: str, content: bytes, error: type[HfqError]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        load_recipe(tmp_path / name)


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(MissingPathError, match="rtn-hif4"):
        load_recipe("tail-aware")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError):
        load_recipe(tmp_path)
