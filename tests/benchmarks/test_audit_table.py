"""The tables of docs/audit.md: they are those of the figures, and a count means what its column says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audit_table import MARGINS, replace_figures, summarise, tables

from hfq.registry.clips.ladder import RUNGS
from hfq.registry.clips.match import SCENE_DISTANCE, VARIANT_MARGIN

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
TAIL, BASE = ["tail", 0.001], ["base", 0.01]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks" / "results" / "audit.json").read_text(encoding="utf-8")))


def row(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "registered", "group": "tail", "scene": 0, "transform": "CRF 28", "exit_code": 5, "named": None,
        "candidates": [TAIL, BASE], "margin": 10.0, **changes,
    }  # fmt: skip


def test_the_page_shows_the_figures_of_the_file(figures: dict[str, Any]) -> None:
    assert replace_figures(PAGE, tables(figures)) == PAGE


def test_no_variant_was_named_that_did_not_make_the_clip(figures: dict[str, Any]) -> None:
    assert figures["wrong_names"] == 0
    assert figures["look_ups"]["unregistered"] >= 300
    assert figures["look_ups"]["unknown"] >= 1000


def test_the_page_explains_every_rung_and_the_thresholds() -> None:
    assert [rung for rung in RUNGS if f"| `{rung}` |" not in PAGE] == []
    text = " ".join(PAGE.split())
    assert f"below {SCENE_DISTANCE:g}".replace("0.", ".") in text
    assert f"*margin above {VARIANT_MARGIN:g}*" in text


def test_every_outcome_is_counted_where_it_belongs() -> None:
    rows = [
        row(transform="the file", exit_code=0, named="tail"),
        row(),
        row(candidates=[BASE, TAIL], exit_code=3),
        row(candidates=[BASE, TAIL], margin=1.2),
        row(candidates=[], margin=None),
        row(kind="unregistered", group="rtn", margin=4.0),
        row(kind="unregistered", group="rtn", margin=2.5, scene=1),
        row(kind="unknown", group="blobs", candidates=[], margin=None),
        row(kind="unknown", group="blobs", exit_code=0, named="tail"),
    ]
    found = summarise(rows)
    assert found["wrong_names"] == 1
    assert found["look_ups"] == {"registered": 5, "unregistered": 2, "unknown": 2}
    assert found["registered"]["CRF 28"] == {
        "look_ups": 4, "named_right": 0, "named_wrong": 0, "exit_3": 1, "nearest_right": 1, "decided_right": 1,
        "decided_wrong": 1,
    }  # fmt: skip
    assert found["registered"]["the file"]["named_right"] == 1
    assert found["unregistered_variants"]["rtn"]["decided"] == 1
    assert (found["unknown"]["blobs"]["named"], found["unknown"]["blobs"]["scene_known"]) == (1, 1)
    even, odd = (found["margins"][half]["2.0"] for half in ("even", "odd"))
    assert (even["look_ups"], even["right"], even["wrong"], even["unregistered"]) == (4, 1, 1, 1)
    assert (odd["look_ups"], odd["unregistered_look_ups"], odd["unregistered"]) == (0, 1, 1)
    assert tables(found).count("| --- |") == 5
    assert all(f"| {margin:g} |" in tables(found) for margin in MARGINS)
