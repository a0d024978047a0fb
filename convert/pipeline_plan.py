"""What can be said about running a model before any of its weights is read: experts, schedule, sizes, settings.

Nothing of a pipeline folder is executed: the pipeline class and the library of each component must be known ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from hfq.schema.errors import MalformedFileError, MissingPipelineError, UnsupportedModelError, UsageError

from .architecture import Architecture
from .checkpoint import Checkpoint, ModelPath, open_checkpoint
from .generation import GenerationSettings, Sizes, default_settings
from .side_files import make_scheduler, read_object
from .transformer import require_video_extra

__all__ = ["ModelPlan", "Vocabulary", "diffusers_sizes", "is_tiny", "pipeline_folder", "plan_checkpoint", "plan_model",
           "read_index", "tiny_sizes"]  # fmt: skip

KNOWN_PIPELINES: Final = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline")
_KNOWN_LIBRARIES: Final = ("diffusers", "transformers")
_TINY_FILE: Final = "pipeline.json"
_INDEX: Final = "model_index.json"
_WANTS_IMAGE: Final = "WanImageToVideoPipeline"


class Vocabulary(Protocol):
    """The words that the tiny model knows."""

    def tokenize(self, prompt: str) -> Sequence[int]:
        """Raises UnknownWordError and UsageError for a prompt that the model cannot draw."""


@dataclass(frozen=True)
class ModelPlan:
    """A model that could be run.

    Attributes:
        pipeline_class: name of the diffusers class, or TinyWanPipeline.
        architecture: shared by the experts.
        roles: the experts.
        defaults: the settings that this model is made for.
        scheduler: with the settings of its folder.
        sizes: what clips it can make.
        vocabulary: the words it knows, or None for any text.
    """

    pipeline_class: str
    architecture: Architecture
    roles: tuple[str, ...]
    defaults: GenerationSettings
    scheduler: Any
    sizes: Sizes
    vocabulary: Vocabulary | None = None

    @property
    def takes_image(self) -> bool:
        """Whether the pipeline is conditioned on a first frame."""
        return self.pipeline_class == _WANTS_IMAGE


def plan_model(
    model: ModelPath, *, pipeline: str | os.PathLike[str] | None = None, role: str | None = None
) -> ModelPlan:
    """Plan the run of a checkpoint of any layout; arguments as for `load_model`.

    Raises:
        MissingPipelineError: neither the model's folder nor `pipeline` holds the other parts.
        MissingDependencyError, UnsupportedModelError, MalformedFileError, and what `open_checkpoint` raises
    """
    require_video_extra()
    with open_checkpoint(model, role=role) as checkpoint:
        return plan_checkpoint(checkpoint, pipeline_folder(checkpoint, pipeline))


def pipeline_folder(checkpoint: Checkpoint, given: str | os.PathLike[str] | None) -> Path:
    """Where text encoder, VAE and scheduler of a checkpoint are.

    Raises:
        MissingPipelineError
    """
    folder = Path(given) if given is not None else Path(checkpoint.path)
    if any((folder / name).is_file() for name in (_INDEX, _TINY_FILE)):
        return folder
    raise MissingPipelineError(
        "no text encoder, VAE and scheduler here",
        where=folder,
        expected="a diffusers pipeline folder (model_index.json)",
        todo="name one with --pipeline DIFFUSERS_FOLDER",
    )


def is_tiny(folder: Path) -> bool:
    """Whether a pipeline folder is the tiny Wan's."""
    return not (folder / _INDEX).is_file()


def _settle_heads(checkpoint: Checkpoint, folder: Path) -> None:
    """Where the checkpoint does not say the number of attention heads, which no tensor shows, the pipeline does."""
    architecture = checkpoint.architecture
    if architecture.heads_known:
        return
    for place, key in (("high_noise_model", "num_heads"), ("transformer", "num_attention_heads")):
        path = folder / place / "config.json"
        heads = read_object(path).get(key) if path.is_file() else None
        if type(heads) is int and heads > 0 and architecture.dim % heads == 0:
            settled = replace(architecture, num_heads=heads, heads_known=True)
            checkpoint.architecture = settled
            for expert in checkpoint.experts.values():
                expert.architecture = settled
            return


