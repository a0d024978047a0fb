"""`hfq verify`: recompute a delta from its base."""

from __future__ import annotations

import click

from hfq.console import BarProgress, emit, json_option
from hfq.convert.checkpoint import open_checkpoint
from hfq.convert.delta_inspect import short_id
from hfq.convert.verify import verify
from hfq.paths import open_delta

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("delta")
@click.option("--base", required=True, help="The checkpoint: MODEL in any layout.")
@click.option("--expert", type=click.Choice(["high_noise", "low_noise", "single"]), help="Verify this expert alone.")
@click.option("--role", type=click.Choice(["high_noise", "low_noise", "single"]), help="Role of a bare file.")
@json_option
def verify_command(delta: str, base: str, expert: str | None, role: str | None, as_json: bool) -> None:
    """Restore every quantized linear of DELTA from the base and compare every digest; nothing is written.

    Exit code 0: bit for bit what the delta says. 3: another base, another role, or other bits.
    """
    with open_delta(delta) as opened, open_checkpoint(base, role=role) as checkpoint:
        only = expert or (role if role in opened.roles else None)
        result = verify(opened, checkpoint, role=only, progress=BarProgress())
    if as_json or result.ok:
        lines = [f"{short_id(result.delta_id)} restores bit for bit"]
        lines += [
            f"  {name}: {result.tensors[name]} base tensors and {result.sites[name]} quantized linears match, "
            f"{result.kept[name]} kept"
            for name in result.tensors
        ]
        document = result.to_json()
        if result.mismatches:
            document["error"] = result.mismatches[0].error.to_json()
        emit(document, "\n".join(lines), as_json)
    if result.mismatches:
        error, others = result.mismatches[0].error, len(result.mismatches) - 1
        also = f" (and {others} more)" if others else ""
        click.echo(f"hfq: {error}{also} [{error.code}]", err=True)
        raise click.exceptions.Exit(error.exit_code)
