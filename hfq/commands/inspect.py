"""`hfq inspect`: what a checkpoint or a delta is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hfq.console import BarProgress, allow_non_finite_option, emit, format_bytes, json_option

__all__ = ["inspect_command"]


@click.command("inspect")
@click.argument("path")
@click.option(
    "--role",
    type=click.Choice(["high_noise", "low_noise", "single"]),
    help="Which expert a bare file is; of a checkpoint with two experts, the one to look at.",
)
@click.option("--no-hash", is_flag=True, help="Read headers only: no digests, no roots, no file hashes.")
@click.option(
    "--no-file-hashes",
    is_flag=True,
    help="Do not hash the files as wholes, but for blobs of the Hub's cache: roots alone, no witnesses.",
)
@click.option(
    "--trust-witness",
    is_flag=True,
    help="Believe what this machine found when it hashed these files, unless they have changed since.",
)
@click.option("--sites", "with_sites", is_flag=True, help="List every linear: the names that recipes match.")
@allow_non_finite_option
@json_option
def inspect_command(
    path: str,
    role: str | None,
    no_hash: bool,
    no_file_hashes: bool,
    trust_witness: bool,
    with_sites: bool,
    allow_non_finite: bool,
    as_json: bool,
) -> None:
    """Say what PATH is: a checkpoint (layout, experts, dtypes, sites, identity) or a delta (bits per weight).

    PATH is a folder, a file, or high_noise=FILE,low_noise=FILE. Every byte is read once, unless --no-hash is given, on
    all cores; OMP_NUM_THREADS limits them.
    """
    if no_hash and (no_file_hashes or trust_witness):
        other = "--no-file-hashes" if no_file_hashes else "--trust-witness"
        raise click.UsageError(f"--no-hash reads headers only; {other} is about hashes. Give one of them.")
    if (Path(path) / "ptq_state.json").is_file():
        _inspect_delta(path, as_json)
        return
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.inspect import inspect_checkpoint, list_sites

    with open_checkpoint(path, role=role, allow_non_finite=allow_non_finite) as checkpoint:
        document = inspect_checkpoint(
            checkpoint,
            identity=not no_hash,
            hash_files=not no_file_hashes,
            trust_witness=trust_witness,
            progress=BarProgress(),
        )
        if with_sites:
            for name, expert in checkpoint.experts.items():
                document["experts"][name]["linears"] = list_sites(expert)
    emit(document, render_checkpoint(document), as_json)


def _inspect_delta(path: str, as_json: bool) -> None:
    from hfq.convert.delta_inspect import inspect_delta

    document, text = inspect_delta(path)
    emit(document, text, as_json)


def render_checkpoint(document: dict[str, Any]) -> str:
    """The text for a person of what `inspect_checkpoint` returned."""
    sizes = document["architecture"]
    patch = "x".join(str(size) for size in sizes["patch_size"])
    heads = "?" if sizes["num_heads"] is None else sizes["num_heads"]
    lines = [
        f"{document['path']}",
        f"  layout        {document['layout']}",
        f"  model         {sizes['model_type']}, {sizes['num_layers']} blocks, width {sizes['dim']}, "
        f"feed-forward {sizes['ffn_dim']}, {heads} heads",
        f"  channels      {sizes['in_channels']} in, {sizes['out_channels']} out, patch {patch}",
    ]
    for role, expert in document["experts"].items():
        lines += ["", f"{role} ({expert['role_source']})", *_render_expert(expert)]
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    return "\n".join(lines)


def _render_expert(expert: dict[str, Any]) -> list[str]:
    names = f"{expert['naming']} names" + (f", prefix {expert['prefix']}" if expert["prefix"] else "")
    dtypes = ", ".join(
        f"{dtype} {part['tensors']} tensors {format_bytes(part['size_bytes'])}"
        for dtype, part in expert["dtypes"].items()
    )
    sites = expert["sites"]
    vace = f" + {sites['vace_blocks']} in VACE blocks" if sites["vace_blocks"] else ""
    lines = [
        f"  tensors       {expert['tensors']} ({names}), {expert['parameters']:,} parameters",
        f"  dtypes        {dtypes}",
        f"  sites         {sum(sites.values())} linears = {sites['blocks']} in blocks{vace}"
        f" + {sites['outside']} outside",
    ]
    if expert["other_tensors"]:
        lines.append(f"  beside it     {expert['other_tensors']} tensors of other parts, not used")
    if "bf16_root" in expert:
        lines.append(f"  bf16 root     {expert['bf16_root']}")
        lines.append(f"  exact root    {expert['exact_root']}")
    for file in expert["files"]:
        lines.append(f"  file          {file['name']}  {format_bytes(file['size_bytes'])} ({file['size_bytes']:,} B)")
        if "sha256" in file:
            trusted = "  (computed before)" if file.get("trusted") else ""
            lines.append(f"    sha256      {file['sha256']}{trusted}")
    for site in expert.get("linears", []):
        lines.append(f"  linear        {site['name']}  {site['shape'][0]}x{site['shape'][1]}")
    return lines
