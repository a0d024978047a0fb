"""`hfq register`, `list`, `show`, `lineage` and `alias`: what the registry knows about deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from hfq.commands.score_text import import_document, score_documents, score_lines
from hfq.console import emit, format_bytes, json_option, note
from hfq.convert.identity import same_weights
from hfq.paths import note_absence
from hfq.registry import DeltaRecord, DeltaSummary, Filters, open_registry, render_mermaid, render_text
from hfq.registry.clips.clip_document import Variant
from hfq.registry.evaluation import Evaluation
from hfq.registry.folder import DeltaFacts
from hfq.registry.hub_records import describe_copy
from hfq.registry.hub_store import OnHub
from hfq.registry.text import display_id, printable

__all__ = ["alias_command", "lineage_command", "list_command", "register_command", "show_command"]


@click.command("register")
@click.argument("delta", type=click.Path(readable=False))
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Also give it this name; may be repeated.")
@click.option(
    "--hub",
    "hub_copy",
    metavar="OWNER/NAME[@REVISION]",
    help="Also remember that this commit of the Hub holds it, once the Hub has confirmed every file.",
)
@click.option("--base-hub", "hub_bases", multiple=True, metavar="OWNER/NAME[@REVISION]",
              help="Also tie its base to this commit, which must hold every file that the base was read from; may be "
                   "repeated.")  # fmt: skip
@json_option
def register_command(
    delta: str, aliases: tuple[str, ...], hub_copy: str | None, hub_bases: tuple[str, ...], as_json: bool
) -> None:
    """Verify the folder DELTA and remember it, with everything it was made from.

    Prints the delta's id. A delta that is known already keeps its row; another folder with the same delta is remembered
    as a second copy. --hub and --base-hub compare digests with the Hub's lists of files: nothing is downloaded, nothing
    is registered when one differs, and without them nobody is contacted.

    \b
    hfq register wan22-tail999 --hub someone/wan22-tail999 --base-hub Wan-AI/Wan2.2-T2V-A14B
    """
    found = OnHub()

    def ask(facts: DeltaFacts) -> OnHub:
        from hfq.registry.hub import ask_hub

        nonlocal found
        found = ask_hub(facts, copy=hub_copy, bases=hub_bases)
        return found

    asks = hub_copy is not None or bool(hub_bases)
    registry = open_registry()
    registration = registry.admit(delta, aliases=aliases, ask_hub=ask if asks else None)
    if registration.is_new:
        status = "registered"
    elif registration.is_new_folder:
        status = "already registered; this folder is a new copy of it"
    else:
        status = "already registered"
    note(f"{status}: {printable(registration.folder, 1000)}")
    for warning in same_weights(expert.bf16_root for expert in registry.get(registration.id).base.experts):
        note(f"warning: {warning}")
    if found.copy is not None:
        note(f"on the Hub: {found.copy.repo}, commit {found.copy.commit}")
    for place in found.bases:
        note(f"base on the Hub: {place.repo}, commit {place.commit}, {len(place.files)} files")
    document = {
        "id": registration.id,
        "display": display_id(registration.id),
        "folder": registration.folder,
        "new": registration.is_new,
        "new_folder": registration.is_new_folder,
        "aliases": list(aliases),
        "hub": asdict(found.copy) if found.copy is not None else None,
        "base_hub": [asdict(place) for place in found.bases],
    }
    emit(document, display_id(registration.id), as_json)


@click.command("list")
@click.option("--base", metavar="ROOT", help="Only of this base: the first digits of a bf16 root or of the base's id.")
@click.option("--preset", metavar="NAME", help="Only made by the recipe of this name.")
@click.option("--percentile", type=float, metavar="P", help="Only with a smooth stage at this percentile.")
@click.option("--kept", metavar="N|GLOB", help="Only with N kept sites, or with a kept site that matches GLOB.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most so many; 0 for all.")
@json_option
def list_command(
    base: str | None, preset: str | None, percentile: float | None, kept: str | None, limit: int, as_json: bool
) -> None:
    """List registered deltas, the newest first. STATE is the size of ptq_state.safetensors, without the documents."""
    filters = Filters(base=base, preset=preset, percentile=percentile, kept=kept)
    registry = open_registry()
    deltas, total = registry.list(filters, limit=limit or None)
    note_absence(registry)
    if not deltas and not as_json:
        note("no delta is registered" if filters == Filters() else "no delta passes these filters")
        return
    emit({"deltas": [delta.to_json() for delta in deltas], "total": total}, _table(deltas), as_json)
    if len(deltas) < total:
        note(f"{len(deltas)} of {total} shown; --limit 0 shows all")


def _table(deltas: Sequence[DeltaSummary]) -> str:
    rows = [("DELTA", "RECIPE", "W/A", "PERCENTILE", "QUANTIZED", "KEPT", "STATE", "BASE", "REGISTERED", "ALIASES")]
    for delta in deltas:
        rows.append(
            (
                display_id(delta.id),
                printable(delta.recipe),
                f"{delta.weight_format}/{delta.activation_format}",
                ",".join(f"{percentile:g}" for percentile in delta.percentiles) or "-",
                str(delta.quantized),
                str(delta.kept),
                format_bytes(delta.state_size_bytes),
                delta.base_id[:12],
                f"{delta.registered_at[:10]} {delta.registered_at[11:16]}Z",
                ", ".join(delta.aliases) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@click.command("show")
@click.argument("delta")
@json_option
def show_command(delta: str, as_json: bool) -> None:
    """Show one registered delta: sizes, kept sites, folders, history, scores, costs, reviews, and all that was ever
    imported of it and of its base, withdrawn or not.
    """
    registry = open_registry()
    record = registry.get(registry.identify(delta))
    found = registry.evaluation(Variant("delta", record.id))
    document = {
        **record.to_json(),
        "scores": score_documents(found.scores, found.seen),
        "costs": [{**asdict(cost), "settings": dict(cost.settings), "unit": cost.unit} for cost in found.costs],
        "reviews": None if found.reviews is None else found.reviews.to_json(),
        "imports": [import_document(one) for one in found.imports],
    }
    lines = score_lines(found.scores, found.seen)
    scores = ["  scores", *lines] if lines else []
    emit(document, "\n".join([_details(record), *_imports(found), *scores, *_costs(found)]), as_json)


def _imports(found: Evaluation) -> list[str]:
    lines = [
        f"  {printable(one, 1000)}{', of the base' if one.variant.kind == 'base' else ''}" for one in found.imports
    ]
    return ["  imports", *lines] if lines else []


def _costs(found: Evaluation) -> list[str]:
    """What running it took, and what people decided, when anybody measured or looked."""
    lines = [
        f"  {cost.quantity:<12} {cost.value:g} {cost.unit} on {printable(cost.device)}, {cost.kernels} kernels"
        + "".join(f", {printable(name)} {printable(str(value))}" for name, value in sorted(cost.settings.items()))
        for cost in found.costs
    ]
    if found.reviews is not None:
        lines.append(f"  reviews      {found.reviews.accepted} of {found.reviews.reviewed} clips accepted")
    return ["  costs and reviews", *lines] if lines else []


def _details(record: DeltaRecord) -> str:
    lines = [display_id(record.id)]

    def say(label: str, text: str) -> None:
        lines.append(f"  {label:<12} {text}")

    say("id", record.id)
    say("aliases", ", ".join(record.aliases) or "none")
    say("recipe", f"{printable(record.recipe.name)}  {display_id(record.recipe.id, 'recipe')}")
    say("base", f"{printable(record.base.model_type)}  {display_id(record.base.id, 'base')}")
    say("calibration", display_id(record.calibration.id, "calibration") if record.calibration else "none")
    say("state", f"{format_bytes(record.state_size_bytes)} in {record.state_tensors} tensors, without the documents")
    say("", f"sha256 {record.state_sha256}")
    say("sites", f"{record.quantized} quantized, {len(record.kept)} kept")
    for kept in record.kept:
        say("", f"{kept.expert}  {kept.site}  {printable(kept.reason)}")
    for place in record.locations:
        say("folder", printable(place.folder, 1000))
    for tied in record.base.hub:
        say("base on hub", f"{printable(tied.url, 1000)}  {len(tied.files)} files, tied {tied.tied_at[:19]}Z")
    for copy in record.hub:
        say("hub", describe_copy(copy))
    for event in record.events:
        detail = "  ".join(f"{key} {value}" for key, value in event.detail.items())
        say("history", f"{event.at[:19]}Z  {event.kind}  {printable(detail, 1000)}")
    return "\n".join(lines)


@click.command("lineage")
@click.argument("delta")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "mermaid"]), help="text (the default), json or mermaid."
)
@json_option
def lineage_command(delta: str, form: str | None, as_json: bool) -> None:
    """Show what a delta was made from, down to the files, and its siblings."""
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other")
    registry = open_registry()
    lineage = registry.lineage(registry.identify(delta))
    text = render_mermaid(lineage) if form == "mermaid" else render_text(lineage)
    emit(lineage.to_json(), text, as_json or form == "json")


expect_option = click.option("--expect", metavar="DELTA", help="Only if NAME means this delta now.")


@click.group("alias")
def alias_command() -> None:
    """Name deltas: a name such as wan22@prod can be moved from one delta to another."""


@alias_command.command("set")
@click.argument("name")
@click.argument("delta")
@expect_option
@json_option
def alias_set(name: str, delta: str, expect: str | None, as_json: bool) -> None:
    """Let NAME mean DELTA from now on.

    With --expect it moves only if it means that delta now (`none`: if there is no such name yet), else exit 3: two
    people who both saw the old meaning cannot overrule each other unseen.
    """
    change = open_registry().set_alias(name, delta, expect=expect)
    moved = change.before is not None and change.before != change.id
    if moved and change.before is not None:
        note(f"{name} was {display_id(change.before)} until now")
    document = {"name": name, "id": change.id, "display": display_id(change.id), "before": change.before}
    emit(document, f"{name}  {display_id(change.id)}", as_json)


@alias_command.command("rm")
@click.argument("name")
@expect_option
@json_option
def alias_rm(name: str, expect: str | None, as_json: bool) -> None:
    """Forget NAME; the delta stays registered."""
    delta_id = open_registry().remove_alias(name, expect=expect)
    emit({"name": name, "id": delta_id, "removed": True}, f"{name} no longer means {display_id(delta_id)}", as_json)


@alias_command.command("list")
@json_option
def alias_list(as_json: bool) -> None:
    """List every name and the delta that it means."""
    registry = open_registry()
    aliases = registry.aliases()
    note_absence(registry)
    if not aliases and not as_json:
        note("no alias is set")
        return
    width = max((len(name) for name in aliases), default=0)
    emit({"aliases": aliases}, "\n".join(f"{name:<{width}}  {display_id(i)}" for name, i in aliases.items()), as_json)
