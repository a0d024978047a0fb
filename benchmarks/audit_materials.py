"""Clips to audit: what `audit_shares.py` makes once, in a folder that an interrupted run goes on with.

    WORK/<digest of the settings>/calibration/, deltas/<variant>/        converted from the tiny Wan
                                  clips/<variant>/<scene>.mp4            as `hfq generate --zoom 8` writes them, signed
                                  clips/<unknown kind>/<number>.mp4      nobody's: not stamped, not recorded
                                  config/, registry.sqlite               keys; the clips of registered variants

A scene is a prompt and a seed; every variant makes every scene. Unknown clips: the base's own of other prompts; the
base's own of registered prompts under other seeds; drawn as the tiny Wan's training data was, one shape that moves over
a plain background; and soft blobs that move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from evaluate import choose_labels
from shapes import draw_clips, prompt_of, random_labels

import hfq
from hfq.convert.apply import apply
from hfq.convert.generation import GenerationSettings, plan_schedule, prepare_scheduler, run_pipeline
from hfq.convert.pipelines import load_model
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.convert.video import enlarge, write_clip
from hfq.registry import Registry, open_registry
from hfq.registry.clips.clip_document import ClipDocument, Variant, prompt_sha256
from hfq.registry.clips.keys import anchors_pem, init_keys, load_local_key
from hfq.registry.clips.stamp import stamp_clip
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag
from hfq.schema.atomic import write_file

__all__ = ["BASE", "REGISTERED", "UNKNOWN", "UNREGISTERED", "Clips", "Settings"]

BASE: Final = "base"
REGISTERED: Final = (BASE, "tail-aware-hif4", "boundary-hif8")
UNREGISTERED: Final = ("rtn-hif4", "rtn-hif8")
UNKNOWN: Final = ("other-prompt", "other-seed", "drawn", "blobs")

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the clips, besides the code.

    Attributes:
        scenes: each made by every variant.
        other_prompts, other_seeds, drawn, blobs: how many unknown clips of each kind.
        steps: of the sampler; 40 are the model's own.
        calibration_prompts: for the deltas that need them; none of them is a scene's.
        zoom: clips of 24x24 pixels are enlarged so many times.
    """

    scenes: int = 20
    other_prompts: int = 10
    other_seeds: int = 10
    drawn: int = 65
    blobs: int = 65
    steps: int = 40
    calibration_prompts: int = 4
    first_seed: int = 700_000
    zoom: int = 8
    fps: int = 16

    def digest(self) -> str:
        """Of these settings, 12 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def prompts(self) -> tuple[list[str], list[str], list[str]]:
        """Prompts of the scenes, of unknown clips, and of the calibration; no prompt twice."""
        counts = (self.scenes, self.other_prompts, self.calibration_prompts)
        every = [prompt_of(label) for label in choose_labels(sum(counts), seed=11)]
        assert len(set(every)) == len(every)
        return every[: counts[0]], every[counts[0] : -counts[2]], every[-counts[2] :]


class Clips:
    """The folder of one run's settings.

    Args:
        work: holds one folder per settings.
    """

    def __init__(self, work: Path, settings: Settings) -> None:
        self.settings, self.folder = settings, work / settings.digest()
        self.config = self.folder / "config"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "settings.json", json.dumps(asdict(settings), indent=1).encode())

    @property
    def registry(self) -> Registry:
        """Knows the registered variants and their clips."""
        return open_registry(self.folder / "registry.sqlite")

    @property
    def anchors(self) -> str:
        """The authority that signed the clips, PEM."""
        return anchors_pem(self.config)

    def of(self, kind: str) -> list[Path]:
        """The clips of a variant (scene by scene) or of an unknown kind."""
        return sorted((self.folder / "clips" / kind).glob("*.mp4"))

    def document(self, clip: Path) -> ClipDocument:
        """What a stamped clip says of itself."""
        with open_clip(clip) as opened:
            found = read_tag(opened)
        assert found is not None
        return found

    def variant(self, name: str) -> Variant:
        """A variant by the name of its folder."""
        return self.document(self.of(name)[0]).variant

    def make(self, say: Any = print) -> None:
        """Make what is still missing: deltas, clips, keys, the registry."""
        if not (self.config / "keys").exists():
            init_keys(self.config, organization="audit shares")
        scenes, others, _ = self.settings.prompts()
        seeds = range(self.settings.first_seed, self.settings.first_seed + len(scenes))
        for name in (*REGISTERED, *UNREGISTERED):
            self._generate(name, name, list(zip(scenes, seeds, strict=True)), say)
        self._generate(BASE, UNKNOWN[0], [(prompt, self.settings.first_seed + 1_000) for prompt in others], say)
        again = scenes[: self.settings.other_seeds]
        self._generate(BASE, UNKNOWN[1], [(p, self.settings.first_seed + 2_000 + i) for i, p in enumerate(again)], say)
        for kind, frames in ((UNKNOWN[2], self._drawn()), (UNKNOWN[3], self._blobs())):
            for number, clip in enumerate(frames):
                path = self._path(kind, number)
                if not path.exists():
                    write_clip(path, enlarge(clip, self.settings.zoom), self.settings.fps)
        self._register()

    def _path(self, kind: str, number: int) -> Path:
        path = self.folder / "clips" / kind / f"{number:03}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _delta(self, name: str) -> Path:
        """The folder of a delta, made when it is missing."""
        out = self.folder / "deltas" / name
        out.parent.mkdir(exist_ok=True)
        if not out.exists():
            with hfq.open_checkpoint(WEIGHTS) as base:
                resume = out.with_name(f"{name}.partial").exists()
                hfq.quantize(base, name, self._calibration(), out=out, resume=resume).close()
        return out

    def _calibration(self) -> Path:
        out = self.folder / "calibration"
        if not out.exists():
            resume = out.with_name("calibration.partial").exists()
            prompts = self.settings.prompts()[2]
            hfq.calibrate(WEIGHTS, prompts, out, steps=self.settings.steps, resume=resume).close()
        return out

    def _generate(self, model: str, kind: str, scenes: list[tuple[str, int]], say: Any) -> None:
        missing = [(self._path(kind, i), *scene) for i, scene in enumerate(scenes) if not self._path(kind, i).exists()]
        if not missing:
            return
        loaded = load_model(WEIGHTS)
        roots = {role: identity.bf16_root for role, identity in loaded.identities.items()}
        delta = None
        if model != BASE:
            with hfq.load_delta(self._delta(model)) as opened:
                apply(loaded.pipeline, opened)
                delta = opened.id
        loaded.offload("cpu", "none")
        for path, prompt, seed in missing:
            settings = loaded.defaults.changed(steps=self.settings.steps, seed=seed)
            prepare_scheduler(loaded.pipeline, settings)
            frames = run_pipeline(loaded.pipeline, prompt, settings)
            assert frames is not None
            plain = path.with_name(f"plain-{path.name}")
            plain.unlink(missing_ok=True)
            write_clip(plain, enlarge(frames, self.settings.zoom), self.settings.fps)
            if kind in UNKNOWN:
                plain.rename(path)
            else:
                _, schedules = plan_schedule(loaded.pipeline.scheduler, settings, list(roots))
                steps = {role: len({call.step for call in schedule.calls}) for role, schedule in schedules.items()}
                made_by = _document(delta, roots, prompt, settings, steps, type(loaded.pipeline.scheduler).__name__)
                stamp_clip(plain, path, made_by, load_local_key(self.config))
                plain.unlink()
        say(f"{kind}: {len(missing)} clips")

    def _register(self) -> None:
        registry = self.registry
        for name in REGISTERED[1:]:
            registry.register(self._delta(name))
        if registry.status().counts["clips"] < len(REGISTERED) * self.settings.scenes:
            for name in REGISTERED:
                for clip in self.of(name):
                    registry.record_clip(clip, self.document(clip))

    def _drawn(self) -> Iterator[Frames]:
        generator = torch.Generator().manual_seed(self.settings.first_seed)
        for _ in range(self.settings.drawn):
            clip = draw_clips(random_labels(1, generator), generator)[0]
            yield ((clip.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()

    def _blobs(self) -> Iterator[Frames]:
        y, x = np.mgrid[0:24, 0:24] / 24
        for number in range(self.settings.blobs):
            random = np.random.default_rng(self.settings.first_seed + number)
            picture = np.full((9, 24, 24, 3), random.uniform(40, 215))
            for _ in range(4):
                left, top, size = random.uniform((0, 0, 0.02), (1, 1, 0.1))
                move, colour = random.uniform(-0.4, 0.4, 2), random.uniform(-150, 150, 3)
                for t in range(9):
                    away = (x - left - move[0] * t / 8) ** 2 + (y - top - move[1] * t / 8) ** 2
                    picture[t] += np.exp(-away / size)[..., None] * colour
            yield picture.clip(0, 255).astype(np.uint8)


def _document(
    delta: str | None,
    roots: dict[str, str],
    prompt: str,
    settings: GenerationSettings,
    steps: dict[str, int],
    scheduler: str,
) -> ClipDocument:
    return ClipDocument(
        delta=delta,
        base=roots,
        prompt_sha256=prompt_sha256(prompt),
        seed=settings.seed,
        settings={name: value for name, value in asdict(settings).items() if name != "seed"} | {"scheduler": scheduler},
        expert_steps=steps,
    )
