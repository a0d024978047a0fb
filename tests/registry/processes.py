"""Writers that are processes of their own and begin at the same moment."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from patience import HANG_S, wait_until

import hfq.registry.upgrade  # noqa: F401  (loaded before the fork, so that creating a registry is quick)
from hfq.registry import open_registry

# Children of this interpreter: they need not load it all again, and a kill -9 hits them while they work.
_context = multiprocessing.get_context("fork")


class Writers:
    """One process per list of folders, waiting for `release`. Each notes the folders that it has registered."""

    def __init__(self, registry: Path, work: Sequence[Sequence[Path]]) -> None:
        self._go = _context.Event()
        self._reports = [registry.with_name(f"report-{time.monotonic_ns()}-{number}") for number in range(len(work))]
        self._processes: list[BaseProcess] = []
        for folders, report in zip(work, self._reports, strict=True):
            process = _context.Process(target=_register_all, args=(registry, folders, report, self._go), daemon=True)
            process.start()
            self._processes.append(process)

    def release(self) -> None:
        """Let them all begin."""
        self._go.set()

    def finish(self) -> list[str]:
        """Wait for all of them, see that none failed, and return what they registered."""
        for process in self._processes:
            process.join(timeout=HANG_S)
        assert [process.exitcode for process in self._processes] == [0] * len(self._processes)
        return self.reported()

    def kill(self, *, after: int, then_s: float = 0.0) -> list[str]:
        """kill -9 one after the other; returns what they had registered until then.

        Args:
            after: how many folders they have reported by then, all together.
            then_s: a little later, so that kills land all over a transaction; what must hold, holds wherever they land.
        """
        wait_until(lambda: len(self.reported()) >= after)
        time.sleep(then_s)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        return self.reported()

    def reported(self) -> list[str]:
        """The folders that were registered before the writer said so."""
        return [line for report in self._reports if report.exists() for line in report.read_text().splitlines()]


def _register_all(registry: Path, folders: Sequence[Path], report: Path, go: Event) -> None:
    target = open_registry(registry)
    with report.open("w") as lines:
        go.wait()
        for folder in folders:
            target.register(folder)
            lines.write(f"{folder}\n")
            lines.flush()
