"""`hfq score`: what was measured of a variant, read from result files or computed here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from hfq.commands.clips import parse_settings
from hfq.commands.score_text import import_document, score_documents, score_lines
from hfq.console import emit, json_option, note
from hfq.registry import open_registry
from hfq.registry.text import display_id, printable
from hfq.schema.errors import UsageError

if TYPE_CHECKING:
    from hfq.registry import Registry
    from hfq.registry.clips.clip_document import Variant
    from hfq.registry.measured_clips import ClipScores
    from hfq.registry.score_sources import ScoreFiles

__all__ = ["score_command"]

_MAX_NAME: Final = 80

_of_base = click.option("--of-base", is_flag=True, help="It is of ID's base, not of ID itself.")
_setting = click.option(
    "--setting", "settings", multiple=True, metavar="NAME=VALUE", help="Such as steps=40; may be repeated."
)
_full_info = click.option(
    "--full-info", type=click.Path(), help="The suite's own JSON: which prompt and category each video is of."
)


def _one_name(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """The name of a prompt set as it is shown: two that look alike would be told apart by nobody."""
    name = (text or "").strip()
    if len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(
            "not the name of a prompt set", expected=f"at most {_MAX_NAME} printable characters", found=repr(name)
        )
    return name or None


_prompt_set = click.option(
    "--prompt-set",
    metavar="NAME",
    callback=_one_name,
    help="What was generated, such as vbench. Without a name it is a set of its own.",
)


@click.group("score")
def score_command() -> None:
    """Record what a variant can do. ID is a delta (folder, id, alias) or a base (base: and digits)."""


@score_command.command("import")
@click.argument("delta", metavar="ID")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@_full_info
@_prompt_set
@_setting
@_of_base
@json_option
def score_import(
    delta: str,
    files: tuple[str, ...],
    full_info: str | None,
    prompt_set: str | None,
    settings: tuple[str, ...],
    of_base: bool,
    as_json: bool,
) -> None:
    """Import result files of VBench, VBench-I2V or OpenS2V-Eval; their structure says which they are.

    Every video's value is kept. The same import twice is the same rows; the last import that is not withdrawn
    counts. --setting says how the clips were generated (guidance, steps, shift, frames, height, width): a gate fails,
    and `compare` refuses, what one side alone records.

    \b
    hfq score import wan22@candidate run_eval_results.json --full-info run_full_info.json --setting steps=40
    """
    from hfq.registry.score_sources import read_score_files
    from hfq.registry.score_writer import Side

    registry = open_registry()
    variant = registry.variant(delta, of_base=of_base)
    found = read_score_files(files, full_info, prompt_set=prompt_set)
    given = parse_settings(settings)
    if not given:
        note("no --setting: how these clips were generated is not recorded; a gate fails what the base alone records")
    imported = registry.record_scores([Side(variant, found.scores, given, found.sha256)])
    for one in found.omitted:
        note(f"WARNING: left out: {printable(one, 1000)}")
    document, text = _imported(registry, variant, found, imported.id, imported.new[0])
    emit({**document, "omitted": [asdict(one) for one in found.omitted]}, text, as_json)


def _imported(
    registry: Registry, variant: Variant, found: ScoreFiles, import_id: str, new: int
) -> tuple[dict[str, Any], str]:
    names = {(metric.metric_suite, metric.metric, metric.prompt_set) for metric in found.scores}
    stored, seen = registry.scores(variant)
    mine = [one for one in stored if (one.scores.metric_suite, one.scores.metric, one.scores.prompt_set) in names]
    status = f"{new} metrics imported" if new else "already imported, nothing changed"
    for one in mine:
        if one.scores.stated_agrees is False:
            note(
                f"{one.scores.metric_suite} {one.scores.metric}: the file states {one.scores.stated:.4f}, the mean of "
                f"its {len(one.scores.videos)} videos is {one.scores.recomputed:.4f}; the videos count"
            )
    unknown = max((one.scores.of_unknown_prompt for one in mine), default=0)
    if unknown:
        note(
            f"WARNING: nobody knows which prompt {unknown} videos of {variant} are of: each counts as a prompt of its "
            "own, and calibration prompts among them cannot be told; --full-info says which prompts they are"
        )
    document = {
        "variant": {"kind": variant.kind, "id": variant.id},
        "import": import_id,
        "source_sha256": found.sha256,
        "new": new,
        "scores": score_documents(mine, seen),
    }
    heading = f"{variant}: {status}  {display_id(import_id, 'import')}"
    return document, "\n".join([heading, *score_lines(mine, seen)])


@score_command.command("measure")
@click.argument("delta", metavar="ID")
@click.option("--clips", required=True, type=click.Path(), help="Folder of clips that ID made.")
@click.option("--reference", required=True, type=click.Path(), help="Folder of the base's clips, of the same names.")
@_full_info
@_prompt_set
@_setting
@click.option("--anyway", is_flag=True, help="Measure also clips that were generated with other settings.")
@json_option
def score_measure(
    delta: str,
    clips: str,
    reference: str,
    full_info: str | None,
    prompt_set: str | None,
    settings: tuple[str, ...],
    anyway: bool,
    as_json: bool,
) -> None:
    """Measure the pixels of clips here: PSNR and SSIM against the base's clips, temporal flicker, frame-to-frame and
    first-frame similarity of the clips themselves.

    None of these is a VBench score, and none says whether a clip is good. The base's own values are recorded with ID's:
    it is held against them, whatever is measured of the base later. Prompts, seeds, categories and settings are taken
    from what the clips, or the registry, say of them; --setting adds to that.

    A clip and its reference have one name. Clips whose names differ are paired by prompt and seed. A pair of other
    prompts, seeds or first frames ends with exit code 3; one of other settings with exit code 2, or with --anyway it is
    measured, and a gate fails it. What nothing confirms is paired by its name alone, which is said.

    Every clip is looked up in the registry by its file and its frames: one that is another variant's ends with exit
    code 3. How many of the clips say whose they are, and how many are registered, is recorded with the scores.
    """
    from hfq.registry.clips.clip_document import Variant
    from hfq.registry.measured_clips import measure_clips
    from hfq.registry.score_writer import Side

    registry = open_registry()
    variant = registry.variant(delta)
    if variant.kind == "base":
        raise UsageError("clips are measured against their base's", expected="a delta", found=variant)
    base = Variant("base", registry.get(variant.id).base.id)
    given = parse_settings(settings)
    registry.check_writable()
    found = measure_clips(
        registry.database, clips, reference, variant, base, full_info=full_info, prompt_set=prompt_set,
        settings=given, anyway=anyway, progress=lambda stem: note(f"measuring {printable(stem)}"),
    )  # fmt: skip
    _paired(found, clips, reference)
    for who, files, folder in ((variant, found.variant, clips), (base, found.base, reference)):
        _doubt(who, files, folder)
    sides = (
        (variant, found.variant, found.variant_settings),
        (base, found.base, found.base_settings),
    )
    imported = registry.record_scores(
        [Side(who, files.scores, own, files.sha256, files.origin) for who, files, own in sides]
    )
    told = [
        _imported(registry, who, files, imported.id, new)
        for (who, files, _), new in zip(sides, imported.new, strict=True)
    ]
    pairs = {
        "measured": found.pairs,
        "confirmed": found.confirmed,
        "by_name": found.pairs - found.confirmed,
        "by_tags": [{"clip": one, "reference": other} for one, other in found.by_tags],
        "only_clips": list(found.only_clips),
        "only_reference": list(found.only_reference),
        "left_over": [str(path) for path in found.left_over],
    }
    document = {"variant": told[0][0], "base": told[1][0], "pairs": pairs}
    emit(document, "\n".join(text for _, text in told), as_json)


def _paired(found: ClipScores, clips: str, reference: str) -> None:
    """Say how clips and references were put together, and what was left out."""
    for one, other in found.by_tags:
        note(f"paired by prompt and seed: {printable(one)} and {printable(other)}")
    by_name = found.pairs - found.confirmed
    if by_name:
        note(
            f"WARNING: {by_name} of {found.pairs} pairs are by their names alone: nothing says that both clips are of "
            "one prompt and seed"
        )
    for stems, folder in ((found.only_clips, clips), (found.only_reference, reference)):
        if stems:
            note(f"only in {printable(folder, 1000)}, no pair: {', '.join(map(printable, stems))}")
    for path in found.left_over:
        note(f"left out, hidden or unfinished: {printable(path, 1000)}")


def _doubt(who: Variant, files: ScoreFiles, folder: str) -> None:
    """Say which clips nothing speaks for, and which are their reference over again."""
    origin = files.origin
    if origin is None:
        return
    where = printable(folder, 1000)
    if origin.unknown:
        note(
            f"WARNING: {where}: nothing says who made {origin.unknown} of {origin.clips} clips; that they are of {who} "
            "is your word alone, and prompts and settings are as given here"
        )
    if origin.identical:
        note(
            f"WARNING: {where}: {origin.identical} of {origin.clips} clips have exactly the pixels of their reference; "
            f"are they of {who}, or copies"
        )


@score_command.command("add")
@click.argument("delta", metavar="ID")
@click.option("--latency", type=float, metavar="S", help="Seconds per clip.")
@click.option("--peak-memory", type=float, metavar="BYTES", help="Peak memory of the device, bytes.")
@click.option("--throughput", type=float, metavar="N", help="Clips per hour.")
@click.option("--device", required=True, help="What it ran on, such as H200.")
@click.option(
    "--kernels", required=True, type=click.Choice(["real", "simulated"]),
    help="Whether the format's own kernels ran; simulated ones say nothing about speed, and no cost is based on them.",
)  # fmt: skip
@_setting
@_of_base
@json_option
def score_add(
    delta: str,
    latency: float | None,
    peak_memory: float | None,
    throughput: float | None,
    device: str,
    kernels: Any,
    settings: tuple[str, ...],
    of_base: bool,
    as_json: bool,
) -> None:
    """Record what running a variant took. Costs are compared on one device, with the same settings alone; of two of a
    kind the later one counts.

    \b
    hfq score add wan22@candidate --latency 41.2 --device H200 --kernels real --setting frames=81 --setting steps=40
    """
    from hfq.registry.scores.values import Measurement, Quantity

    values: tuple[tuple[Quantity, float | None], ...] = (
        ("latency", latency), ("peak-memory", peak_memory), ("throughput", throughput),
    )  # fmt: skip
    given = parse_settings(settings)
    taken = [Measurement(name, value, device, kernels, given) for name, value in values if value is not None]
    if not taken:
        raise UsageError("nothing to record", expected="--latency, --peak-memory or --throughput")
    registry = open_registry()
    variant = registry.variant(delta, of_base=of_base)
    rows = [
        {"quantity": one.quantity, "value": one.value, "unit": one.unit, "new": registry.add_measurement(variant, one)}
        for one in taken
    ]
    lines = [
        f"  {row['quantity']}  {row['value']:g} {row['unit']} on {printable(device)}, {kernels} kernels"
        + ("" if row["new"] else "  (already recorded)")
        for row in rows
    ]
    document = {
        "variant": {"kind": variant.kind, "id": variant.id}, "device": device, "kernels": kernels,
        "settings": given, "measurements": rows,
    }  # fmt: skip
    emit(document, "\n".join([str(variant), *lines]), as_json)


@score_command.command("review")
@click.argument("delta", metavar="ID")
@click.argument("file", type=click.Path())
@_of_base
@json_option
def score_review(delta: str, file: str, of_base: bool, as_json: bool) -> None:
    """Record what people decided about clips: JSON lines {"video": NAME, "accepted": true, "category": NAME}.

    A clip that several people saw is accepted when all of them, in one file, accepted it. A later file goes before an
    earlier one on the clips that it names. The same file twice counts once.
    """
    from hfq.registry.score_sources import read_outcomes

    registry = open_registry()
    variant = registry.variant(delta, of_base=of_base)
    outcomes, sha256 = read_outcomes(file)
    is_new = registry.add_reviews(variant, outcomes, sha256)
    accepted = sum(outcome.accepted for outcome in outcomes)
    document = {
        "variant": {"kind": variant.kind, "id": variant.id}, "outcomes": len(outcomes), "accepted": accepted,
        "source_sha256": sha256, "new": is_new,
    }  # fmt: skip
    status = "" if is_new else "; already recorded, nothing changed"
    emit(document, f"{variant}: {accepted} of {len(outcomes)} outcomes accept{status}", as_json)


@score_command.command("withdraw")
@click.argument("which", metavar="ID|IMPORT")
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown wherever the import is.")
@_of_base
@json_option
def score_withdraw(which: str, reason: str, of_base: bool, as_json: bool) -> None:
    """Take back what was imported, measured, added or reviewed: it does not count any more, what it had replaced does.

    IMPORT is `import:` and digits, as `score import` and `show` print it. ID means what was recorded last of that delta
    or base and is not withdrawn. Measured clips are withdrawn together with the base's clips beside them. Nothing is
    deleted: `show` lists it with the reason. The same import again makes it count again.

    \b
    hfq score withdraw import:3f2a9c01d4e5 --reason "the clips were another variant's"
    """
    done = open_registry().withdraw_import(which, reason, of_base=of_base)
    record = done.record
    document = {**import_document(record), "new": done.is_new}
    status = "withdrawn" if done.is_new else "withdrawn before, nothing changed"
    emit(document, f"{record.variant}: {status}\n  {printable(record, 1000)}", as_json)
