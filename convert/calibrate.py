"""Calibration: run the real pipeline once over a prompt set and keep what its linears saw."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from hfq.schema.errors import InterruptedRunError, UsageError

from .architecture import Architecture
from .calibration import Calibration, load_calibration
from .calibration_estimate import Estimate, estimate, input_groups
from .calibration_options import CalibrationOptions
from .calibration_work import CALIBRATION, CalibrationWork, finished_calibration
from .checkpoint import Checkpoint
from .collector import Collector, GroupInput
from .generation import (
    Frames,
    GenerationSettings,
    load_frames,
    plan_schedule,
    prepare_scheduler,
    run_pipeline,
    scheduler_for,
)
from .histogram import BINS_PER_OCTAVE, COUNT_LIMIT, OCTAVES
from .identity import same_weights
from .keymap import to_diffusers
from .pipeline_plan import ModelPlan
from .pipelines import LoadedModel, adopt_pipeline, load_model
from .progress import Progress, Silent
from .prompts import Prompt, check_prompts, distinct_prompts, read_prompts, repeats_line
from .schedule import ExpertSchedule
from .work_folder import check_output

__all__ = ["CalibrationCost", "CalibrationOptions", "Estimate", "calibrate", "calibrate_model", "collector_of",
           "estimate", "plan_run"]  # fmt: skip

_DTYPES: Final = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


@dataclass(frozen=True)
class CalibrationCost:
    """What it took: seconds in all, and seconds of it for statistics."""

    seconds: float
    statistics_seconds: float

    @property
    def overhead(self) -> float:
        """Statistics time as a share of generation without statistics."""
        plain = self.seconds - self.statistics_seconds
        return self.statistics_seconds / plain if plain > 0 else 0.0


def calibrate(
    source: Any,
    prompts: Sequence[str | Prompt] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pipeline: str | os.PathLike[str] | None = None,
    role: str | None = None,
    device: str = "cpu",
    offload: str = "none",
    dtype: torch.dtype = torch.bfloat16,
    resume: bool = False,
    progress: Progress | None = None,
    allow_non_finite: bool = False,
    **settings: Any,
) -> Calibration:
    """Calibrate a checkpoint or a pipeline that is already loaded.

    Args:
        source: a Checkpoint, a path as for `open_checkpoint`, or a diffusers Wan pipeline.
        prompts: texts or Prompts, or the path of a prompt file.
        out: folder to make.
        pipeline, role, device, offload, dtype: for a checkpoint, see `load_model`.
        resume: continue in `OUT.partial` after a crash.
        allow_non_finite: take NaN and infinity in the weights; a Checkpoint brings its own permission.
        settings: fields of `GenerationSettings` (steps, height, ...) and of `CalibrationOptions` (rows, by, ...); what
            is not given has the model's own default.

    Raises:
        UsageError: an unknown setting, and what `calibrate_model` and `load_model` raise.
    """
    known = {*CalibrationOptions.__dataclass_fields__, *GenerationSettings.__dataclass_fields__}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UsageError("an unknown setting", expected=", ".join(sorted(known)), found=unknown[0])
    chosen = {name: value for name, value in settings.items() if name in CalibrationOptions.__dataclass_fields__}
    options = CalibrationOptions(**{**chosen, "by": tuple(chosen.get("by", ()))})
    if isinstance(prompts, str | os.PathLike):
        listed = read_prompts(prompts)
    else:
        listed = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    check_output(Path(out), CALIBRATION, resume=resume)
    if isinstance(source, Checkpoint | str | os.PathLike | Mapping):
        if isinstance(source, Checkpoint):
            role = next(iter(source.experts)) if len(source.experts) == 1 else None
            allow_non_finite = source.allow_non_finite
            source = source.path
        model = load_model(
            source, pipeline=pipeline, role=role, device=device, offload=offload, dtype=dtype, progress=progress,
            allow_non_finite=allow_non_finite,
        )  # fmt: skip
    else:
        model = adopt_pipeline(source, allow_non_finite=allow_non_finite)
        for warning in same_weights(identity.bf16_root for identity in model.identities.values()):
            (progress or Silent()).note(f"warning: {warning}")
    changes = {name: value for name, value in settings.items() if name in GenerationSettings.__dataclass_fields__}
    generation = replace(model.defaults, **changes)
    return calibrate_model(model, listed, out, generation, options, resume=resume, progress=progress)[0]


def plan_run(
    plan: ModelPlan, prompts: Sequence[Prompt], settings: GenerationSettings, options: CalibrationOptions
) -> tuple[list[float], dict[str, ExpertSchedule]]:
    """Timesteps and schedules of a run, and every check that needs no weight: a wrong word in the last prompt must not
    end a run of hours.

    Raises:
        UsageError, UnknownWordError, MissingPathError, MalformedFileError
    """
    check_prompts(prompts, "prompts")
    plan.sizes.check(settings)
    timesteps, schedules = plan_schedule(scheduler_for(plan.scheduler, settings), settings, plan.roles)
    if plan.vocabulary is not None:
        for text in (settings.negative_prompt, *(prompt.text for prompt in prompts)):
            plan.vocabulary.tokenize(text)
    rows = plan.sizes.tokens(settings, plan.architecture.patch_size)
    rows = rows if options.rows is None else min(rows, options.rows)
    samples = len(prompts) * rows * max(len(schedule.calls) for schedule in schedules.values())
    if samples > COUNT_LIMIT:
        raise UsageError(
            "more samples than a histogram can count",
            expected=f"at most {COUNT_LIMIT}",
            found=samples,
            todo="use fewer rows per call (--rows)",
        )
    for prompt in prompts:
        _frames(plan, prompt, options, settings)
    return timesteps, schedules


def _frames(plan: ModelPlan, prompt: Prompt, options: CalibrationOptions, settings: GenerationSettings) -> Frames:
    image, last_image = prompt.image or options.image, prompt.last_image or options.last_image
    return load_frames(plan.architecture.model_type, plan.takes_image, image, last_image, settings, prompt.label)


def calibrate_model(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    out: str | os.PathLike[str],
    settings: GenerationSettings,
    options: CalibrationOptions,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[Calibration, CalibrationCost]:
    """Run every prompt through the whole schedule and write the calibration.

    Args:
        model: from `load_model` or `adopt_pipeline`; its scheduler and boundary are as before afterwards.
        prompts: at least one; one that occurs again is run once.
        out: folder to make; `OUT.partial` holds finished prompts while it runs.
        resume: continue in `OUT.partial` after a crash; finished prompts are not run again, and a finished calibration
            of the same inputs is returned.

    Raises:
        OutputExistsError, ResumeMismatchError, NonFiniteActivationError, and what `plan_run` raises
        InterruptedRunError: Ctrl-C; finished prompts are kept.
        UsageError: the device's memory is too small.
    """
    shown = progress or Silent()
    repeats = repeats_line(prompts)
    if repeats is not None and progress is not None:
        progress.note(repeats)
    prompts = distinct_prompts(prompts)
    timesteps, schedules = plan_run(model.plan, prompts, settings, options)
    # Only the digests of the frames are kept: a thousand first frames would fill the memory.
    digests = {prompt: _frames(model.plan, prompt, options, settings).without_images() for prompt in prompts}
    header = _header(model, settings, options, schedules)
    if resume and Path(out).exists():
        finished = finished_calibration(
            Path(out), header, digests, keep_calls=options.kept_calls, keep_parts=options.parts
        )
        shown.note(f"{out} was complete; nothing was left to do")
        return finished, CalibrationCost(0.0, 0.0)
    work = CalibrationWork.begin(Path(out), header, digests, keep_calls=options.kept_calls, resume=resume)
    try:
        cost = _run(model, prompts, settings, options, schedules, timesteps, digests, work, shown)
    finally:
        work.close()
        shown.finish()
    return load_calibration(out), cost


def _run(
    model: LoadedModel, prompts: Sequence[Prompt], settings: GenerationSettings, options: CalibrationOptions,
    schedules: Mapping[str, ExpertSchedule], timesteps: Sequence[float], digests: Mapping[Prompt, Frames],
    work: CalibrationWork, shown: Progress,
) -> CalibrationCost:  # fmt: skip
    """Run the prompts that are not done yet, and publish."""
    collector = collector_of(model.transformers, model.architecture, schedules, timesteps, settings, options, shown)
    waiting = [prompt for prompt in prompts if not work.is_done(prompt)]
    shown.start("calibrating", len(waiting) * settings.steps * len(settings.branches), "forwards")
    started = time.perf_counter()
    try:
        with _prepared(model.pipeline, settings), collector.attached(), torch.no_grad():
            for prompt in waiting:
                frames = _frames(model.plan, prompt, options, settings)
                if frames.without_images() != digests[prompt]:
                    raise UsageError("an image changed while the calibration ran", where=prompt.label)
                collector.begin(work.key(prompt))
                seeded = settings.changed(seed=prompt.seed(settings.seed))
                run_pipeline(
                    model.pipeline, prompt.text, seeded, image=frames.first, last_image=frames.last, decode=False
                )
                work.write_part(prompt, collector.finish())
        cost = CalibrationCost(time.perf_counter() - started, collector.seconds)
        work.publish(keep_parts=options.parts, progress=shown)
        return cost
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; finished prompts are kept", where=work.partial, todo="go on with --resume"
        ) from None
    except torch.OutOfMemoryError as error:
        raise UsageError(
            "the device's memory is too small",
            found=str(error).split(". ")[0],
            todo="use --offload model or sequential, fewer frames, or a smaller size; then --resume",
        ) from None


@contextlib.contextmanager
def _prepared(pipeline: Any, settings: GenerationSettings) -> Iterator[None]:
    """The pipeline belongs to somebody: scheduler and boundary are the run's for the run alone."""
    scheduler, boundary = pipeline.scheduler, pipeline.config.get("boundary_ratio")
    prepare_scheduler(pipeline, settings)
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        pipeline.register_to_config(boundary_ratio=boundary)


