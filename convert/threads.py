"""How many threads work, and computing on one where the bits of a result must not depend on their number."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

__all__ = ["StoppedError", "check_stopped", "single_thread", "stoppable", "thread_count"]

_current = threading.local()


class StoppedError(Exception):
    """Work that nobody waits for any more ended early; it never leaves the pass that stopped it."""


@contextlib.contextmanager
def stoppable(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Let `check_stopped` ask `is_stopped` on this thread inside the block."""
    _current.is_stopped = is_stopped
    try:
        yield
    finally:
        del _current.is_stopped


def check_stopped() -> None:
    """For work of minutes, now and then: an interruption waits until every thread has come here or is done.

    Raises:
        StoppedError: the result is not wanted any more.
    """
    is_stopped = getattr(_current, "is_stopped", None)
    if is_stopped is not None and is_stopped():
        raise StoppedError


def thread_count() -> int:
    """Threads that this process may use: what torch was told where it is loaded, else OMP_NUM_THREADS, else the cores
    that the process may run on. torch itself starts with the same two."""
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside the block: sums in matrix products depend on how they are divided. Threads that
    are started inside compute on one, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
