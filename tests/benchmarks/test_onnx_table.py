"""The tables of docs/onnx.md, and the turns in which graphs are timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_graphs
import pytest
from onnx_table import BEGIN, COLUMNS, END, replace_figures, tables

from hfq.convert.recipe import preset_names

ROOT = Path(__file__).resolve().parents[2]
PASSED = {"file": "passed", "ops": "passed", "model": "not applicable"}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "preset": "p", "part": "site", "export_seconds": 1.26, "size_bytes": 60_400, "graphs": 1, "nodes": 8,
        "own_nodes": {"HiFloat4QDQ": 1, "HiFloat4Dequantize": 2}, "load_ms": 14.4, "plain_load_ms": 0.714,
        "run_ms": 1.6, "plain_run_ms": 0.4, "levels": [PASSED], **changes,
    }  # fmt: skip


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    plain = {"site": {"export_seconds": 5.9, "size_bytes": 1_267_000, "nodes": 2}}
    return {"parts": {"site": "site:s", "block": "block:4"}, "plain": plain, "rows": list(rows)}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_page_shows_the_figures_of_the_file() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "onnx.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert page == replace_figures(page, tables(found))
    assert {(entry["preset"], entry["part"]) for entry in found["rows"]} == {
        (preset, part) for preset in preset_names() for part in onnx_graphs.PARTS
    }
    assert all(
        verdict != "failed" for entry in found["rows"] for graph in entry["levels"] for verdict in graph.values()
    )


def test_a_row_shows_every_figure() -> None:
    head, _, plain, shown = cells(tables(document(row())))
    assert head == list(COLUMNS)
    assert plain[:4] == ["*plain float32*", "5.9", "1,267", "2"]
    expected = ["p", "1.3", "60", "8", "3", "14", "0.71", "1.60", "0.40", "4.00", "2 of 2 passed"]
    assert shown == expected
    assert len({len(line) for line in cells(tables(document(row())))}) == 1


def test_levels_that_did_not_pass_are_named_over_all_graphs() -> None:
    graphs = [
        {**PASSED, "model": "inconclusive"}, {**PASSED, "model": "inconclusive"}, {**PASSED, "ops": "failed"},
    ]  # fmt: skip
    shown = cells(tables(document(row(graphs=3, levels=graphs))))[3]
    assert shown[2] == "60 (3 graphs)"
    assert shown[-1] == "5 of 8 passed; failed: ops; inconclusive: 2 model"


def test_the_page_keeps_what_is_around_the_figures() -> None:
    page = f"# A\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_figures(page, "new") == f"# A\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="figures: end"):
        replace_figures(f"{END} {BEGIN}", "new")


def test_works_take_turns_and_the_shortest_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0
    monkeypatch.setattr(onnx_graphs.time, "perf_counter", lambda: now)

    def work(name: str, *seconds: float) -> Any:
        left = list(seconds)

        def run() -> None:
            nonlocal now
            order.append(name)
            now += left.pop(0)

        return run

    assert onnx_graphs.in_turns([work("a", 5, 2, 5), work("b", 1, 3, 1)], 60, 3) == [2000, 1000]
    assert order == ["a", "b"] * 3
    assert onnx_graphs.in_turns([work("a", 5, 2, 1)], 6, 3) == [2000]  # the third turn would begin after 6 seconds


def test_an_unknown_preset_is_named() -> None:
    assert onnx_graphs.chosen(None, ["a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit, match="unknown: c; there are a, b"):
        onnx_graphs.chosen("a,c", ["a", "b"])
