"""`hfq convert`: a base and a recipe become a delta."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hfq.console import BarProgress, allow_non_finite_option, emit, format_bytes, format_seconds, json_option

if TYPE_CHECKING:
    from hfq.convert.checkpoint import Checkpoint
    from hfq.convert.delta import Delta

__all__ = ["convert_command"]


@click.command("convert")
@click.argument("model")
@click.option("--recipe", required=True, help="Preset name (see `hfq recipes`) or a TOML or JSON file.")
@click.option(
    "--calibration",
    type=click.Path(),
    help="Calibration folder, from `hfq calibrate`; where the recipe needs none, its kept inputs measure outputs.",
)
@click.option(
    "--analysis", type=click.Path(), help="From `hfq analyze`: analysis.json or its folder, to select blocks by score."
)
@click.option(
    "--evaluation-prompts",
    type=click.Path(),
    help="Prompt file; prompts that calibration or selection used are flagged and recorded.",
)
@click.option("-o", "--out", type=click.Path(), required=False, help="Folder to make.")
@click.option("--role", type=click.Choice(["high_noise", "low_noise", "single"]), help="Role of a bare file.")
@click.option("--resume", is_flag=True, help="Go on in OUT.partial after a crash or Ctrl-C.")
@click.option(
    "--dry-run",
    "only_plan",
    is_flag=True,
    help="Print the routing, warnings, the predicted size, memory and time; write nothing. Ends as a conversion would "
    "where recipe, calibration or output do not fit.",
)
@click.option(
    "--no-file-hashes",
    is_flag=True,
    help="Do not hash the checkpoint's files (provenance lists none), but for blobs of the Hub's cache.",
)
@click.option(
    "--trust-witness",
    is_flag=True,
    help="Do not hash files again that this machine has hashed before, unless they have changed since; recorded.",
)
@allow_non_finite_option
@json_option
def convert_command(
    model: str,
    recipe: str,
    calibration: str | None,
    analysis: str | None,
    evaluation_prompts: str | None,
    out: str | None,
    role: str | None,
    resume: bool,
    only_plan: bool,
    no_file_hashes: bool,
    trust_witness: bool,
    allow_non_finite: bool,
    as_json: bool,
) -> None:
    """Quantize MODEL by a recipe into a delta: a small folder that restores the quantized model on top of MODEL.

    \b
    hfq convert Wan2.2-T2V-A14B --recipe rtn-hif4 -o delta
    hfq convert Wan2.2-T2V-A14B --recipe tail-aware-hif4 --calibration cal -o delta
    hfq convert Wan2.2-T2V-A14B --recipe top5.toml --analysis analysis -o delta

    All cores work; OMP_NUM_THREADS limits them, and the delta does not depend on their number.
    """
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.convert import quantize
    from hfq.convert.delta_inspect import describe_delta
    from hfq.convert.dry_run import dry_run
    from hfq.convert.journal import CONVERSION
    from hfq.convert.prompts import read_prompts
    from hfq.convert.work_folder import check_output

    if out is not None:
        check_output(Path(out), CONVERSION, resume=resume)
    prompts = None if evaluation_prompts is None else read_prompts(evaluation_prompts)
    with open_checkpoint(model, role=role, allow_non_finite=allow_non_finite) as checkpoint:
        if only_plan:
            planned = dry_run(
                checkpoint, recipe, calibration, BarProgress(), analysis=analysis, evaluation_prompts=prompts
            )
            emit(planned, _plan_text(planned), as_json)
            return
        if out is None:
            raise click.UsageError("Missing option '-o' / '--out'.")
        delta = quantize(
            checkpoint,
            recipe,
            calibration,
            out=out,
            resume=resume,
            hash_files=not no_file_hashes,
            trust_witness=trust_witness,
            progress=BarProgress(),
            analysis=analysis,
            evaluation_prompts=prompts,
        )
        with delta:
            described = describe_delta(delta)
            emit(described, _result_text(delta, described, checkpoint, Path(out)), as_json)


def _plan_text(planned: dict[str, Any]) -> str:
    from hfq.convert.delta_inspect import rounded_lines, routing_lines, sparse_lines

    lines = [f"recipe      {planned['recipe']}", *routing_lines(planned["routing"])]
    lines += [*sparse_lines(planned["sparse"]), *rounded_lines(planned["rounded"])]
    lines.append(
        f"delta       about {format_bytes(planned['delta_bytes'])} ({format_bytes(planned['base_bytes'])} base)"
    )
    lines.append(f"memory      about {format_bytes(planned['peak_bytes'])} at most")
    threads = f"{planned['threads']} thread{'s' if planned['threads'] > 1 else ''}"
    lines.append(f"time        about {format_seconds(planned['seconds'])} on {threads}, with files in memory")
    return "\n".join(lines)


def _result_text(delta: Delta, described: dict[str, Any], checkpoint: Checkpoint, out: Path) -> str:
    from hfq.convert.delta_inspect import (
        bits_lines,
        clip_lines,
        error_lines,
        rounded_lines,
        routing_lines,
        short_id,
        sparse_lines,
    )

    lines = [f"delta       {short_id(delta.id)}  in {out}", f"recipe      {delta.recipe.name}"]
    lines += routing_lines(described["routing"])
    lines += clip_lines(described["clip"])
    lines += sparse_lines(described["sparse"])
    lines += rounded_lines({role: len(sites) for role, sites in described["rounded"].items()})
    lines += bits_lines(described)
    lines += error_lines(described)
    size, base = format_bytes(described["delta_bytes"]), format_bytes(described["base_bytes"])
    lines.append(f"size        {size} with all its documents, for a base of {base}")
    allowed = " --allow-non-finite" if checkpoint.allow_non_finite else ""
    lines.append(f"next        hfq verify {shlex.quote(str(out))} --base {shlex.quote(checkpoint.path)}{allowed}")
    return "\n".join(lines)
