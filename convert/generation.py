"""Settings of a generation, and running a Wan pipeline with them: one code path for calibration and for clips."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from hfq.schema.errors import MalformedFileError, MissingPathError, NonFiniteActivationError, UsageError

from .architecture import Architecture
from .prompts import check_text
from .schedule import BRANCHES, ExpertSchedule, expert_schedules

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Frames", "GenerationSettings", "Sizes", "default_settings", "load_frames", "load_image", "plan_schedule",
           "prepare_scheduler", "run_pipeline", "scheduler_for"]  # fmt: skip


@dataclass(frozen=True)
class GenerationSettings:
    """What decides a clip besides model and prompt.

    Attributes:
        height, width: pixels.
        frames: of the clip.
        steps: of the sampler.
        shift: flow shift of the schedule; None keeps the pipeline's.
        boundary: share of the training timesteps at or above which the high-noise expert runs; None for one expert.
        guidance: scale for the high-noise (or only) expert.
        guidance_low: scale for the low-noise expert; None for one expert.
        seed: of the initial noise.
        negative_prompt: text of the unconditional branch.
        max_sequence_length: text tokens; None keeps the pipeline's.
    """

    height: int
    width: int
    frames: int
    steps: int
    shift: float | None
    boundary: float | None
    guidance: float
    guidance_low: float | None
    seed: int = 42
    negative_prompt: str = ""
    max_sequence_length: int | None = 512

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames", "steps", "max_sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is less than 1", found=value)
        if not 0 <= self.seed < 2**53:
            raise UsageError("the seed lies between 0 and 2**53 - 1", found=self.seed)
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise UsageError("the boundary lies between 0 and 1", found=self.boundary)
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise UsageError("the flow shift is a number above 0", found=self.shift)
        for guidance in (self.guidance, self.guidance_low):
            if guidance is not None and not math.isfinite(guidance):
                raise UsageError("the guidance scale is a number", found=guidance)
        check_text(self.negative_prompt, "negative prompt")

    @property
    def branches(self) -> tuple[str, ...]:
        """Guidance branches that run: pipelines look at the first scale alone."""
        return BRANCHES if self.guidance > 1.0 else BRANCHES[:1]

    def changed(self, **changes: Any) -> GenerationSettings:
        """These settings with the given ones replaced; None means unchanged."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


# height, width, frames, steps, shift, boundary, guidance (high or only, low): as in the original repositories.
_OFFICIAL: Final[dict[str, tuple[int, int, int, int, float, float | None, float, float | None]]] = {
    "t2v-2.2": (720, 1280, 81, 40, 12.0, 0.875, 4.0, 3.0),
    "i2v-2.2": (720, 1280, 81, 40, 5.0, 0.9, 3.5, 3.5),
    "t2v-2.1": (480, 832, 81, 50, 5.0, None, 5.0, None),
    "i2v-2.1": (480, 832, 81, 40, 3.0, None, 5.0, None),
    "flf2v-2.1": (720, 1280, 81, 50, 16.0, None, 5.0, None),
    "ti2v-2.2": (704, 1280, 121, 50, 5.0, None, 5.0, None),
    "vace-2.1": (480, 832, 81, 50, 16.0, None, 5.0, None),
    # No original repository has this one: its experts are made like those of T2V.
    "vace-2.2": (720, 1280, 81, 40, 12.0, 0.875, 4.0, 3.0),
}


def default_settings(architecture: Architecture, roles: Sequence[str]) -> GenerationSettings:
    """The original repository's settings for a model: size, steps, shift, boundary, guidance.

    A diffusers folder made by the conversion script says flow_shift 3 for every model; with it the experts of Wan 2.2
    see other steps than in the official recipe, so the official value is the default here. The settings of a 2.1 I2V
    model are those for 480 lines: no tensor tells it from the one for 720, which has shift 5.
    """
    generation = "2.2" if len(roles) == 2 or architecture.model_type == "ti2v" else "2.1"
    return GenerationSettings(*_OFFICIAL[f"{architecture.model_type}-{generation}"])


def scheduler_for(scheduler: Any, settings: GenerationSettings) -> Any:
    """A scheduler of the same kind with the settings' flow shift.

    Raises:
        UsageError: a scheduler without a flow shift.
    """
    if settings.shift is None:
        return scheduler
    name = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    if name not in scheduler.config:
        raise UsageError("this scheduler has no flow shift", found=type(scheduler).__name__)
    return type(scheduler).from_config(dict(scheduler.config), **{name: settings.shift})


def prepare_scheduler(pipeline: Any, settings: GenerationSettings) -> None:
    """Give the pipeline a scheduler and a boundary as the settings say.

    Raises:
        UsageError: a scheduler without a flow shift.
    """
    pipeline.scheduler = scheduler_for(pipeline.scheduler, settings)
    pipeline.register_to_config(boundary_ratio=settings.boundary)


def plan_schedule(
    scheduler: Any, settings: GenerationSettings, roles: Sequence[str]
) -> tuple[list[float], dict[str, ExpertSchedule]]:
    """The timesteps of a run and what each expert gets of them; the scheduler has the settings' flow shift.

    Raises:
        UsageError: an expert would get no step at all, or a boundary for one expert.
    """
    if len(roles) == 1 and (settings.boundary is not None or settings.guidance_low is not None):
        raise UsageError("a boundary and a guidance for low noise belong to a model with two experts", found=roles[0])
    scheduler.set_timesteps(settings.steps)
    timesteps = [float(t) for t in scheduler.timesteps]
    boundary = None
    if settings.boundary is not None:
        boundary = settings.boundary * float(scheduler.config["num_train_timesteps"])
    schedules = expert_schedules(timesteps, roles, boundary, settings.branches)
    for role in roles:
        if role not in schedules:
            raise UsageError(
                f"the schedule gives the expert {role} no step",
                found=f"{settings.steps} steps, shift {settings.shift}, boundary {settings.boundary}",
                todo="use the model's own schedule, or more steps",
            )
    return timesteps, schedules


