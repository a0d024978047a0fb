"""`hfq verify --onnx` and its report, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import hfq
from hfq.cli import run
from hfq.convert.graphs.export import export_onnx
from hfq.convert.graphs.scope import Scope
from hfq.convert.recipe import Recipe

Capture = pytest.CaptureFixture[str]
SITE = "blocks.0.ffn.2"
CLIPPED = Recipe.from_document({
    "schema": "hfq.recipe/1", "name": "clipped", "weight": {"format": "hif4"}, "activation": {"format": "hif4"},
    "route": [{"match": [SITE], "to": "quantize"}, {"match": ["*"], "to": "keep"}],
    "stage": [{"kind": "clip", "rows": 32}],
})  # fmt: skip


@pytest.fixture(scope="module")
def folder(small_base: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta and a graph of one of its linears, per timestep bin where bins differ."""
    made = tmp_path_factory.mktemp("verified")
    with hfq.open_checkpoint(small_base) as base:
        delta = hfq.quantize(base, CLIPPED, small_calibration, out=made / "delta")
        export_onnx(delta, base, made / "g.onnx", scope=Scope("site", SITE), role="high_noise")
        delta.close()
    return made


def graphs_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("g*.onnx"))


def test_a_report_is_written_and_rendered(folder: Path, small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    out, page = tmp_path / "onnx.json", tmp_path / "report.html"
    # The name that was given to the export stands for all graphs it made.
    given = ["verify", str(folder / "delta"), "--base", str(small_base), "--onnx", str(folder / "g.onnx")]
    assert run([*given, "-o", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written: dict[str, Any] = json.loads(out.read_text())
    assert printed["ok"] is True
    assert printed["onnx"] == written
    assert [graph["file"] for graph in written["graphs"]] == [path.name for path in graphs_of(folder)]
    assert {graph["levels"]["in_situ"]["verdict"] for graph in written["graphs"]} == {"passed"}
    assert run(["report", str(folder / "delta"), "--onnx", str(out), "-o", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    for text in (*[path.name for path in graphs_of(folder)], "in situ", "HiFloat4QDQ", "subnormal", written["delta"]):
        assert text in html, text
    # Nothing is overwritten, and nothing was read before that was known.
    assert run([*given, "-o", str(out)]) == 2
    assert run(["verify", str(folder / "none"), "--base", "none", "--onnx", "none", "-o", str(out)]) == 2


def test_a_report_of_another_delta_is_refused(
    folder: Path, small_base: Path, small_delta: Path, tmp_path: Path
) -> None:
    out = tmp_path / "onnx.json"
    command = ["verify", str(folder / "delta"), "--base", str(small_base), "--onnx", str(graphs_of(folder)[0])]
    assert run([*command, "-o", str(out)]) == 0
    assert run(["report", str(small_delta), "--onnx", str(out), "-o", str(tmp_path / "page.html")]) == 3


def test_a_wrong_graph_is_named_and_reported(folder: Path, small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    source = graphs_of(folder)[0]
    model = onnx.load(source)
    codes = next(entry for entry in model.graph.initializer if entry.name == f"{SITE}.w_codes")
    codes.raw_data = bytes([codes.raw_data[0] ^ 1]) + codes.raw_data[1:]
    # A name that no page obeys: it comes from whoever made the file.
    wrong, out, page = tmp_path / "<b>w.onnx", tmp_path / "onnx.json", tmp_path / "report.html"
    onnx.save(model, wrong)
    command = ["verify", str(folder / "delta"), "--base", str(small_base), "--onnx", str(wrong), "-o", str(out)]
    assert run(command) == 3
    shown = capsys.readouterr()
    assert "[graph-payload]" in shown.err
    assert f"{SITE}/HiFloat4Dequantize: {SITE}.w_codes" in shown.err
    assert "NOT as the delta" in shown.out
    assert json.loads(out.read_text())["ok"] is False
    assert run(["report", str(folder / "delta"), "--onnx", str(out), "-o", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert "<b>failed</b>" in html
    assert "<b>w.onnx" not in html
    assert "&lt;b&gt;w.onnx" in html


def test_without_a_file_the_first_block_is_exported(
    folder: Path, small_base: Path, small_calibration: Path, capsys: Capture
) -> None:
    command = ["verify", str(folder / "delta"), "--base", str(small_base), "--expert", "high_noise", "--json"]
    assert run([*command, "--onnx"]) == 0
    graphs = json.loads(capsys.readouterr().out)["onnx"]["graphs"]
    assert {(graph["expert"], graph["scope"]) for graph in graphs} == {("high_noise", "block:0")}
    assert all(graph["levels"]["block"]["verdict"] in ("passed", "inconclusive") for graph in graphs)


@pytest.mark.parametrize(
    ("exit_code", "code", "more"),
    [
        (2, "missing-path", ["--onnx", "none.onnx"]), (2, "usage", ["-o", "x.json"]),
        (2, "usage", ["--calibration", "none"]), (1, "unreadable", ["--onnx", "/"]),
    ],
)  # fmt: skip
def test_other_failures_have_their_own_codes(
    exit_code: int, code: str, more: list[str], folder: Path, small_base: Path, capsys: Capture
) -> None:
    assert run(["verify", str(folder / "delta"), "--base", str(small_base), "--json", *more]) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
