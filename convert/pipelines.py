"""From a MODEL to a running diffusers pipeline, whatever the layout: experts through our own reader, the rest from a
diffusers folder or from the tiny Wan's folder. Weights are read from safetensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.schema.errors import UnsupportedDtypeError, UsageError

from .architecture import Architecture
from .bf16 import to_bf16, to_finite_bf16
from .checkpoint import ModelPath, open_checkpoint
from .components import digest_components
from .derive import derive_architecture
from .generation import GenerationSettings, default_settings
from .identity import Identity, TensorDigest, same_weights
from .keymap import to_original
from .pipeline_plan import (
    KNOWN_PIPELINES,
    ModelPlan,
    diffusers_sizes,
    is_tiny,
    pipeline_folder,
    plan_checkpoint,
    read_index,
    tiny_sizes,
)
from .progress import Progress, Silent
from .side_files import read_by_library
from .tensor_bytes import tensor_bytes
from .transformer import build_transformer, require_video_extra

__all__ = ["OFFLOAD", "LoadedModel", "adopt_pipeline", "check_device", "load_model", "transformers_of"]

OFFLOAD: Final = ("none", "model", "sequential")
_DTYPE_NAMES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass
class LoadedModel:
    """A pipeline ready to run.

    Attributes:
        pipeline: the diffusers pipeline.
        transformers: role -> transformer, the objects inside the pipeline.
        identities: role -> identity of what was loaded.
        plan: what was known before the weights were read.
        components: name -> digest of the other parts (text encoder, tokenizer ...).
    """

    pipeline: Any
    transformers: dict[str, nn.Module]
    identities: dict[str, Identity]
    plan: ModelPlan
    components: dict[str, str]

    @property
    def architecture(self) -> Architecture:
        """Shared by the experts."""
        return self.plan.architecture

    @property
    def defaults(self) -> GenerationSettings:
        """The settings that this model is made for."""
        return self.plan.defaults

    @property
    def takes_image(self) -> bool:
        """Whether the pipeline is conditioned on a first frame."""
        return self.plan.takes_image

    def offload(self, device: str, kind: str) -> None:
        """Move the pipeline to a device: whole ("none"), part by part ("model") or layer by layer ("sequential")."""
        if kind == "model":
            self.pipeline.enable_model_cpu_offload(device=device)
        elif kind == "sequential":
            self.pipeline.enable_sequential_cpu_offload(device=device)
        else:
            self.pipeline.to(device)


def transformers_of(pipeline: Any, roles: Sequence[str]) -> dict[str, nn.Module]:
    """role -> transformer of a pipeline that holds these experts."""
    if list(roles) == ["single"]:
        return {"single": pipeline.transformer}
    return {role: pipeline.transformer if role == "high_noise" else pipeline.transformer_2 for role in roles}


def load_model(
    model: ModelPath,
    *,
    pipeline: str | os.PathLike[str] | None = None,
    role: str | None = None,
    device: str = "cpu",
    offload: str = "none",
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
    allow_non_finite: bool = False,
) -> LoadedModel:
    """Load a checkpoint of any layout into a pipeline.

    Args:
        model: MODEL as for `open_checkpoint`.
        pipeline: diffusers folder with text encoder, VAE and scheduler; default: the model's own folder.
        role: of a bare file.
        device: torch device for the run.
        offload: "none", "model" (whole parts to the device in turn) or "sequential" (layer by layer).
        allow_non_finite: as for `open_checkpoint`.

    Raises:
        MissingPipelineError: neither the model's folder nor `pipeline` holds the other parts.
        MissingDependencyError, UnsupportedModelError, and what `open_checkpoint` raises
    """
    require_video_extra()
    check_device(device, offload)
    shown = progress or Silent()
    with open_checkpoint(model, role=role, allow_non_finite=allow_non_finite) as checkpoint:
        folder = pipeline_folder(checkpoint, pipeline)
        plan = plan_checkpoint(checkpoint, folder)
        transformers: dict[str, nn.Module] = {}
        identities: dict[str, Identity] = {}
        for name, expert in checkpoint.experts.items():
            transformers[name], identities[name] = build_transformer(expert, dtype=dtype, progress=shown)
    for warning in same_weights(identity.bf16_root for identity in identities.values()):
        shown.note(f"warning: {warning}")
    made = _tiny(folder, transformers, dtype) if is_tiny(folder) else _diffusers(folder, transformers, dtype)
    made.set_progress_bar_config(disable=True)
    loaded = LoadedModel(made, transformers, identities, plan, digest_components(made))
    loaded.offload(device, offload)
    return loaded


def adopt_pipeline(pipeline: Any, *, allow_non_finite: bool = False) -> LoadedModel:
    """Take a diffusers Wan pipeline that somebody loaded; its own weights, rounded to BF16, are the base.

    Shift and boundary are the pipeline's own, everything else has the model's defaults.

    Raises:
        UsageError: not a Wan pipeline, or one whose weights are not in memory.
        UnknownLayoutError and others: its transformers are no Wan transformers.
        NonFiniteWeightError: a transformer holds NaN or infinity, unless `allow_non_finite`.
    """
    kind = type(pipeline).__name__
    tiny = kind == "TinyWanPipeline"
    first, second = getattr(pipeline, "transformer", None), getattr(pipeline, "transformer_2", None)
    if not isinstance(first, nn.Module) or not (tiny or kind in KNOWN_PIPELINES):
        raise UsageError("not a diffusers Wan pipeline", found=kind, expected=" or ".join(KNOWN_PIPELINES))
    transformers = {"single": first} if second is None else {"high_noise": first, "low_noise": second}
    identities = {}
    for role, module in transformers.items():
        named = dict(module.named_parameters())
        names = {name: to_original(name) for name in named}
        for name, parameter in named.items():
            if parameter.is_meta or names[name] is None:
                raise UsageError(
                    "weights that are not in memory" if parameter.is_meta else "a parameter that no Wan model has",
                    where=f"{role} {name}",
                    todo="give the pipeline as it was loaded, before offloading, adapters or quantization",
                )
        tensors = {str(names[name]): parameter for name, parameter in named.items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        architecture = derive_architecture(shapes, None, f"pipeline {role}")
        identities[role] = _identify(tensors, role, allow_non_finite)
    architecture = replace(
        architecture, num_heads=int(pipeline.transformer.config["num_attention_heads"]), heads_known=True
    )
    roles = tuple(transformers)
    scheduler = pipeline.scheduler.config
    defaults = replace(
        _signature_settings(pipeline) if tiny else default_settings(architecture, roles),
        shift=scheduler.get("flow_shift", scheduler.get("shift")),
        boundary=pipeline.config.get("boundary_ratio"),
    )
    sizes = (
        tiny_sizes(architecture)
        if tiny
        else diffusers_sizes(architecture, pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial)
    )
    vocabulary = pipeline.text_encoder.vocabulary if tiny else None
    plan = ModelPlan(kind, architecture, roles, defaults, pipeline.scheduler, sizes, vocabulary)
    return LoadedModel(pipeline, transformers, identities, plan, digest_components(pipeline))


def _signature_settings(pipeline: Any) -> GenerationSettings:
    """The settings of the tiny pipeline, which are the defaults of its call."""
    given = {name: entry.default for name, entry in inspect.signature(pipeline.__call__).parameters.items()}
    guidance = given["guidance_scale"]
    return GenerationSettings(
        given["height"], given["width"], given["num_frames"], given["num_inference_steps"], None, None, guidance,
        guidance, max_sequence_length=None,
    )  # fmt: skip


def _identify(tensors: Mapping[str, Tensor], role: str, allow_non_finite: bool) -> Identity:
    """The identity of tensors in memory, canonical name -> float tensor; `exact` is of their dtype as they are."""
    digests = {}
    for name, value in tensors.items():
        stored = value.detach().cpu()
        if stored.dtype not in _DTYPE_NAMES:
            raise UnsupportedDtypeError(
                "a dtype that a base cannot have",
                where=name,
                expected="float32, bfloat16 or float16",
                found=stored.dtype,
            )
        exact = hashlib.sha256(tensor_bytes(stored)).hexdigest()
        bf16 = to_bf16(stored) if allow_non_finite else to_finite_bf16(stored, f"pipeline {role}: {name}")
        rounded = hashlib.sha256(tensor_bytes(bf16)).hexdigest()
        digests[name] = TensorDigest(_DTYPE_NAMES[stored.dtype], tuple(stored.shape), exact, rounded)
    return Identity.of(digests)


def check_device(device: str, offload: str) -> None:
    """Check that a run can use this device.

    Raises:
        UsageError
    """
    if offload not in OFFLOAD:
        raise UsageError("no such offloading", expected=", ".join(OFFLOAD), found=offload)
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UsageError("no such device", found=device, expected="cpu, cuda, cuda:0 ...") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use", found=device, todo="--device cpu")
    if offload != "none" and wanted.type == "cpu":
        raise UsageError("offloading moves parts to another device", expected="--device cuda", found=device)


def _tiny(folder: Path, transformers: Mapping[str, nn.Module], dtype: torch.dtype) -> Any:
    from .tiny.pipeline import assemble_tiny_pipeline

    return assemble_tiny_pipeline(folder, transformers["high_noise"], transformers["low_noise"], dtype)[0]


def _diffusers(folder: Path, transformers: Mapping[str, nn.Module], dtype: torch.dtype) -> Any:
    import diffusers

    experts = {
        "transformer": transformers.get("single", transformers.get("high_noise")),
        "transformer_2": transformers.get("low_noise"),
    }
    pipeline_class = getattr(diffusers, read_index(folder)["_class_name"])
    with read_by_library("the pipeline cannot be loaded", folder), _quietly():
        # The VAE decodes in fp32, as the original code does.
        return pipeline_class.from_pretrained(
            folder,
            **experts,
            torch_dtype={"vae": torch.float32, "default": dtype},
            local_files_only=True,
            use_safetensors=True,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Loading draws three progress bars of its own, and newer releases warn of names that older ones need."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for module in shown:
            module.enable_progress_bar()
