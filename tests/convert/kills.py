"""Killing a run, as SIGKILL does, at a chosen one of the instants in which it changes the file system."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

# A folder is changed by these alone; writes into a file are seen by their fsync.
_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "fsync", "truncate", "ftruncate")


def run_until(instant: int, work: Callable[[], object], *, only: Callable[[str], object] = lambda call: True) -> bool:
    """Do some work in a child process that is killed just before its change number `instant`, counted from 0.

    Args:
        only: which changes count, by name of the call and arguments: "rename /a /b".

    Returns:
        whether the child was killed; otherwise it has ended by itself, without an error.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _count_down(instant, only)
            work()
            code = 0
        finally:
            os._exit(code)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert found in (0, -signal.SIGKILL)
    return found != 0


def _count_down(instant: int, only: Callable[[str], object]) -> None:
    left = [instant]

    def counted(real: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        if only(" ".join([name, *map(str, args)])):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return real(*args, **kwargs)

    for name in _CALLS:
        setattr(os, name, functools.partial(counted, getattr(os, name), name))