def plan_checkpoint(checkpoint: Checkpoint, folder: Path) -> ModelPlan:
    """Plan the run of an open checkpoint with the other parts in `folder`."""
    _settle_heads(checkpoint, folder)
    architecture, roles = checkpoint.architecture, tuple(checkpoint.experts)
    if is_tiny(folder):
        from .tiny.pipeline import read_tiny_settings
        from .tiny.text import Vocabulary as TinyVocabulary

        if roles != ("high_noise", "low_noise"):
            raise UsageError(
                "the tiny Wan runs with both of its experts, and this is one",
                where=checkpoint.path,
                expected="high_noise and low_noise",
                found=", ".join(f"{role} ({expert.role_source})" for role, expert in checkpoint.experts.items()),
                todo="give the folder that holds high_noise_model/ and low_noise_model/, or "
                "high_noise=FILE,low_noise=FILE with --pipeline FOLDER",
            )
        scheduler, defaults = read_tiny_settings(folder)
        words = TinyVocabulary.load(folder / "vocab.json")
        return ModelPlan("TinyWanPipeline", architecture, roles, defaults, scheduler, tiny_sizes(architecture), words)
    index = read_index(folder)
    two = isinstance(index.get("transformer_2"), list) and index["transformer_2"][0] is not None
    if two != (len(roles) == 2):
        raise UsageError(
            "the pipeline and the checkpoint do not have the same experts",
            where=folder,
            expected="transformer and transformer_2" if two else "one transformer",
            found=", ".join(roles),
        )
    defaults = default_settings(architecture, roles)
    vae = read_object(folder / "vae" / "config.json")
    temporal, spatial = vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
    if not all(
        isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 64 for size in (temporal, spatial)
    ):
        where = folder / "vae" / "config.json"
        raise MalformedFileError("scale factors that are none", where=where, found=(temporal, spatial))
    sizes = diffusers_sizes(architecture, temporal, spatial)
    return ModelPlan(index["_class_name"], architecture, roles, defaults, _scheduler(folder, index), sizes)


def tiny_sizes(architecture: Architecture) -> Sizes:
    """The tiny model draws pixels; `WanPipeline` makes its number of frames odd."""
    return Sizes(math.lcm(*architecture.patch_size[1:]), 2, 1, 1)


def diffusers_sizes(architecture: Architecture, temporal: int, spatial: int) -> Sizes:
    """Whole patches of latent pixels, and multiples of 16, which the pipelines ask for whatever the model."""
    return Sizes(math.lcm(16, *(spatial * patch for patch in architecture.patch_size[1:])), temporal, temporal, spatial)


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a pipeline that can be run.

    Raises:
        UnsupportedModelError: another pipeline, or a component from a library that is not trusted.
        MalformedFileError
    """
    where = folder / _INDEX
    index = read_object(where)
    if index.get("_class_name") not in KNOWN_PIPELINES:
        raise UnsupportedModelError(
            "not a pipeline that can be run",
            where=where,
            expected=" or ".join(KNOWN_PIPELINES),
            found=index.get("_class_name"),
        )
    for component, entry in index.items():
        if not isinstance(entry, list):
            continue
        if len(entry) != 2:
            raise MalformedFileError("not a component", where=f"{where}: {component}", expected="[library, class]")
        if entry[0] is not None and entry[0] not in _KNOWN_LIBRARIES:
            raise UnsupportedModelError(
                "a component from a library that is not trusted",
                where=f"{where}: {component}",
                expected=" or ".join(_KNOWN_LIBRARIES),
                found=entry[0],
            )
    return index


def _scheduler(folder: Path, index: dict[str, Any]) -> Any:
    import diffusers

    where = folder / "scheduler" / "scheduler_config.json"
    entry = index.get("scheduler")
    name = entry[1] if isinstance(entry, list) else None
    scheduler_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    known = isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)
    if not known:
        raise UnsupportedModelError(
            "no scheduler that diffusers has", where=f"{folder / _INDEX}: scheduler", found=name
        )
    return make_scheduler(scheduler_class, read_object(where), where)
