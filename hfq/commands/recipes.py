"""`hfq recipes`: the presets."""

from __future__ import annotations

import json

import click

from hfq.console import emit, json_option
from hfq.convert.recipe import load_recipe, preset_names

__all__ = ["recipes_command"]


@click.command("recipes")
@click.argument("name", required=False)
@json_option
def recipes_command(name: str | None, as_json: bool) -> None:
    """List the presets, or show one as a full recipe.

    A recipe file may be given wherever a preset's name may; `hfq recipes NAME --json > my.json` is a start for one.
    """
    if name is not None:
        recipe = load_recipe(name)
        emit(dict(recipe.document), json.dumps(dict(recipe.document), indent=2, ensure_ascii=False), as_json)
        return
    found = [load_recipe(preset) for preset in preset_names()]
    rows = [
        {
            "name": recipe.name,
            "description": recipe.document["description"],
            "needs_calibration": recipe.needs_calibration,
            "digest": recipe.digest,
        }
        for recipe in found
    ]
    width = max(len(recipe.name) for recipe in found)
    text = "\n".join(f"{recipe.name:<{width}}  {recipe.document['description']}" for recipe in found)
    emit({"recipes": rows}, text, as_json)
