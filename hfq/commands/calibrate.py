"""`hfq calibrate`: run the model once over a prompt set and keep statistics; or join calibrations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hfq.console import BarProgress, emit, format_bytes, format_seconds, json_option, note
from hfq.generation_options import generation_options, settings_from
from hfq.schema.errors import UsageError

__all__ = ["calibrate_command"]


@click.command("calibrate")
@click.argument("sources", nargs=-1, metavar="[MODEL | CAL...]")
@click.option("--prompts", type=click.Path(), help="Prompt file: plain lines, JSON lines or a JSON array.")
@click.option("-o", "--out", type=click.Path(), help="Folder to make.")
@click.option("--merge", is_flag=True, help="Join calibrations, or parts of them, instead of running a model.")
@click.option("--parts", is_flag=True, help="Keep one mergeable part per prompt, so that any subset can be used later.")
@click.option("--rows", default="4096", show_default=True, help="Rows per call in the histograms, or all.")
@click.option("--by", default="", help="Extra histogram keys: bins, branch or bins,branch.")
@click.option(
    "--keep-inputs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Input rows kept per expert, input and timestep bin.",
)
@click.option("--keep-calls", type=click.IntRange(min=0, max=1000), show_default="4 with --keep-inputs, else 0",
              help="3 N model inputs per expert and branch are kept, over its steps, for `hfq analyze`.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on in OUT.partial; finished prompts are not run again.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print memory, disk and time, and stop: no weight is read, some forwards are measured.",
)
@generation_options
@json_option
def calibrate_command(sources: tuple[str, ...], out: str | None, merge: bool, as_json: bool, **given: Any) -> None:
    """Run MODEL's real pipeline over a prompt set and keep mergeable statistics of every linear's input.

    Percentiles, maxima and masks for any percentile or alpha are derived from them later, without running the model
    again. A JSON line of the prompt file is {"prompt": ..., "id", "category", "image", "last_image": optional}.

    \b
    hfq calibrate MODEL --prompts prompts.txt -o cal
    hfq calibrate --merge cal-a cal-b -o cal
    """
    if merge:
        _merge(sources, out, as_json)
        return
    if len(sources) != 1 or given["prompts"] is None:
        raise UsageError("nothing to calibrate", expected="one MODEL and --prompts FILE, or --merge CAL CAL ... -o CAL")
    if out is None and not given["dry_run"]:
        raise click.UsageError("Missing option '-o' / '--out'.")
    _run(sources[0], out, as_json, given)


def _merge(sources: tuple[str, ...], out: str | None, as_json: bool) -> None:
    from hfq.convert.calibration_merge import merge_calibrations

    context = click.get_current_context()
    beside = ("sources", "merge", "out", "as_json")
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in beside and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError("--merge joins what is there and takes no setting of a run", found=parameter.opts[0])
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    progress = BarProgress()
    merged = merge_calibrations(sources, out, progress=progress)
    emit(_described(merged), _text(merged, Path(out)), as_json)


def _run(model: str, out: str | None, as_json: bool, given: dict[str, Any]) -> None:
    import torch

    from hfq.convert.calibrate import CalibrationOptions, calibrate_model, estimate, plan_run
    from hfq.convert.calibration_timing import measure_run_time
    from hfq.convert.calibration_work import CALIBRATION
    from hfq.convert.pipeline_plan import plan_model
    from hfq.convert.pipelines import check_device, load_model
    from hfq.convert.prompts import distinct_prompts, read_prompts, repeats_line
    from hfq.convert.work_folder import check_output

    listed = read_prompts(given["prompts"])
    prompts, repeats = distinct_prompts(listed), repeats_line(listed)
    if repeats is not None:
        note(repeats)
    options = CalibrationOptions(
        rows=_rows(given["rows"]), by=_by(given["by"]), keep_inputs=given["keep_inputs"],
        keep_calls=given["keep_calls"], parts=given["parts"], image=given["image"], last_image=given["last_image"],
    )  # fmt: skip
    if out is not None:
        check_output(Path(out), CALIBRATION, resume=given["resume"])
    place = {"pipeline": given["pipeline"], "role": given["role"]}
    plan = plan_model(model, **place)
    settings = settings_from(plan.defaults, given)
    _, schedules = plan_run(plan, prompts, settings, options)
    dtype = getattr(torch, given["dtype"])
    expected = estimate(plan, settings, schedules, options, len(prompts), dtype_bytes=dtype.itemsize)
    free = shutil.disk_usage(Path(out).parent if out is not None else Path()).free
    lines = [
        f"memory      about {format_bytes(expected.model_bytes + expected.statistics_bytes)}: transformers "
        f"{format_bytes(expected.model_bytes)}, statistics {format_bytes(expected.statistics_bytes)} "
        "(text encoder, VAE and activations not counted)",
        f"disk        about {format_bytes(expected.disk_bytes)} while it runs, {format_bytes(free)} free",
        *(
            [f"kept calls  {format_bytes(expected.calls_bytes)} of one prompt, counted in both"]
            if options.kept_calls
            else []
        ),
        f"work        {len(prompts)} prompts, {expected.forwards} forwards of {expected.tokens} tokens",
    ]
    if given["dry_run"]:
        check_device(given["device"], given["offload"])
        took = measure_run_time(plan, settings, options, expected, device=given["device"], dtype=dtype)
        lines.append(
            f"time        about {format_seconds(took.seconds)} without loading and text encoder; measured: {took.basis}"
        )
        document = {"free_bytes": free, "seconds": took.seconds, "seconds_basis": took.basis}
        emit({**expected.__dict__, **document}, "\n".join(lines), as_json)
        return
    for line in lines:
        note(line)
    progress = BarProgress()
    loaded = load_model(
        model, **place, device=given["device"], offload=given["offload"], dtype=dtype,
        progress=progress, allow_non_finite=given["allow_non_finite"],
    )  # fmt: skip
    calibration, cost = calibrate_model(
        loaded, prompts, str(out), settings, options, resume=given["resume"], progress=progress
    )
    emit(
        {**_described(calibration), "seconds": cost.seconds, "statistics_seconds": cost.statistics_seconds,
         "overhead": cost.overhead},
        _text(calibration, Path(str(out)))
        + f"\ncost        {format_seconds(cost.seconds)}, statistics {format_seconds(cost.statistics_seconds)} of it: "
        f"{100 * cost.overhead:.0f} % over plain generation",
        as_json,
    )  # fmt: skip


def _rows(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise UsageError("--rows is a number from 1, or all", found=text)
    return int(text)


def _by(text: str) -> tuple[str, ...]:
    return tuple(sorted({part.strip() for part in text.split(",") if part.strip()}))


def _described(calibration: Any) -> dict[str, Any]:
    return {
        "id": calibration.id,
        "path": str(calibration.path),
        "prompts": len(calibration.prompt_hashes),
        "experts": {role: len(calibration.groups(role)) for role in calibration.roles},
        "settings": calibration.document["settings"],
    }


def _text(calibration: Any, out: Path) -> str:
    lines = [f"calibration {calibration.id[:12]}  in {out}", f"prompts     {len(calibration.prompt_hashes)}"]
    for role in calibration.roles:
        calls = calibration.document["schedule"][role]["calls"]
        lines.append(f"statistics  {role}: {len(calibration.groups(role))} inputs, {len(calls)} calls per prompt")
    return "\n".join(lines)
