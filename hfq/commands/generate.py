"""`hfq generate`: a clip from a base, or from a base with a delta on top."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hfq.commands.calibrate import generation_options, settings_from
from hfq.commands.clips import chosen_key, signing_options
from hfq.console import BarProgress, emit, json_option, note

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hfq.registry.clips.clip_document import ClipDocument
    from hfq.registry.clips.keys import SigningKey

__all__ = ["generate_command"]


@click.command("generate")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option("--delta", help="Quantize with this delta; without it the base itself runs.")
@click.option("--prompt", required=True, help="What the clip shows.")
@click.option("-o", "--out", type=click.Path(), required=True, help="File to make: .mp4 or .gif.")
@click.option("--fps", type=click.IntRange(min=1), default=16, show_default=True, help="Frames per second of the file.")
@click.option("--zoom", type=click.IntRange(min=1, max=64), default=1, show_default=True, help="Enlarge every pixel.")
@click.option("--store-prompt", is_flag=True, help="Store the prompt's text in the clip, not its hash alone.")
@click.option("--no-record", is_flag=True, help="Do not record the clip in the registry.")
@signing_options
@generation_options
@json_option
def generate_command(
    base: str,
    delta: str | None,
    prompt: str,
    out: str,
    fps: int,
    zoom: int,
    store_prompt: bool,
    no_record: bool,
    sign: bool | None,
    key: str | None,
    certificates: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Generate one clip; a delta's quantized linears are simulated in the model's dtype.

    An MP4 says what made it: delta, base, seed, settings and the prompt's hash, in its comment tag and, with a key, in
    a signed manifest. It is recorded in the registry when its delta is registered, so that `hfq audit` knows it again.

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
    from hfq.convert.video import enlarge, refuse_clip
    from hfq.paths import open_delta
    from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256

    destination = Path(out)
    refuse_clip(destination)
    signing_key = chosen_key(sign, key, certificates) if destination.suffix == ".mp4" else None
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
    _, schedules = plan_schedule(loaded.pipeline.scheduler, settings, list(loaded.transformers))
    loaded.pipeline.set_progress_bar_config(disable=None, leave=False)
    frames = run_pipeline(loaded.pipeline, prompt, settings, image=given_frames.first, last_image=given_frames.last)
    assert frames is not None
    roots = {role: identity.bf16_root for role, identity in loaded.identities.items()}
    made_by = ClipDocument(
        delta=None if opened is None else opened.id,
        base=roots if opened is None else {role: opened.root(role) for role in opened.roles},
        prompt_sha256=prompt_sha256(prompt),
        prompt=prompt if store_prompt else None,
        seed=settings.seed,
        settings={name: value for name, value in settings.__dict__.items() if name not in ("seed", "negative_prompt")},
        expert_steps={role: len({call.step for call in schedule.calls}) for role, schedule in schedules.items()},
    )
    manifest = _write(destination, enlarge(frames, zoom), fps, made_by, signing_key)
    recorded = not no_record and _record(destination, made_by, manifest)
    unused = [] if opened is None else unused_clips(loaded.pipeline)
    for line in unused_clip_lines(unused):
        note(f"warning: {line}")
    counts = summary(replaced)
    document = {
        "clip": str(destination),
        "delta": None if opened is None else opened.id,
        "quantized": counts,
        "prompt": prompt,
        "signed": manifest is not None,
        "recorded": recorded,
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


def _write(
    destination: Path, frames: npt.NDArray[np.uint8], fps: int, made_by: ClipDocument, key: SigningKey | None
) -> bytes | None:
    """Write the clip, with what it says of itself where the container can hold that; returns the signed manifest."""
    from hfq.convert.video import write_clip
    from hfq.registry.clips.stamp import stamp_clip

    if destination.suffix != ".mp4":
        write_clip(destination, frames, fps)
        return None
    with tempfile.TemporaryDirectory(prefix=".hfq-clip-", dir=destination.parent) as folder:
        plain = Path(folder) / "clip.mp4"
        write_clip(plain, frames, fps)
        return stamp_clip(plain, destination, made_by, key).manifest


def _record(destination: Path, made_by: ClipDocument, manifest: bytes | None) -> bool:
    """Record the clip if a registry can; says why when it cannot."""
    from hfq.registry import open_registry
    from hfq.schema.errors import UnknownIdError

    registry = open_registry()
    if destination.suffix != ".mp4":
        note("not recorded: a GIF says nothing of itself and cannot be audited; write an .mp4")
    elif registry.status().state in ("absent", "empty"):
        note("not recorded: there is no registry yet; `hfq register DELTA` makes one")
    else:
        try:
            registry.record_clip(destination, made_by, manifest=manifest, signed=manifest is not None)
        except UnknownIdError:
            note("not recorded: the delta is not registered; `hfq register DELTA`, then `hfq stamp`")
            return False
        return True
    return False
