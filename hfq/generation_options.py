"""The options that decide how a pipeline runs, shared by commands that run one."""

from __future__ import annotations

from typing import Any

import click

from hfq.console import allow_non_finite_option

__all__ = ["generation_options", "settings_from"]

_ROLES = click.Choice(["high_noise", "low_noise", "single"])


def generation_options(command: Any) -> Any:
    """Add them to a command."""
    options = [
        click.option("--pipeline", type=click.Path(), help="Diffusers folder with text encoder, VAE and scheduler."),
        click.option("--role", type=_ROLES, help="Role of a bare file."),
        click.option("--image", help='First frame for image-to-video: a file, or "blank".'),
        click.option("--last-image", help='Last frame for first-last-frame-to-video: a file, or "blank".'),
        click.option("--negative-prompt", help="Text of the unconditional branch."),
        click.option("--height", type=int, help="Pixels."),
        click.option("--width", type=int, help="Pixels."),
        click.option("--frames", type=int, help="Frames of the clip."),
        click.option("--steps", type=int, help="Steps of the sampler (default: the official number)."),
        click.option("--shift", type=float, help="Flow shift of the schedule (default: the official one)."),
        click.option("--boundary", type=float, help="Share of the noise range above which the high-noise expert runs."),
        click.option("--guidance", type=float, help="Guidance scale of the high-noise (or only) expert."),
        click.option("--guidance-low", type=float, help="Guidance scale of the low-noise expert."),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of the initial noise (default 42)."),
        click.option("--device", default="cpu", show_default=True, help="torch device: cpu, cuda, cuda:0 ..."),
        click.option("--offload", type=click.Choice(["none", "model", "sequential"]), default="none", show_default=True,
                     help="Keep what is not running in main memory: whole models, or layer by layer (sequential)."),
        click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True,
                     help="Dtype in which the transformer runs."),
        allow_non_finite_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def settings_from(defaults: Any, given: dict[str, Any]) -> Any:
    """Generation settings: the model's own, with what the user gave."""
    names = ("height", "width", "frames", "steps", "shift", "boundary", "guidance", "guidance_low", "seed",
             "negative_prompt")  # fmt: skip
    return defaults.changed(**{name: given[name] for name in names})
