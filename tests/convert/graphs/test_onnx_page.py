"""The programs in docs/onnx.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hfq
from hfq.convert.graphs.export import export_onnx
from hfq.convert.graphs.scope import Scope

PAGE = Path(__file__).resolve().parents[3] / "docs" / "onnx.md"


def test_the_program_runs_a_block(
    small_base: Path, small_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 2
    monkeypatch.chdir(tmp_path)
    with hfq.open_checkpoint(small_base) as base, hfq.load_delta(small_delta) as delta:
        dim = base.experts["high_noise"].architecture.dim
        for name in ("block0", "block3"):
            export_onnx(delta, base, f"{name}.onnx", scope=Scope("block", "1"), role="high_noise")
        identity = delta.id
    names: dict[str, object] = {}
    for program in programs:
        exec(program, names)
    assert capsys.readouterr().out == f"(1, 324, {dim}) {identity}\n"
