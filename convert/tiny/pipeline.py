"""The tiny Wan as a diffusers pipeline.

`TinyWanPipeline` inherits `WanPipeline.__call__`: the denoising loop, the choice of the expert and both guidance
branches are diffusers' own, so that whatever is calibrated or generated with the tiny model runs the code that runs a
full one. Only the ends differ: prompts go through a small table instead of UMT5, and latents are pixels.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.generation import GenerationSettings
from hfq.convert.side_files import make_scheduler, read_by_library, read_object
from hfq.convert.tiny.text import TinyTextEncoder
from hfq.convert.transformer import build_transformer
from hfq.schema.errors import ShapeMismatchError, UsageError

__all__ = [
    "WEIGHTS",
    "PixelVAE",
    "TinyWanPipeline",
    "assemble_tiny_pipeline",
    "load_tiny_pipeline",
    "read_tiny_settings",
]

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the model that ships with the package, in the layout of an original Wan 2.2 release."""

_LARGEST: Final = 100_000
"""Pixels, frames or steps: more is a mistake that takes all memory."""

_SCHEDULERS = {cls.__name__: cls for cls in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)}


class PixelVAE(nn.Module):
    """Stands where a VAE stands and does nothing: the tiny model denoises pixels in [-1, 1].

    `scale_factor_temporal` is 2 only because `WanPipeline` wants `num_frames` to leave remainder 1, which no number
    does for a factor of 1; `TinyWanPipeline.prepare_latents` compresses no frames.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            z_dim=3,
            latents_mean=[0.0, 0.0, 0.0],
            latents_std=[1.0, 1.0, 1.0],
            scale_factor_spatial=1,
            scale_factor_temporal=2,
        )
        self.register_buffer("_place", torch.zeros(()), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Always float32: decoding must not round the clip."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the pipeline is."""
        return self.get_buffer("_place").device

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return `latents` [B, 3, F, H, W] as they are, in a tuple as diffusers expects it."""
        if return_dict:
            raise UsageError("the pixel VAE returns tuples only", expected="return_dict=False")
        return (latents,)


class TinyWanPipeline(WanPipeline):  # type: ignore[misc]
    """`WanPipeline` over the tiny experts; see the module's docstring for what is overridden."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 24,
        width: int = 24,
        num_frames: int = 9,
        num_inference_steps: int = 40,
        guidance_scale: float = 3.0,
        **settings: Any,
    ) -> Any:
        """`WanPipeline.__call__` with the size, steps and guidance that the model was trained and measured for.

        Raises:
            UnknownWordError: a prompt with a word outside the vocabulary.
            UsageError: two words for one slot, or a size that is not a multiple of the patch.
        """
        return super().__call__(
            prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance_scale, **settings
        )

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """diffusers' own checks, with the tiny model's patch of 4 pixels in place of 16.

        Raises:
            UsageError: height or width is not a multiple of the patch.
        """
        _, rows, columns = self.transformer.config.patch_size
        if height % rows or width % columns:
            raise UsageError(
                "the tiny model cannot draw this size",
                expected=f"height and width in multiples of {rows} and {columns}",
                found=f"{height}x{width}",
            )
        # 16 passes diffusers' fixed test of the size; everything else is checked as it came.
        super().check_inputs(prompt, negative_prompt, 16, 16, *args, **kwargs)

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int = 4,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Text tokens [B * num_videos_per_prompt, 4, text_dim] of the prompt and, under guidance, of the negative one.

        The negative prompt defaults to the empty one. `max_sequence_length` has no meaning here: a sentence is always
        four tokens.

        Raises:
            UnknownWordError, UsageError: see `Vocabulary.tokenize`.
        """

        def encode(texts: list[str]) -> Tensor:
            tokens: Tensor = self.text_encoder(texts)
            return tokens.to(device=device, dtype=dtype).repeat_interleave(num_videos_per_prompt, dim=0)

        if prompt_embeds is None:
            if prompt is None:
                raise UsageError("no prompt", expected="`prompt` or `prompt_embeds`")
            prompt_embeds = encode([prompt] if isinstance(prompt, str) else prompt)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            batch = prompt_embeds.shape[0] // num_videos_per_prompt
            if negative_prompt is None:
                negative_prompt = ""
            texts = [negative_prompt] * batch if isinstance(negative_prompt, str) else negative_prompt
            if len(texts) != batch:
                raise UsageError("one negative prompt per prompt, or one for all", expected=batch, found=len(texts))
            negative_prompt_embeds = encode(texts)
        return prompt_embeds, negative_prompt_embeds

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int = 3,
        height: int = 24,
        width: int = 24,
        num_frames: int = 9,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Noise [B, C, F, H, W]: one latent frame per frame, one latent pixel per pixel.

        Raises:
            UsageError: a list of generators that is not one per clip.
        """
        if latents is not None:
            return latents.to(device=device, dtype=dtype)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise UsageError("one generator per clip, or one for all", expected=batch_size, found=len(generator))
        shape = (batch_size, num_channels_latents, num_frames, height, width)
        noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return noise


