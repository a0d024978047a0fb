"""`hfq analyze`: which blocks and linears of a base suffer from a format, before anything is converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hfq.console import BarProgress, allow_non_finite_option, emit, json_option

__all__ = ["analyze_command"]

_COLUMNS = (
    ("max", "act_max", "{:.4g}"),
    ("rms", "act_rms", "{:.4g}"),
    ("crest", "act_crest", "{:.1f}"),
    ("ratio", "act_channel_ratio", "{:.1f}"),
    ("input", "act_nmse", "{:.2e}"),
    ("weight", "weight_nmse", "{:.2e}"),
    ("output", "output_nmse", "{:.2e}"),
    ("isolated", "isolated", "{:.2e}"),
    ("of added", "isolated_contribution", "{:.2e}"),
    ("propagated", "propagated", "{:.2e}"),
)


@click.command("analyze")
@click.argument("model")
@click.option("--calibration", type=click.Path(), required=True, help="Calibration folder of MODEL.")
@click.option("--format", "form", type=click.Choice(["hif8", "hif4"]), default="hif8", show_default=True,
              help="Of weights and activations.")  # fmt: skip
@click.option("--role", type=click.Choice(["high_noise", "low_noise", "single"]),
              help="Role of a bare file; of a checkpoint with two experts, the one to analyse.")  # fmt: skip
@click.option(
    "--evaluation-prompts", type=click.Path(), help="Prompt file; prompts that the calibration has are flagged."
)
@click.option("--no-model-errors", is_flag=True, help="Do not run the model: no errors of whole blocks.")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder to make.")
@allow_non_finite_option
@json_option
def analyze_command(
    model: str,
    calibration: str,
    form: str,
    role: str | None,
    evaluation_prompts: str | None,
    no_model_errors: bool,
    out: str,
    allow_non_finite: bool,
    as_json: bool,
) -> None:
    """Measure what a format does to every block and linear of MODEL, from the inputs that a calibration kept.

    OUT gets analysis.json, which `hfq convert --analysis OUT` selects blocks from, and analysis.html. Errors of inputs
    and outputs need a calibration with --keep-inputs; errors of whole blocks need its kept model calls, and memory for
    one expert.

    \b
    hfq analyze Wan2.2-T2V-A14B --calibration cal -o analysis
    """
    from hfq.convert.analyze import analyze
    from hfq.convert.calibration import load_calibration
    from hfq.convert.checkpoint import open_checkpoint
    from hfq.convert.prompts import read_prompts

    prompts = None if evaluation_prompts is None else read_prompts(evaluation_prompts)
    with (
        open_checkpoint(model, role=role, allow_non_finite=allow_non_finite) as checkpoint,
        load_calibration(calibration) as opened,
    ):
        found = analyze(
            checkpoint,
            opened,
            out=out,
            format=form,
            evaluation_prompts=prompts,
            model_errors=not no_model_errors,
            progress=BarProgress(),
        )
    emit(dict(found.document), _text(found.document, Path(out)), as_json)


def _text(document: Mapping[str, Any], out: Path) -> str:
    lines = [
        f"analysis    {document['id'][:12]}  in {out}",
        f"format      {document['format']}: weights {_options(document['weight'])}, "
        f"activations {_options(document['activation'])}",
        f"calibration {document['calibration']['id'][:12]}, {len(document['calibration']['prompts'])} prompts",
    ]
    evaluation = document["evaluation"]
    if evaluation is not None:
        lines.append(
            f"evaluation  {len(evaluation['overlap'])} of {evaluation['prompts']} prompts are in the calibration"
        )
    for role, expert in document["experts"].items():
        model = expert["model"]
        lines += ["", role, *_table(expert["scores"], {} if model is None else model["blocks"])]
        if model is not None:
            lines += [*_certainty(model), *_arms(model["arms"])]
    lines += ["", f"page        {out / 'analysis.html'}"]
    return "\n".join(lines)


def _options(table: Mapping[str, Any]) -> str:
    """`scale row` of a format's options; what is off is left out."""
    shown = [f"{name} {value}" for name, value in table.items() if name != "format" and value not in (False, "none")]
    return ", ".join(shown) or "direct"


def _table(scores: Mapping[str, Mapping[str, float]], measured: Mapping[str, Any]) -> list[str]:
    """One line per block; figures that are not known for every block have no column."""
    columns = [(title, scores[name], form) for title, name, form in _COLUMNS if name in scores]
    blocks = sorted(next(iter(scores.values()), {}), key=lambda name: int(name.partition(".")[2]))
    head = [f"{'block':<7}", *(f"{title:>10}" for title, _, _ in columns), *([f"{'rank':>6}"] if measured else [])]
    rows = [
        [
            f"{block.partition('.')[2]:<7}",
            *(f"{form.format(values[block]):>10}" for _, values, form in columns),
            *([f"{_range(measured[block]['ranks']['propagated']):>6}"] if measured else []),
        ]
        for block in blocks
    ]
    return ["  " + " ".join(cells) for cells in (head, *rows)]


def _range(ranks: list[int]) -> str:
    """`2-4`, or `1` where resampling never gave another rank."""
    return f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"


def _certainty(model: Mapping[str, Any]) -> list[str]:
    """What the ranks by propagated error rest on, and which of them mean nothing."""
    ranks = {name.partition(".")[2]: block["ranks"]["propagated"] for name, block in model["blocks"].items()}
    tied = [
        name
        for name, (low, high) in ranks.items()
        if any(low <= last and first <= high for other, (first, last) in ranks.items() if other != name)
    ]
    lines = [
        f"  ranked by propagated error over {model['sample']['pairs']} pairs of prompt and step; "
        + (f"not told apart: blocks {', '.join(tied)}" if tied else "every block is told from every other")
    ]
    return lines + [f"  weak: {reason}" for reason in model["sample"]["weak"]]


def _arms(arms: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, arm in arms.items():
        lines.append(f"  keep {name:<18} {arm['nmse']:.3e}{_interval(arm['interval'])}")
    return lines


def _interval(edges: list[float] | None) -> str:
    return "" if edges is None else f"  [{edges[0]:.3e}, {edges[1]:.3e}]"
