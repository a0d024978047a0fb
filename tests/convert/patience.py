"""How long a test waits for another thread or process before it calls it hung: never a measure of speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

HANG_S: Final = 600.0
"""Far beyond what a machine whose cores are shared by many busy processes needs."""


def wait_until(happened: Callable[[], object]) -> None:
    """Return as soon as something has happened; fail when it never does."""
    end = time.monotonic() + HANG_S
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
