"""When a process pays for compiled kernels, and what it does where they cannot be had."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from patience import HANG_S

import hfq.convert
import hfq.formats
from hfq.compile_kernels import compile_kernels
from hfq.formats import _compiled, _kernels

SMALL = """
import sys
import torch
import hfq.formats
from hfq.formats import _compiled, hif4, hif8
hif4.quantize(torch.ones(100, 64)).dequantize(), hif8.qdq(torch.ones(100, 64))
assert "numba" not in sys.modules, "numba was imported for a small tensor"
x = torch.ones(1 << 15, 64)
assert hif4.quantize(x).codes.unique().numel() == 1
assert not _compiled._LOADED, "kernels ran without a compiler"
"""

FORK = """
import os, signal, torch
from hfq.formats import _compiled, hif8
x = torch.randn(1 << 10, 1 << 11).bfloat16()
torch.set_num_threads(2)
codes = hif8.quantize(x).codes.numpy()
assert _compiled._LOADED
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if (hif8.quantize(x).codes.numpy() == codes).all() else 1)
assert os.waitpid(child, 0)[1] == 0, "kernels failed in a forked child"
"""


@pytest.fixture(scope="module", autouse=True)
def twin() -> None:
    """Nothing here depends on it."""


@pytest.mark.parametrize(("script", "setting"), [(SMALL, {"NUMBA_DISABLE_JIT": "1"}), (FORK, {})])
def test_processes(script: str, setting: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | setting, capture_output=True, text=True, timeout=HANG_S
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), EOFError("a damaged file")])
def test_nowhere_to_keep_the_code(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is compiled all the same."""
    njit = numba.njit

    def without_cache(*arguments: Any, **options: Any) -> Any:
        if options.pop("cache", False):
            raise error
        return njit(*arguments, **options)

    monkeypatch.setattr(_kernels.numba, "njit", without_cache)

    @_kernels.kernel(numba.types.int64(numba.types.int64))
    def double(x: int) -> int:
        return 2 * x

    assert double(21) == 42


def test_tensors_that_are_not_what_they_seem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "LOAD_FROM", 1)
    monkeypatch.setattr(_compiled, "RUN_FROM", 1)
    x = torch.ones(4, 64)

    class Own(torch.Tensor):
        pass

    assert _compiled.runs_compiled(x, x)
    assert _compiled.runs_compiled(torch.nn.Parameter(x), x)
    assert not _compiled.runs_compiled(x.as_subclass(Own), x)
    assert not _compiled.runs_compiled(x.to("meta"), x)
    with torch._subclasses.FakeTensorMode():
        assert not _compiled.runs_compiled(x, torch.empty(4))


def test_a_wait_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    said, words = threading.Event(), list[str]()

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            words.append(record.getMessage())
            said.set()

    hears = Hears()
    log = logging.getLogger("hfq.formats")
    log.addHandler(hears)
    monkeypatch.setattr(_compiled, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(_compiled, "_LOADED", set())
    monkeypatch.setattr(_compiled.importlib, "import_module", lambda _: said.wait(HANG_S))
    monkeypatch.setattr(
        _compiled, "_sayings", itertools.count()
    )  # an earlier test of this process may have waited for a real compilation
    try:
        _compiled.kernels("hif4_kernels")
        assert said.is_set()
        _compiled._say_compiling()
    finally:
        log.removeHandler(hears)
    assert len(words) == 1  # once in a process
    assert "compiling the kernels" in words[0]


SMALL_CALLS = """
import torch
from hfq.formats import _compiled, hif4
x = torch.randn(1, 576, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
found = [hif4.qdq(x) for _ in range(40)]
assert _compiled._LOADED == {"hif4_kernels"}, "small calls were not added up"
assert all(torch.equal(found[0], one) for one in found), "the twins differ"
from hfq.formats import hif4_kernels
kernels = [part for part in vars(hif4_kernels).values() if getattr(part, "signatures", ())]
hif4.qdq(torch.ones(3, 64)), hif4.quantize(torch.ones(3, 64)).dequantize()
print(len(kernels), sum(sum(part.stats.cache_hits.values()) for part in kernels),
      sum(sum(part.stats.cache_misses.values()) for part in kernels))
"""


def test_small_tensors_add_up_and_a_second_process_compiles_nothing() -> None:
    def process() -> list[int]:
        run = subprocess.run([sys.executable, "-c", SMALL_CALLS], capture_output=True, text=True, timeout=HANG_S)
        assert run.returncode == 0, run.stderr
        return [int(word) for word in run.stdout.split()]

    process()  # compiles, where no earlier one has
    kernels, hits, misses = process()
    assert hits == kernels > 0
    assert misses == 0


def test_what_counts_as_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "_LOADED", set())
    monkeypatch.setattr(_compiled, "_expected", False)
    monkeypatch.setattr(_compiled, "_without_kernels", 0)
    monkeypatch.setattr(_compiled, "LOAD_FROM", 1000)
    x = torch.ones(4, 64)
    assert [_compiled.runs_compiled(x, x) for _ in range(5)] == [False, False, False, True, True]
    monkeypatch.setattr(_compiled, "_without_kernels", 0)
    assert not _compiled.runs_compiled(x.to("meta"), x)
    assert _compiled._without_kernels == 0  # what no kernel takes does not count
    monkeypatch.setattr(_compiled, "_LOADED", {"hif4_kernels"})
    assert _compiled.runs_compiled(x[:1, :1], x)


def test_what_is_compiled_beforehand_is_everything() -> None:
    compile_kernels()
    rooms = [Path(room.__path__[0]) for room in (hfq.formats, hfq.convert)]
    sources = [(room.name, path) for room in rooms for path in room.glob("*.py")]
    found = {f"hfq.{room}.{path.stem}" for room, path in sources if "\n@kernel(" in path.read_text()}
    assert len(found) >= 5
    assert found <= set(sys.modules)
