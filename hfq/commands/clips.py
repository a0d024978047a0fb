"""`hfq stamp` and `hfq audit`: what made a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hfq.console import emit, json_option, note
from hfq.paths import note_absence
from hfq.registry import open_registry
from hfq.schema.errors import HfqError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from hfq.registry.clips.keys import SigningKey
    from hfq.registry.clips.ladder import Audit

__all__ = ["audit_command", "chosen_key", "parse_settings", "signing_options", "stamp_command"]

_SETTING = "NAME=VALUE"


def signing_options(command: Any) -> Any:
    """`--sign`, `--key` and `--certificates`, for every command that writes clips."""
    for option in (
        click.option(
            "--certificates", type=click.Path(readable=False), help="PEM chain of --key, the signing certificate first."
        ),
        click.option(
            "--key", type=click.Path(readable=False), help="Private key (PEM) to sign with, in place of the local one."
        ),
        click.option("--sign/--no-sign", default=None, help="Sign the clip (default: when there is a local key)."),
    ):
        command = option(command)
    return command


def chosen_key(sign: bool | None, key: str | None, certificates: str | None) -> SigningKey | None:
    """The key to sign with, or None.

    Raises:
        UsageError: half of a key.
        MissingKeyError: told to sign, and there is none.
        and what `load_signing_key` raises.
    """
    from hfq.registry.clips.keys import has_local_key, load_local_key, load_signing_key

    if (key is None) != (certificates is None) or (key is not None and sign is False):
        raise UsageError("a key goes with its certificates", expected="--key and --certificates, without --no-sign")
    if key is not None and certificates is not None:
        return load_signing_key(Path(key), Path(certificates))
    if sign is False or (sign is None and not has_local_key()):
        return None
    return load_local_key()


def parse_settings(given: tuple[str, ...]) -> dict[str, str | int | float]:
    """`--setting NAME=VALUE`, a number where the value reads as one.

    Raises:
        UsageError: no name, no `=`, or a name that was there.
    """
    found: dict[str, str | int | float] = {}
    for entry in given:
        name, separator, text = entry.partition("=")
        if not separator or not name:
            raise UsageError("not a setting", expected=_SETTING, found=entry)
        if name in found:
            raise UsageError("a setting is given twice", expected=f"{name} once", found=entry)
        found[name] = _number(text)
    return found


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@click.command("stamp")
@click.argument("clip", type=click.Path(readable=False))
@click.option("--variant", required=True, metavar="DELTA", help="The registered delta that made it.")
@click.option("--prompt", help="What it was made from; its hash is stored.")
@click.option("--store-prompt", is_flag=True, help="Store the prompt's text, too.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the initial noise.")
@click.option("--setting", "settings", multiple=True, metavar=_SETTING, help="Such as steps=40; may be repeated.")
@click.option(
    "--anyway", is_flag=True, help="Stamp it although its tag, its manifest or the registry names another variant."
)
@signing_options
@click.option("-o", "--out", type=click.Path(), required=True, help="File to make, in the container of CLIP.")
@json_option
def stamp_command(
    clip: str,
    variant: str,
    prompt: str | None,
    store_prompt: bool,
    seed: int | None,
    settings: tuple[str, ...],
    anyway: bool,
    sign: bool | None,
    key: str | None,
    certificates: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Copy CLIP with a note of what made it, and record the copy in the registry; CLIP itself is never changed.

    For clips made by other programs; `hfq generate` stamps its own. The pictures stay as they are, bit for bit, and so
    does everything else in the file; a comment that it had is kept as `hfq_previous_comment`. A clip that says, or that
    the registry says, that another variant made it is refused (exit 3); with --anyway it is stamped, and the copy and
    the registry say what spoke against it.

    \b
    hfq stamp clip.mp4 --variant wan22@candidate --prompt "..." --seed 7 -o stamped.mp4
    """
    from hfq.registry.clips.clip_document import ClipDocument, prompt_sha256
    from hfq.registry.clips.objections import refuse_objections
    from hfq.registry.clips.stamp import stamp_clip

    if store_prompt and prompt is None:
        raise UsageError("there is no prompt to store", todo="give it with --prompt")
    registry = open_registry()
    delta_id = registry.identify(variant)
    base = {expert.role: expert.bf16_root for expert in registry.get(delta_id).base.experts}
    document = ClipDocument(
        delta=delta_id,
        base=base,
        prompt_sha256=None if prompt is None else prompt_sha256(prompt),
        prompt=prompt if store_prompt else None,
        seed=seed,
        settings=parse_settings(settings),
    )
    signing_key = chosen_key(sign, key, certificates)
    registry.check_writable()
    objections = registry.objections(clip, document.variant)
    if anyway:
        document = replace(document, despite=objections)
    refuse_objections(objections, document, clip)
    stamped = stamp_clip(clip, out, document, signing_key)
    try:
        recorded = registry.record_clip(out, document, manifest=stamped.manifest, signed=stamped.manifest is not None)
    except BaseException:
        stamped.path.unlink(missing_ok=True)  # what is not recorded would be a clip that nobody knows
        raise
    for name in stamped.previous:
        note(f"the comment that the clip had is kept in the copy as {name}")
    if stamped.lost_manifest:
        note("the signed manifest of the clip is not in the copy")
    for one in document.despite:
        note(f"stamped in spite of this: {one}")
    found = {
        "clip": out,
        "variant": document.variant.id,
        "signed": stamped.manifest is not None,
        "file_sha256": recorded.file_sha256,
        "new": recorded.is_new,
        "previous_comments": sorted(stamped.previous),
        "despite": document.to_json().get("despite", []),
    }
    signed = "signed" if stamped.manifest is not None else "not signed"
    emit(found, f"clip        {out}  ({signed})\nvariant     {document.variant}", as_json)


@click.command("audit")
@click.argument("clip", type=click.Path(readable=False))
@json_option
def audit_command(clip: str, as_json: bool) -> None:
    """Say which registered variant made CLIP, and on what evidence; offline, and nothing is written.

    Rungs: attested (a trusted signature), exact-file, exact-stream (the decoded frames): proof. claimed (the comment
    tag), similar (the pictures): hints. Exit code 0: proven. 3: the rungs contradict each other, or a manifest is
    invalid. 5: unproven, with the candidates.
    """
    from hfq.registry.clips.keys import anchors_pem

    anchors: str | HfqError
    try:
        anchors = anchors_pem()
    except MissingDependencyError:  # without the extra nothing signed can be read, and the ladder says so
        anchors = ""
    except HfqError as error:
        anchors = error
    registry = open_registry()
    found = registry.audit(clip, anchors_pem=anchors)
    note_absence(registry)
    emit({"clip": clip, **found.to_json()}, "\n".join(_lines(found)), as_json)
    if found.exit_code:
        raise click.exceptions.Exit(found.exit_code)


def _lines(found: Audit) -> list[str]:
    from hfq.registry.clips.match import margin_text

    lines = [f"verdict     {found.verdict}" + ("" if found.variant is None else f": {found.variant}")]
    for rung in found.rungs:
        names = ", ".join(map(str, rung.variants[:3]))
        lines.append(f"  {rung.name:<13} {rung.state:<12} {rung.detail}{f'  [{names}]' if names else ''}")
    if found.variant is None:
        lines += [
            f"candidate   {entry.variant}  distance {entry.distance:.4f}, margin {margin_text(entry.margin)}"
            for entry in found.match.candidates[:5]
        ]
    return lines + [f"contradiction  {line}" for line in found.contradictions]
