"""`hfq export`: a delta on its base, in a form that other programs run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from hfq.console import BarProgress, allow_non_finite_option, emit, format_bytes, format_seconds, json_option, note
from hfq.convert.graphs.scope import MODEL, Scope
from hfq.paths import open_delta

if TYPE_CHECKING:
    from hfq.convert.delta import Delta
    from hfq.convert.graphs.export import Export

__all__ = ["export_command"]


@click.group("export")
def export_command() -> None:
    """Write a delta on its base in a form that other programs run."""


@export_command.command("onnx")
@click.argument("delta")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option(
    "--expert",
    type=click.Choice(["high_noise", "low_noise", "single"]),
    help="Which expert (default: the first that the delta has).",
)
@click.option("--site", help="One linear, by its original Wan name, for example blocks.7.self_attn.q.")
@click.option("--block", type=click.IntRange(min=0), help="One block, by its number.")
@click.option("--model", "whole", is_flag=True, help="The whole transformer (the default).")
@click.option("-o", "--out", type=click.Path(), required=True, help="Graph to make; its name ends in .onnx.")
@click.option(
    "--bin",
    "timestep_bin",
    type=click.IntRange(0, 2),
    help="This timestep bin alone. Without it a delta whose clip differs gives one graph per bin, NAME.bin0.onnx ...",
)
@click.option(
    "--opset",
    type=click.Choice(["18", "23"]),
    default="18",
    show_default=True,
    help="23 has one node for attention and needs a newer ONNX Runtime.",
)
@click.option("--inline", is_flag=True, help="Write the bodies of our ops into the graph: standard ops alone.")
@click.option("--role", type=click.Choice(["high_noise", "low_noise", "single"]), help="Role of a bare file.")
@allow_non_finite_option
@json_option
def export_onnx_command(
    delta: str,
    base: str,
    expert: str | None,
    site: str | None,
    block: int | None,
    whole: bool,
    out: str,
    timestep_bin: int | None,
    opset: str,
    inline: bool,
    role: str | None,
    allow_non_finite: bool,
    as_json: bool,
) -> None:
    """Write a linear, a block or an expert of DELTA as an ONNX graph that a stock ONNX Runtime runs.

    Weights stay packed; the quantization ops are functions of standard ops inside the file. Weights beyond 1 GiB, and
    those that several graphs share, are in OUT.data.

    \b
    hfq export onnx delta --base Wan2.2-T2V-A14B --block 0 -o block0.onnx
    hfq verify delta --base Wan2.2-T2V-A14B --onnx block0.onnx
    """
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.graphs.export import export_onnx

    scope = _scope(site, block, whole)
    with (
        open_delta(delta) as opened,
        open_checkpoint(base, role=role, allow_non_finite=allow_non_finite) as checkpoint,
    ):
        chosen = _expert(opened, expert or role)
        done = export_onnx(
            opened,
            checkpoint,
            out,
            scope=scope,
            role=chosen,
            bin=timestep_bin,
            opset=int(opset),
            inline=inline,
            progress=BarProgress(),
        )
        lines = _lines(done)
        verify = shlex.join(["hfq", "verify", delta, "--base", base, "--onnx", out])
        lines.append(f"next        {verify}")
    emit({"delta": opened.id, **done.to_json()}, "\n".join(lines), as_json)


def _scope(site: str | None, block: int | None, whole: bool) -> Scope:
    given = [value for value in (site, block, whole or None) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give one of --site, --block and --model")
    if site is not None:
        return Scope("site", site)
    return MODEL if block is None else Scope("block", str(block))


def _expert(delta: Delta, expert: str | None) -> str | None:
    if expert is None and len(delta.roles) > 1:
        note(f"the delta has {' and '.join(delta.roles)}: this is {delta.roles[0]} (--expert chooses)")
        return delta.roles[0]
    return expert


def _lines(done: Export) -> list[str]:
    lines = []
    for graph in done.graphs:
        which = "" if graph.bin is None else f"  timestep bin {graph.bin}"
        lines.append(f"graph       {graph.path}  {format_bytes(graph.size_bytes)}{which}")
    if done.data is not None:
        lines.append(f"weights     {done.data}  {format_bytes(done.data_bytes)}")
    linears = "1 quantized linear" if done.sites == 1 else f"{done.sites} quantized linears"
    lines.append(f"part        {done.role} {done.scope}: {linears}, {done.kept} kept")
    own = ", ".join(f"{count} {name.partition('::')[2]}" for name, count in done.nodes.items() if "::" in name)
    lines.append(f"nodes       {sum(done.nodes.values())}{f': {own}' if own else ''}")
    lines.append(f"opset       {done.opset}, IR {done.ir_version}")
    lines.append(f"time        {format_seconds(done.seconds['all'])}")
    return lines
