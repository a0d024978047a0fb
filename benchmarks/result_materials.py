"""What every arm of the results table is measured with, made once: calibration, recorded calls of BF16, its clips.

    WORK/<digest of the settings>/settings.json
                                  calibration/              an ordinary calibration
                                  calls.safetensors         inputs and outputs of the BF16 experts
                                  reference.safetensors     clips of BF16
                                  *.seconds.json            what each took
                                  rows/<arm>.json           see results.py

Calibration and evaluation prompts are disjoint. A change of the code that makes these needs a new WORK folder; rows
know the code that made them, see results.py.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from evaluate import choose_labels, generate
from safetensors.torch import load, save
from shapes import prompt_of
from torch import Tensor, nn

import hfq
from hfq.convert.tiny.pipeline import WEIGHTS, load_tiny_pipeline
from hfq.schema.atomic import write_file

__all__ = ["MATERIALS", "Call", "Materials", "Settings"]

ROLES: Final = ("high_noise", "low_noise")
MATERIALS: Final = ("calibration", "calls", "reference")

Call = tuple[dict[str, Tensor], Tensor]
"""Keyword arguments of one forward of an expert, and its output [1, C, F, H, W]."""


@dataclass(frozen=True)
class Settings:
    """What decides the figures, besides the arm and the code.

    Attributes:
        pairs: prompt-seed pairs; clip i has seed `first_seed + i`.
        calibration_prompts, keep_inputs: rows are kept per input group and timestep bin; the three bins together have
            to be as many as the widest input (512) for GPTQ.
        forced_prompts, forced_every: teacher-forced calls: of so many of the prompts, both guidance branches of every
            so-many-th step.
    """

    pairs: int = 24
    first_seed: int = 900_000
    steps: int = 40
    guidance: float = 3.0
    calibration_prompts: int = 16
    keep_inputs: int = 400
    forced_prompts: int = 8
    forced_every: int = 4

    def digest(self) -> str:
        """Of these settings, 12 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Labels int64 [n, 4] of the evaluation and of the calibration prompts, none in both.

        Raises:
            ValueError: more pairs than there are combinations of words left.
        """
        labels = choose_labels(self.pairs + self.calibration_prompts)
        if len({tuple(label.tolist()) for label in labels}) != len(labels):
            raise ValueError(f"{self.pairs} pairs leave no {self.calibration_prompts} other prompts for calibration")
        return labels[: self.pairs], labels[self.pairs :]

    def prompts(self) -> list[str]:
        """Evaluation prompts."""
        return [prompt_of(label) for label in self.labels()[0]]

    @property
    def forced(self) -> int:
        """Prompts with teacher-forced calls."""
        return min(self.forced_prompts, self.pairs)


class Materials:
    """The folder of one run's settings.

    Args:
        work: holds one folder per settings.
    """

    def __init__(self, work: Path, settings: Settings) -> None:
        self.settings, self.folder = settings, work / settings.digest()
        (self.folder / "rows").mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "settings.json", json.dumps(asdict(settings), indent=1).encode())

    @property
    def calibration(self) -> Path:
        """Folder of the calibration."""
        return self.folder / "calibration"

    def missing(self) -> list[str]:
        """Materials that are still to be made."""
        return [name for name in MATERIALS if not self._path(name).exists()]

    def make(self, name: str) -> float:
        """Make one of `MATERIALS`; returns the seconds it took, of an interrupted one the seconds of this part."""
        started = time.monotonic()
        {"calibration": self._calibrate, "calls": self._record, "reference": self._generate}[name]()
        seconds = round(time.monotonic() - started, 1)
        write_file(self.folder / f"{name}.seconds.json", json.dumps(seconds).encode())
        return seconds

    def seconds(self) -> dict[str, float]:
        """What each material took."""
        return {name: json.loads((self.folder / f"{name}.seconds.json").read_text("utf-8")) for name in MATERIALS}

    def calls(self) -> dict[str, list[Call]]:
        """role -> recorded calls, prompt by prompt, in the order of the run."""
        found: dict[str, list[Call]] = {role: [] for role in ROLES}
        tensors = load(self._path("calls").read_bytes())
        for role, calls in found.items():
            while f"{role}.{len(calls)}.output" in tensors:
                start = f"{role}.{len(calls)}."
                own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
                calls.append((own, own.pop("output")))
        return found

    def reference(self) -> Tensor:
        """Clips of BF16, float32 [pairs, 3, F, H, W] in [-1, 1]."""
        return load(self._path("reference").read_bytes())["clips"]

    def clips(self, pipeline: Any) -> Tensor:
        """The same clips by another pipeline."""
        settings = self.settings
        return generate(pipeline, settings.prompts(), settings.first_seed, settings.steps, settings.guidance, batch=12)

    def _path(self, name: str) -> Path:
        return self.calibration if name == "calibration" else self.folder / f"{name}.safetensors"

    def _calibrate(self) -> None:
        prompts = [prompt_of(label) for label in self.settings.labels()[1]]
        assert not set(prompts) & set(self.settings.prompts())
        resume = self.calibration.with_name("calibration.partial").exists()
        hfq.calibrate(
            WEIGHTS, prompts, self.calibration, keep_inputs=self.settings.keep_inputs, steps=self.settings.steps,
            guidance=self.settings.guidance, guidance_low=self.settings.guidance, resume=resume,
        ).close()  # fmt: skip

    def _record(self) -> None:
        recorder = _Recorder(self.settings.forced_every)
        pipeline = load_tiny_pipeline()
        for role, module in zip(ROLES, (pipeline.transformer, pipeline.transformer_2), strict=True):
            module.register_forward_hook(recorder.hook(role), with_kwargs=True)
        for index, prompt in enumerate(self.settings.prompts()[: self.settings.forced]):
            generator = torch.Generator().manual_seed(self.settings.first_seed + index)
            pipeline(
                prompt, generator=generator, num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance, output_type="latent",
            )  # fmt: skip
        write_file(self._path("calls"), save(recorder.tensors))

    def _generate(self) -> None:
        write_file(self._path("reference"), save({"clips": self.clips(load_tiny_pipeline()).contiguous()}))


class _Recorder:
    """What forwards of the experts got and gave."""

    def __init__(self, every: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._every, self._seen = every, 0
        self._counts = dict.fromkeys(ROLES, 0)

    def hook(self, role: str) -> Callable[..., None]:
        """A forward hook that keeps both guidance branches of every so-many-th step."""

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if (self._seen // 2) % self._every == 0:
                start = f"{role}.{self._counts[role]}."
                for name in ("hidden_states", "timestep", "encoder_hidden_states"):
                    self.tensors[start + name] = kwargs[name].clone().contiguous()
                self.tensors[start + "output"] = output[0].clone().contiguous()
                self._counts[role] += 1
            self._seen += 1

        return after