def read_tiny_settings(folder: Path) -> tuple[Any, GenerationSettings]:
    """The scheduler and the settings that the model was trained for, from `pipeline.json`.

    Raises:
        MalformedFileError: a file that says something else than it should.
    """
    where = folder / "pipeline.json"
    settings = read_object(where)
    with read_by_library("not the settings of a tiny Wan", where):
        config = dict(settings["scheduler"]["config"])
        made = _SCHEDULERS[settings["scheduler"]["class"]]
        guidance = float(settings["guidance_scale"])
        generation = _settings(
            height=int(settings["height"]),
            width=int(settings["width"]),
            frames=int(settings["num_frames"]),
            steps=int(settings["num_inference_steps"]),
            shift=float(config["flow_shift"] if "flow_shift" in config else config["shift"]),
            boundary=float(settings["boundary_ratio"]),
            guidance=guidance,
            guidance_low=guidance,
            max_sequence_length=None,
        )
    return make_scheduler(made, config, where), generation


def _settings(**values: Any) -> GenerationSettings:
    sizes = {name: value for name, value in values.items() if isinstance(value, int) and value > _LARGEST}
    if sizes:
        raise ValueError(f"beyond {_LARGEST}: {', '.join(sizes)}")
    try:
        return GenerationSettings(**values)
    except UsageError as error:  # of the file, and not of the user
        raise ValueError(f"{error.what}: {error.found}") from None


def assemble_tiny_pipeline(
    folder: Path, high_noise: nn.Module, low_noise: nn.Module, dtype: torch.dtype = torch.bfloat16
) -> tuple[TinyWanPipeline, GenerationSettings]:
    """The pipeline around two experts that have been built, and the settings that it was trained for.

    Args:
        folder: holds `text_encoder.safetensors`, `vocab.json` and `pipeline.json` (scheduler and its settings, boundary
            ratio, size, frames, steps, guidance).

    Raises:
        MalformedFileError: a file that says something else than it should.
        ShapeMismatchError: text tables of another model.
    """
    scheduler, generation = read_tiny_settings(folder)
    text_encoder = TinyTextEncoder.load(folder, dtype)
    width = int(high_noise.config["text_dim"])  # type: ignore[index]
    if text_encoder.text_dim != width:
        raise ShapeMismatchError(
            "the text tables do not fit the transformers",
            where=folder / "text_encoder.safetensors",
            expected=f"width {width}",
            found=text_encoder.text_dim,
        )
    pipeline = TinyWanPipeline(
        tokenizer=None,
        text_encoder=text_encoder,
        vae=PixelVAE(),
        scheduler=scheduler,
        transformer=high_noise,
        transformer_2=low_noise,
        boundary_ratio=generation.boundary,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, generation


def load_tiny_pipeline(folder: Path = WEIGHTS, torch_dtype: torch.dtype = torch.bfloat16) -> TinyWanPipeline:
    """The tiny pipeline of a folder in the original Wan 2.2 layout.

    Raises:
        MalformedFileError, and what `open_checkpoint` raises
    """
    with open_checkpoint(folder) as checkpoint:
        experts = {role: build_transformer(expert, dtype=torch_dtype)[0] for role, expert in checkpoint.experts.items()}
    return assemble_tiny_pipeline(Path(folder), experts["high_noise"], experts["low_noise"], torch_dtype)[0]
