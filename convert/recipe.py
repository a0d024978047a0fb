"""Recipes: a TOML or JSON document that says how a model is quantized. Presets are recipes shipped with the package.

A recipe is normalised on reading: defaults are written out, so that two spellings of the same recipe are the same
document and give the same delta.
"""

from __future__ import annotations

import copy
import importlib.resources
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.documents import parse_json, read_bytes, validate
from hfq.schema.errors import MalformedFileError, MissingPathError, RecipeError, SchemaViolationError

from .route_rules import check_route_fields, check_routes, with_route_order
from .stage_rules import NEEDS_CALIBRATION, NEEDS_INPUTS, check_stage_fields, check_stages, with_stage_defaults

__all__ = ["Recipe", "load_recipe", "preset_names"]

MAX_RECIPE_BYTES: Final = 1024 * 1024

MAX_PATTERNS: Final = 2000
"""Patterns of one recipe, all rules and stages together: each is compared with every linear."""

_FORMAT_DEFAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "weight": {"hif4": {"profile": "ref", "scale_search": False}, "hif8": {"scale": "row", "saturate": False}},
    "activation": {"hif4": {"profile": "ref"}, "hif8": {"scale": "none", "saturate": False}, "bf16": {}},
}


@dataclass(frozen=True)
class Recipe:
    """A validated, normalised recipe.

    Attributes:
        document: the recipe as it is stored in a delta; never changed.
    """

    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The preset's or author's name."""
        return str(self.document["name"])

    @property
    def weight(self) -> Mapping[str, Any]:
        """Weight format and its options."""
        format_: Mapping[str, Any] = self.document["weight"]
        return format_

    @property
    def activation(self) -> Mapping[str, Any]:
        """Activation format and its options."""
        format_: Mapping[str, Any] = self.document["activation"]
        return format_

    @property
    def rules(self) -> list[Mapping[str, Any]]:
        """Routing rules in order."""
        return list(self.document["route"])

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """Stages in order."""
        return list(self.document["stage"])

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage reads activation statistics."""
        return any(stage["kind"] in NEEDS_CALIBRATION for stage in self.stages)

    @property
    def needs_inputs(self) -> bool:
        """Whether any stage reads kept input rows."""
        return any(stage["kind"] in NEEDS_INPUTS for stage in self.stages)

    @property
    def needs_analysis(self) -> bool:
        """Whether any rule selects blocks by a score."""
        return any(rule.get("select") == "top-k" for rule in self.rules)

    @property
    def max_kept_blocks(self) -> int | None:
        """The most blocks of one expert that may hold a kept linear; None without a limit."""
        limit: int | None = self.document.get("max_kept_blocks")
        return limit

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the normalised document."""
        return sha256_hex(canonical_json(dict(self.document)))

    @classmethod
    def from_document(cls, document: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Normalise and check a parsed document.

        Raises:
            SchemaViolationError, UnknownSchemaVersionError: against `hfq.recipe/1`.
            RecipeError: fields that contradict each other.
        """
        normal = _normalise(copy.deepcopy(dict(document)), where)
        for index, rule in enumerate(normal.get("route", [])):
            check_route_fields(rule, f"{where}: route {index + 1}")
        for index, stage in enumerate(normal["stage"]):
            check_stage_fields(stage, f"{where}: stage {index + 1}")
        validate(normal, "recipe", where)
        _check(normal, where)
        check_routes(normal, where)
        check_stages(normal, where)
        return cls(normal)


def _normalise(document: dict[str, Any], where: str) -> dict[str, Any]:
    document.setdefault("description", "")
    document.setdefault("stage", [])
    for operand, formats in _FORMAT_DEFAULTS.items():
        chosen = document.get(operand)
        if isinstance(chosen, dict) and chosen.get("format") in formats:
            document[operand] = {**formats[str(chosen["format"])], **chosen}
    for part in ("route", "stage"):
        entries = document.get(part, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise SchemaViolationError(f"`{part}` is not a list of tables", where=where, todo=f"write [[{part}]]")
        for entry in entries:
            if isinstance(entry.get("match"), str):
                entry["match"] = [entry["match"]]
    if "route" in document:
        document["route"] = [with_route_order(rule) for rule in document["route"]]
    document["stage"] = [with_stage_defaults(stage) for stage in document["stage"]]
    return _one_spelling(document)


def _one_spelling(document: dict[str, Any]) -> dict[str, Any]:
    # `percentile = 99` and `percentile = 99.0` are one recipe; RFC 8785 writes both as 99.
    for stage in document["stage"]:
        for key, value in stage.items():
            where = f"stage {stage.get('kind')}: {key}"
            stage[key] = [_number(item, where) for item in value] if isinstance(value, list) else _number(value, where)
    return document


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecipeError("a number that is not finite", where=where)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _check(document: Mapping[str, Any], where: str) -> None:
    patterns = sum(len(entry.get("match", [])) for part in ("route", "stage") for entry in document[part])
    if patterns > MAX_PATTERNS:
        raise RecipeError("too many patterns", where=where, expected=f"at most {MAX_PATTERNS}", found=patterns)


def preset_names() -> list[str]:
    """Names of the recipes shipped with the package, sorted."""
    folder = importlib.resources.files("hfq.convert") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _parse(data: bytes, where: str, *, is_json: bool) -> Mapping[str, Any]:
    if is_json:
        parsed = parse_json(data, where)
        if not isinstance(parsed, dict):
            raise SchemaViolationError("not a JSON object", where=where)
        return parsed
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=where, found=f"byte {error.start}") from None
    except ValueError as error:  # TOMLDecodeError, and what int() says to a number of 5,000 digits
        raise MalformedFileError("not TOML", where=where, found=error) from None
    except RecursionError:
        raise MalformedFileError("nested too deeply", where=where) from None


def load_recipe(source: str | os.PathLike[str] | Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe from a preset's name, a TOML or JSON file, a document or a `Recipe`.

    Raises:
        MissingPathError: neither a preset nor a file; the message lists the presets.
        MalformedFileError, SchemaViolationError, RecipeError: a file that is no recipe.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return Recipe.from_document(source)
    text = os.fspath(source)
    if text in preset_names():
        entry = importlib.resources.files("hfq.convert") / "presets" / f"{text}.toml"
        return Recipe.from_document(_parse(entry.read_bytes(), f"preset {text}", is_json=False), f"preset {text}")
    path = Path(text)
    if not path.exists():
        raise MissingPathError(
            "no such recipe",
            where=text,
            expected=f"a file or one of {', '.join(preset_names())}",
            todo="`hfq recipes` lists the presets",
        )
    data = read_bytes(path, MAX_RECIPE_BYTES)
    return Recipe.from_document(_parse(data, text, is_json=path.suffix == ".json"), text)