@dataclass(frozen=True)
class Sizes:
    """What sizes of a clip a pipeline can make.

    Attributes:
        pixels: height and width are multiples of it.
        frames: the number of frames leaves remainder 1 when divided by it.
        temporal, spatial: frames per latent frame (after the first), pixels per latent pixel.
    """

    pixels: int
    frames: int
    temporal: int
    spatial: int

    def check(self, settings: GenerationSettings) -> None:
        """Refuse what the pipeline would refuse, or silently change, later.

        Raises:
            UsageError
        """
        for name in ("height", "width"):
            if getattr(settings, name) % self.pixels:
                raise UsageError(
                    f"the model cannot make this {name}",
                    expected=f"a multiple of {self.pixels}",
                    found=getattr(settings, name),
                )
        if settings.frames % self.frames != 1 % self.frames:
            raise UsageError(
                "the model cannot make this number of frames",
                expected=f"a multiple of {self.frames} and 1 more",
                found=settings.frames,
            )

    def tokens(self, settings: GenerationSettings, patch: tuple[int, int, int]) -> int:
        """Tokens of the transformer for a clip."""
        frames = (settings.frames - 1) // self.temporal + 1
        height, width = settings.height // self.spatial, settings.width // self.spatial
        return (frames // patch[0]) * (height // patch[1]) * (width // patch[2])


def load_image(source: str, width: int, height: int) -> tuple[Image, str]:
    """A conditioning image in RGB at the clip's size, and the SHA-256 of its pixels.

    Args:
        source: a file, or "blank" for plain white.

    Raises:
        MissingPathError, MalformedFileError
    """
    from PIL import Image as Images
    from PIL import UnidentifiedImageError

    if source == "blank":
        image = Images.new("RGB", (width, height), (255, 255, 255))
    else:
        if not Path(source).is_file():
            raise MissingPathError("no such image", where=source, expected='a file or "blank"')
        try:
            with Images.open(source) as opened:
                image = opened.convert("RGB").resize((width, height), Images.Resampling.LANCZOS)
        except (UnidentifiedImageError, Images.DecompressionBombError, OSError) as error:
            raise MalformedFileError("not an image that can be read", where=source, found=error) from None
    return image, hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Frames:
    """Conditioning frames of one clip: PIL images at its size, and the SHA-256 of their pixels; None where none is."""

    first: Any = None
    last: Any = None
    first_sha256: str | None = None
    last_sha256: str | None = None

    def without_images(self) -> Frames:
        """The digests alone."""
        return Frames(None, None, self.first_sha256, self.last_sha256)


def load_frames(
    model_type: str,
    takes_image: bool,
    image: str | None,
    last_image: str | None,
    settings: GenerationSettings,
    where: str,
) -> Frames:
    """Load the frames that a model is conditioned on: none, the first, or first and last.

    Args:
        model_type: of the architecture; "flf2v" wants a last frame too.
        takes_image: whether the pipeline wants a first frame.
        image, last_image: files or "blank"; ignored by a pipeline without images.
        where: what the frames are for, in messages.

    Raises:
        UsageError: a frame is wanted and not given.
        MissingPathError, MalformedFileError
    """
    if not takes_image:
        return Frames()
    if image is None:
        raise UsageError(
            "an image-to-video model needs a first frame",
            where=where,
            todo='give --image FILE or --image blank, or an "image" per prompt',
        )
    first, first_sha256 = load_image(image, settings.width, settings.height)
    if model_type != "flf2v":
        return Frames(first, None, first_sha256)
    if last_image is None:
        raise UsageError(
            "a first-last-frame model needs a last frame",
            where=where,
            todo='give --last-image FILE or --last-image blank, or a "last_image" per prompt',
        )
    last, last_sha256 = load_image(last_image, settings.width, settings.height)
    return Frames(first, last, first_sha256, last_sha256)


def run_pipeline(
    pipeline: Any, prompt: str, settings: GenerationSettings, *, image: Any = None, last_image: Any = None,
    decode: bool = True,
) -> npt.NDArray[np.uint8] | None:  # fmt: skip
    """Run the whole schedule for one prompt.

    Args:
        pipeline: a diffusers Wan pipeline whose scheduler has been prepared.
        image, last_image: PIL images for pipelines that take them.
        decode: False stops before the VAE.

    Returns:
        frames uint8 [frames, height, width, 3], or None when not decoded.
    """
    arguments: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        "output_type": "np" if decode else "latent",
    }
    if settings.max_sequence_length is not None:
        arguments["max_sequence_length"] = settings.max_sequence_length
    if settings.boundary is not None:
        arguments["guidance_scale_2"] = settings.guidance_low
    if image is not None:
        arguments["image"] = image
    if last_image is not None:
        arguments["last_image"] = last_image
    frames = pipeline(**arguments).frames
    if not decode:
        return None
    if not np.isfinite(np.asarray(frames[0])).all():
        raise NonFiniteActivationError(
            "the model produced NaN or infinity",
            where=f"prompt {prompt[:40]!r}",
            todo="check the checkpoint, or run it in float32 (--dtype float32)",
        )
    clip: npt.NDArray[np.uint8] = np.round(np.asarray(frames[0]) * 255.0).clip(0, 255).astype(np.uint8)
    return clip
