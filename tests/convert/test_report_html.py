"""The report page: complete, self-contained, the same for the same delta, and safe to open."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hfq
from hfq.cli import run
from hfq.convert.delta import REPORT
from hfq.schema.errors import DigestMismatchError


@pytest.fixture(scope="module")
def folder(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "delta"
    with hfq.open_checkpoint(tiny_weights) as base:
        hfq.quantize(base, "rtn-hif4", out=out).close()
    return out


def test_the_page_shows_both_experts_and_loads_nothing(folder: Path, tmp_path: Path) -> None:
    assert run(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    with hfq.load_delta(folder) as delta:
        assert delta.id in page
        for role in delta.roles:
            assert delta.root(role) in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    # Namespaces are names, not addresses that a browser would fetch.
    fetched = re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)
    assert fetched == []


def test_the_same_delta_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        assert run(["report", str(folder), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


_CALLER = """
import contextlib, io, os, sys, warnings
import matplotlib, torch
matplotlib.use("pdf")
matplotlib.rcParams["font.size"] = 17.0
torch.set_num_threads(1)

def state():
    return (matplotlib.get_backend(), dict(matplotlib.rcParams), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.get_default_dtype(), list(warnings.filters), dict(os.environ), os.getcwd())

# What the packages that are drawn with do to themselves when they are imported is theirs.
import jinja2, matplotlib.figure, matplotlib.backends.backend_svg
from hfq.convert.report_html import render_report
import hfq
before = state()
with hfq.load_delta(sys.argv[1]) as delta:
    page = render_report(delta)
assert page.count("<svg") == 2
assert [a == b for a, b in zip(before, state())] == [True] * len(before), (before, state())
assert "matplotlib.pyplot" not in sys.modules
print("as before")
"""


def test_rendering_leaves_the_caller_as_it_was(folder: Path) -> None:
    """Backend and settings of matplotlib, threads, gradients, warnings and environment; pyplot is not even loaded."""
    done = subprocess.run([sys.executable, "-c", _CALLER, str(folder)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("as before\n", 0), done.stderr


def test_a_report_of_another_delta_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "delta"
    shutil.copytree(folder, copy)
    report = json.loads((copy / REPORT).read_text())
    report["delta"] = "0" * 64
    (copy / REPORT).write_text(json.dumps(report))
    from hfq.convert.report_html import render_report

    with hfq.load_delta(copy) as delta, pytest.raises(DigestMismatchError):
        render_report(delta)
    assert run(["report", str(copy), "-o", str(tmp_path / "r.html")]) == 3
    assert not (tmp_path / "r.html").exists()


def test_an_existing_page_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("mine")
    assert run(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 2
    assert (tmp_path / "r.html").read_text() == "mine"


def test_kept_blocks_are_gaps_at_their_own_numbers() -> None:
    from hfq.convert.report_html import plotted_blocks

    experts = {
        "high_noise": {"blocks": {"blocks.2": {}, "blocks.4": {}, "outside": {}}},
        "low_noise": {"blocks": {"blocks.1": {}, "vace_blocks.1": {}}},
    }
    assert plotted_blocks(experts) == [*(f"blocks.{i}" for i in range(5)), "vace_blocks.0", "vace_blocks.1"]