def _header(
    model: LoadedModel,
    settings: GenerationSettings,
    options: CalibrationOptions,
    schedules: Mapping[str, ExpertSchedule],
) -> dict[str, Any]:
    """What the parts of one calibration share; device, offloading and software versions have no place in it."""
    guidance = dict.fromkeys(model.transformers, settings.guidance)
    if "low_noise" in guidance and settings.guidance_low is not None:
        guidance["low_noise"] = settings.guidance_low
    return {
        "base": {
            "model_type": model.architecture.model_type,
            "experts": {
                role: {
                    "bf16_root": identity.bf16_root,
                    "tensors": {name: entry.bf16 for name, entry in identity.tensors.items()},
                }
                for role, identity in model.identities.items()
            },
        },
        "settings": {
            "pipeline": model.plan.pipeline_class,
            "scheduler": type(model.pipeline.scheduler).__name__,
            "components": model.components,
            "shift": settings.shift,
            "boundary": settings.boundary,
            "steps": settings.steps,
            "guidance": guidance,
            "height": settings.height,
            "width": settings.width,
            "frames": settings.frames,
            "seed": settings.seed,
            "negative_prompt": settings.negative_prompt,
            "max_sequence_length": settings.max_sequence_length,
            "dtype": _dtype_name(model.transformers),
            "image": "per-prompt" if model.takes_image else None,
            "rows": "all" if options.rows is None else options.rows,
            "by": sorted(options.by),
            "keep_inputs": options.keep_inputs,
            # Absent where none are kept: such a calibration has the id that it had before calls could be kept.
            **({"keep_calls": options.sampled_calls} if options.sampled_calls else {}),
        },
        "histogram": {"bins_per_octave": BINS_PER_OCTAVE, "octaves": OCTAVES},
        "schedule": {role: schedule.to_json() for role, schedule in schedules.items()},
    }


