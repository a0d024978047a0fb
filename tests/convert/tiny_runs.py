"""Running calibrations of the tiny Wan in tests, stopping them, and looking at what they leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tiny_pipelines import TINY_PROMPTS

from hfq.convert.calibrate import CalibrationOptions, calibrate_model
from hfq.convert.calibration import Calibration
from hfq.convert.pipelines import LoadedModel
from hfq.convert.progress import Silent
from hfq.convert.prompts import Prompt

STEPS = 4
"""Enough that both of the tiny model's experts get steps."""


def calibrated(
    model: LoadedModel, out: Path, prompts: tuple[str, ...] = TINY_PROMPTS[:1], *, progress: Any = None,
    resume: bool = False, steps: int = STEPS, seed: int = 42, **options: Any,
) -> Calibration:  # fmt: skip
    settings = model.defaults.changed(steps=steps, seed=seed)
    listed = [Prompt(text) for text in prompts]
    return calibrate_model(
        model, listed, out, settings, CalibrationOptions(**options), progress=progress, resume=resume
    )[0]


def hooks_of(model: LoadedModel) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + ("cache_context" in module.__dict__)
        for transformer in model.transformers.values()
        for module in transformer.modules()
    )


class Raises(Silent):
    """A progress that stops the run after some forwards."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error = after, error

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            raise self.error


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class Kills(Silent):
    """A progress that kills the process."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
