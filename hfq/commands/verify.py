"""`hfq verify`: recompute a delta from its base, and compare exported graphs with it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hfq.console import BarProgress, allow_non_finite_option, emit, json_option, json_text
from hfq.paths import open_delta
from hfq.schema.atomic import write_file
from hfq.schema.errors import CalibrationBaseError, OutputExistsError, UsageError

if TYPE_CHECKING:
    from hfq.convert.calibration import Calibration
    from hfq.convert.checkpoint import Checkpoint
    from hfq.convert.delta import Delta
    from hfq.convert.graphs.verify_onnx import OnnxVerification
    from hfq.convert.verify import Verification

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("delta")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option("--expert", type=click.Choice(["high_noise", "low_noise", "single"]), help="Verify this expert alone.")
@click.option("--role", type=click.Choice(["high_noise", "low_noise", "single"]), help="Role of a bare file.")
@click.option("--onnx", is_flag=False, flag_value="", metavar="[FILE]",
              help="Verify this exported graph, too; without FILE the first quantized block of an expert.")  # fmt: skip
@click.option("--calibration", type=click.Path(), help="Run graphs on the model calls that this calibration kept.")
@click.option("-o", "--out", type=click.Path(), help="JSON file to make: the report of the graphs.")
@click.option(
    "--trust-witness",
    is_flag=True,
    help="Do not hash files of the base again that this machine has hashed before, unless they have changed since.",
)
@allow_non_finite_option
@json_option
def verify_command(
    delta: str,
    base: str,
    expert: str | None,
    role: str | None,
    onnx: str | None,
    calibration: str | None,
    out: str | None,
    trust_witness: bool,
    allow_non_finite: bool,
    as_json: bool,
) -> None:
    """Restore every quantized linear of DELTA from the base and compare every digest.

    With --onnx exported graphs are verified level by level: their origin, their ops, their weights, every op inside the
    running graph, every linear, and the output of a block or model beside that of torch. `hfq report DELTA --onnx OUT`
    renders the report. Give --onnx behind DELTA, or as --onnx=FILE.

    Exit code 0: what the delta says; an inconclusive level is named. 3: another base, role or graph, or other bits.
    """
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.verify import verify

    path = _checked_out(onnx, calibration, out)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_delta(delta))
        checkpoint = stack.enter_context(open_checkpoint(base, role=role, allow_non_finite=allow_non_finite))
        only = expert or (role if role in opened.roles else None)
        # A graph that is not there is known before the base is read.
        graphs = None if not onnx else _exported(onnx)
        kept = None if calibration is None else stack.enter_context(_calibration(calibration, opened))
        result = verify(opened, checkpoint, role=only, trust_witness=trust_witness, progress=BarProgress())
        verified: list[OnnxVerification] = []
        if onnx is not None and result.ok:
            verified = _verify_graphs(opened, checkpoint, only, graphs, kept, stack)
        errors = [entry.error for entry in result.mismatches]
        errors += [error for entry in verified if (error := entry.first_error()) is not None]
        document, lines = result.to_json(), _lines(result)
        if verified:
            document["onnx"] = _report(opened, verified)
            document["ok"] = not errors
            lines += [line for entry in verified for line in _graph_lines(entry)]
            if path is not None:
                write_file(path, (json_text(document["onnx"]) + "\n").encode())
                lines.append(f"report      {path}")
    if errors:
        document["error"] = errors[0].to_json()
    if as_json or result.ok:
        emit(document, "\n".join(lines), as_json)
    if errors:
        also = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        click.echo(f"hfq: {errors[0]}{also} [{errors[0].code}]", err=True)
        raise click.exceptions.Exit(errors[0].exit_code)


def _checked_out(onnx: str | None, calibration: str | None, out: str | None) -> Path | None:
    if onnx is None and (calibration is not None or out is not None):
        given = "--out" if calibration is None else "--calibration"
        raise UsageError(f"{given} goes with --onnx", todo="add --onnx, or leave it out")
    if out is None:
        return None
    path = Path(out)
    if path.exists() or path.is_symlink():
        raise OutputExistsError("the output is already there", where=path, todo="choose another name, or remove it")
    if not path.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=path.parent)
    return path


def _exported(onnx: str) -> list[Path]:
    from hfq.convert.graphs.targets import exported_graphs

    return exported_graphs(onnx)


def _calibration(path: str, delta: Delta) -> Calibration:
    from hfq.convert.calibration import load_calibration

    found = load_calibration(path)
    for role, expert in found.document["base"]["experts"].items():
        if role in delta.roles and expert["bf16_root"] != delta.root(role):
            found.close()
            raise CalibrationBaseError(
                "the calibration was made with another model",
                where=f"{path}: {role}",
                expected=f"{delta.root(role)[:12]}…",
                found=f"{expert['bf16_root'][:12]}…",
            )
    return found


def _verify_graphs(
    delta: Delta,
    base: Checkpoint,
    role: str | None,
    graphs: list[Path] | None,
    calibration: Calibration | None,
    stack: contextlib.ExitStack,
) -> list[OnnxVerification]:
    from hfq.convert.graphs.targets import export_first_blocks
    from hfq.convert.graphs.verify_onnx import verify_onnx

    progress = BarProgress()
    if graphs is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hfq-onnx-"))
        graphs = export_first_blocks(delta, base, Path(folder), role, progress)
    calls = (
        {name: calibration.sampled_calls(name) or calibration.calls(name) for name in calibration.roles}
        if calibration is not None
        else {}
    )
    return [verify_onnx(delta, base, path, role=role, calls=calls, progress=progress) for path in graphs]


def _report(delta: Delta, verified: list[OnnxVerification]) -> dict[str, Any]:
    from hfq.convert.graphs.verify_onnx import onnx_report

    return onnx_report(delta, verified)


def _lines(result: Verification) -> list[str]:
    from hfq.convert.delta_inspect import short_id

    lines = [f"{short_id(result.delta_id)} restores bit for bit"]
    lines += [
        f"  {name}: {result.tensors[name]} base tensors and {result.sites[name]} quantized linears match, "
        f"{result.kept[name]} kept"
        for name in result.tensors
    ]
    return lines


def _graph_lines(verified: OnnxVerification) -> list[str]:
    part = f"{verified.origin.role} {verified.origin.scope}"
    bin_ = "" if verified.origin.bin is None else f", timestep bin {verified.origin.bin}"
    found = "as the delta" if verified.ok else "NOT as the delta"
    if verified.ok and verified.inconclusive:
        found = f"nothing contradicts the delta; inconclusive: {', '.join(verified.inconclusive)}"
    lines = [f"{verified.path.name}  {part}{bin_}: {found}"]
    for name, level in verified.levels.items():
        lines.append(f"  {name:<20}{level.verdict}" + (f"  ({level.reason})" if level.reason else ""))
    return lines
