"""When compiled kernels run, and on how many threads.

numba is imported by the first large tensor, or when small ones have added up to one, never by `import hfq`. What a
process compiles is kept on disk for the next one, which loads it. A kernel releases the GIL and writes a range of its
outputs that no other call writes, so ranges run on any thread in any order, with the same bytes. The caller works
itself; helpers join it as far as they are idle. So any number of threads may call kernels at once, and none waits for
a helper that another keeps busy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["expect", "kernels", "run_ranges", "runs_compiled"]

# Elements: of one tensor or of all so far. Below the first the eager twin is done before numba is imported; once it is,
# kernels are faster for a tensor of any size, because the twin takes some forty steps.
LOAD_FROM: Final = 1 << 20
RUN_FROM: Final = 1
RANGE: Final = 1 << 17  # elements of a range: some tenths of a millisecond, so that handing it over costs little

_PATIENCE_S: Final = 2.0
_LOG: Final = logging.getLogger("hfq.formats")


def runs_compiled(x: Tensor, out: Tensor) -> bool:
    """Whether kernels take `x`: plain CPU tensors, enough of them to load kernels, not being traced, numba works."""
    if x.device.type != "cpu":
        return False
    # Subclasses stand for something else: fake tensors have no data, and `out` shows that a fake mode is on.
    if type(x) not in (Tensor, torch.nn.Parameter) or type(out) is not Tensor or x.is_neg():
        return False
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return not traced and _is_enough(x.numel()) and _usable()


def _is_enough(elements: int) -> bool:
    """Whether a tensor of so many elements is one for kernels; counts it when it is not."""
    global _without_kernels
    if _LOADED or _expected:
        return elements >= RUN_FROM
    _without_kernels += elements
    return _without_kernels >= LOAD_FROM


_LOADED: Final[set[str]] = set()  # names of kernel modules
_expected = False
_sayings = itertools.count()  # `next` is atomic
_without_kernels = 0  # elements so far; a count that threads lose some of loads a little later


def expect(elements: int) -> None:
    """Say that so many elements will come, in many calls: enough of them are worth loading kernels for the first."""
    global _expected
    _expected = _expected or elements >= LOAD_FROM


@functools.cache
def _usable() -> bool:
    """Whether numba is there and compiles. NUMBA_DISABLE_JIT=1 is the way to run without it."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        config = importlib.import_module("numba").config
    except (ImportError, OSError):  # of a numpy that this numba does not know, or a library that does not load
        return False
    return not config.DISABLE_JIT


def kernels(name: str) -> Any:
    """A kernel module of this package; the first time on a machine it is compiled, which is said when it takes long."""
    if name not in _LOADED:
        say = threading.Timer(_PATIENCE_S, _say_compiling)
        say.daemon = True
        say.start()
        try:
            importlib.import_module(f"hfq.formats.{name}")
        finally:
            say.cancel()
        _LOADED.add(name)
    return importlib.import_module(f"hfq.formats.{name}")


def _say_compiling() -> None:
    """Said once, however many modules are compiled, on whichever threads."""
    if next(_sayings) == 0:
        _LOG.warning("compiling the kernels of the number formats for this machine, once")


def run_ranges(work: Callable[[int, int], Any], count: int, elements: int) -> list[Any]:
    """The results of `work(first, last)` over ranges that cover [0, count), in no order; one range when that is enough.

    Args:
        elements: of the tensor; up to `torch.get_num_threads()` threads share large ones.
    """
    threads = torch.get_num_threads()
    if threads == 1 or elements <= RANGE:
        return [work(0, count)]
    size = max(1, count * RANGE // elements)
    starts = itertools.count(0, size)  # `next` is atomic
    results: list[Any] = []

    def take() -> None:
        while (first := next(starts)) < count:
            results.append(work(first, min(first + size, count)))

    helpers = [_pool(os.getpid()).submit(take) for _ in range(min(threads, -(-count // size)) - 1)]
    try:
        take()
    finally:
        _finish(helpers, starts, count)
    return results


def _finish(helpers: list[Future[None]], starts: itertools.count[int], count: int) -> None:
    """Wait for the ranges in work; start no more of them, also after an error or an interrupt."""
    while next(starts) < count:
        pass
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The helpers of this process; after a fork the child makes its own."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="hfq-kernels")
