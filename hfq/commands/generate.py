"""`hfq generate`: a clip from a base, or from a base with a delta on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hfq.commands.calibrate import generation_options, settings_from
from hfq.console import BarProgress, emit, json_option, note

__all__ = ["generate_command"]


@click.command("generate")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option("--delta", help="Quantize with this delta; without it the base itself runs.")
@click.option("--prompt", required=True, help="What the clip shows.")
@click.option("-o", "--out", type=click.Path(), required=True, help="File to make: .mp4 or .gif.")
@click.option("--fps", type=click.IntRange(min=1), default=16, show_default=True, help="Frames per second of the file.")
@click.option("--zoom", type=click.IntRange(min=1, max=64), default=1, show_default=True, help="Enlarge every pixel.")
@generation_options
@json_option
def generate_command(
    base: str, delta: str | None, prompt: str, out: str, fps: int, zoom: int, as_json: bool, **given: Any
) -> None:
    """Generate one clip; a delta's quantized linears are simulated in the model's dtype.

    \b
    hfq generate --base MODEL --prompt "a red circle moving left" -o base.mp4
    hfq generate --base MODEL --delta DELTA --prompt "a red circle moving left" -o quantized.mp4
    """
    import torch

    from hfq.convert.apply import apply, summary
    from hfq.convert.clip import unused_clip_lines, unused_clips
    from hfq.convert.generation import load_frames, plan_schedule, prepare_scheduler, run_pipeline
    from hfq.convert.pipelines import load_model
    from hfq.convert.prompt_overlap import prompt_line
    from hfq.convert.video import enlarge, refuse_clip, write_clip
    from hfq.paths import open_delta

    destination = Path(out)
    refuse_clip(destination)
    opened = None if delta is None else open_delta(delta)
    flattered = None if opened is None else prompt_line(opened.document, prompt)
    if flattered is not None:
        note(flattered)
    loaded = load_model(
        base,
        pipeline=given["pipeline"],
        role=given["role"],
        # A delta is put on in main memory first; offloading hooks come after it.
        device="cpu" if opened is not None else given["device"],
        offload="none" if opened is not None else given["offload"],
        dtype=getattr(torch, given["dtype"]),
        progress=BarProgress(),
    )
    settings = settings_from(loaded.defaults, given)
    replaced = {} if opened is None else apply(loaded.pipeline, opened)
    if opened is not None:
        loaded.offload(given["device"], given["offload"])
    loaded.plan.sizes.check(settings)
    given_frames = load_frames(
        loaded.architecture.model_type, loaded.takes_image, given["image"], given["last_image"], settings, "the clip"
    )
    prepare_scheduler(loaded.pipeline, settings)
    plan_schedule(loaded.pipeline.scheduler, settings, list(loaded.transformers))
    loaded.pipeline.set_progress_bar_config(disable=None, leave=False)
    frames = run_pipeline(loaded.pipeline, prompt, settings, image=given_frames.first, last_image=given_frames.last)
    assert frames is not None
    write_clip(destination, enlarge(frames, zoom), fps)
    unused = [] if opened is None else unused_clips(loaded.pipeline)
    for line in unused_clip_lines(unused):
        note(f"warning: {line}")
    counts = summary(replaced)
    document = {
        "clip": str(destination),
        "delta": None if opened is None else opened.id,
        "quantized": counts,
        "prompt": prompt,
        "unused_clips": [{"expert": role, "site": site, "bin": index} for role, site, index in unused],
        "settings": settings.__dict__,
    }
    what = (
        "the base"
        if opened is None
        else f"delta:{opened.id[:12]}, "
        + ", ".join(f"{count} quantized linears in {role}" for role, count in counts.items())
    )
    emit(document, f"clip        {destination}  ({frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]})\n"
                   f"model       {what}", as_json)  # fmt: skip