def _dtype_name(transformers: Mapping[str, nn.Module]) -> str:
    """The dtype in which the linears of the blocks run."""
    found = {
        parameter.dtype
        for module in transformers.values()
        for name, parameter in module.named_parameters()
        if ".ffn.net.2.weight" in name
    }
    dtype = found.pop() if len(found) == 1 else None
    if dtype not in _DTYPES:
        raise UsageError(
            "transformers in a dtype that cannot be calibrated", expected=" or ".join(_DTYPES.values()), found=dtype
        )
    return _DTYPES[dtype]


def collector_of(
    transformers: Mapping[str, nn.Module],
    architecture: Architecture,
    schedules: Mapping[str, ExpertSchedule],
    timesteps: Sequence[float],
    settings: GenerationSettings,
    options: CalibrationOptions,
    progress: Progress,
) -> Collector:
    """The collector of a calibration's statistics.

    Raises:
        UsageError: a transformer whose linears are not plain ones.
    """
    inputs = []
    for role, transformer in transformers.items():
        for group, (site, _) in input_groups(architecture).items():
            module = transformer.get_submodule(to_diffusers(f"{site}.weight").removesuffix(".weight"))
            if not isinstance(module, nn.Linear):
                raise UsageError("not a linear", where=f"{role} {site}", found=type(module).__name__)
            inputs.append(GroupInput(role, group, module))
    return Collector(
        transformers,
        inputs,
        schedules,
        timesteps,
        rows=options.rows,
        by=options.by,
        keep_inputs=options.keep_inputs,
        keep_calls=options.kept_calls,
        sampled_calls=options.sampled_calls,
        seed=settings.seed,
        on_call=progress.advance,
    )
