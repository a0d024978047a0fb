"""`hfq push` and `hfq pull`: deltas on the Hugging Face Hub."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hfq.console import emit, format_bytes, json_option, note
from hfq.paths import delta_folder
from hfq.registry import Registry, open_registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.hub_store import DeltaPlace
from hfq.registry.text import display_id, printable
from hfq.schema.errors import UnknownIdError

if TYPE_CHECKING:
    from hfq.registry.hub import Recorded

__all__ = ["pull_command", "push_command"]


@click.command("push")
@click.argument("delta")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--base-model", "bases", multiple=True, required=True, metavar="OWNER/NAME",
              help="Repository of the checkpoint that the delta needs; may be repeated.")  # fmt: skip
@click.option("--license", "licence", required=True, help="Of the delta: the Hub's identifier, such as apache-2.0.")
@click.option("--pipeline-tag", help="text-to-video or image-to-video, where the model does not tell.")
@click.option("--private", is_flag=True, help="Make a missing repository private.")
@click.option("--revision", help="Branch (default: main).")
@click.option("--create-pr", is_flag=True, help="As a pull request; it gets no tag.")
@click.option("--dry-run", is_flag=True, help="Print what would be uploaded; nobody is contacted.")
@json_option
def push_command(
    delta: str,
    repo: str,
    bases: tuple[str, ...],
    licence: str,
    pipeline_tag: str | None,
    private: bool,
    revision: str | None,
    create_pr: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload DELTA to the Hub: its documents, its state and a model card made from them, in one commit with a tag.

    The folder is verified first. The card has the scores, costs and reviews that the registry has of the delta, and
    links the commit of the base that `hfq register --base-hub` has compared. The token is the one that `hf auth login`
    saved, or HF_TOKEN; HF_ENDPOINT names another Hub.

    \b
    hfq push wan22@prod someone/wan22-tail999 --base-model Wan-AI/Wan2.2-T2V-A14B --license apache-2.0
    """
    from hfq.registry.hub import push
    from hfq.registry.hub.address import check_endpoint

    folder = delta_folder(delta)
    registry = _written_registry()
    commits = _base_commits(registry, folder, check_endpoint(None), bases)
    for base in bases:
        if base not in commits:
            note(
                f"{printable(base)}: its files were not compared with the delta's base, and the card says so; "
                f"{shlex.join(['hfq', 'register', str(folder), '--base-hub', base])} compares them"
            )
    pushed = push(
        folder,
        repo,
        base_model=bases,
        license=licence,
        pipeline_tag=pipeline_tag,
        recorded=_recorded(registry, folder),
        base_commits=commits,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
    )
    for line in pushed.notes:
        note(f"the Hub says: {printable(line, 1000)}")
    if pushed.commit is not None:
        # The commit of a pull request is not the repository's yet: a line of the history, and no place of the delta.
        tag = pushed.tag if pushed.tagged == pushed.commit else None
        place = DeltaPlace(pushed.endpoint, pushed.repo, pushed.commit, tag) if pushed.tag is not None else None
        _remember(registry, "pushed", pushed.id, place, repo=pushed.repo, commit=pushed.commit, tag=pushed.tag or "")
    document = {
        "id": pushed.id,
        "repo": pushed.repo,
        "commit": pushed.commit,
        "tag": pushed.tag,
        "url": pushed.url,
        "new": pushed.is_new,
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in pushed.files],
        "card": pushed.card,
    }
    lines = [f"{file.name:<26} {format_bytes(file.size_bytes)}" for file in pushed.files]
    if dry_run:
        lines += ["", pushed.card.rstrip(), "", "nothing was uploaded (--dry-run)"]
    else:
        what = "pushed" if pushed.is_new else "already there"
        lines.append(f"{what}: {display_id(pushed.id)} to {printable(pushed.url, 1000)}")
    emit(document, "\n".join(lines), as_json)


@click.command("pull")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder to make.")
@click.option("--revision", help="Branch, tag or commit (default: main); a tag delta-... must hold that delta.")
@json_option
def pull_command(repo: str, out: str, revision: str | None, as_json: bool) -> None:
    """Fetch a delta from the Hub into a new folder; every digest is checked before the folder gets its name.

    Only a delta's own files are asked for; nothing in them is executed. After a broken connection or an interruption
    the same command goes on from what has arrived in OUT.partial.

    \b
    hfq pull someone/wan22-tail999 -o wan22-tail999
    """
    from hfq.registry.hub import pull

    registry = _written_registry()
    pulled = pull(repo, Path(out), revision=revision)
    if pulled.ignored:
        note(f"not fetched: {len(pulled.ignored)} other files of the repository")
    place = DeltaPlace(pulled.endpoint, pulled.repo, pulled.commit, pulled.tag)
    _remember(registry, "pulled", pulled.id, place, repo=pulled.repo, commit=pulled.commit)
    document = {
        "id": pulled.id,
        "folder": str(pulled.folder),
        "repo": pulled.repo,
        "commit": pulled.commit,
        "files": list(pulled.files),
        "ignored": [printable(name) for name in pulled.ignored],
    }
    text = (
        f"{display_id(pulled.id)}  in {pulled.folder}\ncommit      {pulled.commit} of {printable(pulled.repo)}\n"
        f"next        {shlex.join(['hfq', 'verify', str(pulled.folder), '--base', 'MODEL'])}"
    )
    emit(document, text, as_json)


def _written_registry() -> Registry | None:
    """The registry, if there is one."""
    registry = open_registry()
    if registry.status().state in ("absent", "empty"):
        return None
    registry.check_writable()  # refused now, and not when the Hub has been written to
    return registry


def _base_commits(registry: Registry | None, folder: Path, endpoint: str, bases: Sequence[str]) -> dict[str, str]:
    """The commits of `bases` that the registry has the delta's base tied to; of several, the last one."""
    if registry is None:
        return {}
    try:
        tied = registry.get(registry.identify(folder)).base.hub
    except UnknownIdError:
        return {}
    return {place.repo: place.commit for place in reversed(tied) if place.repo in bases and place.endpoint == endpoint}


def _recorded(registry: Registry | None, folder: Path) -> Recorded | None:
    """What the registry has of the delta's clips; None where it does not know the delta."""
    from hfq.registry.hub import recorded_for_card

    if registry is None:
        return None
    try:
        return recorded_for_card(registry.evaluation(Variant("delta", registry.identify(folder))))
    except UnknownIdError:
        return None


def _remember(registry: Registry | None, kind: str, delta_id: str, place: DeltaPlace | None, **detail: str) -> None:
    """Add it to the delta's history, and where it lies to its places, if the delta is registered here."""
    if registry is None:
        return
    try:
        registry.add_event(kind, delta_id, place=place, **detail)
    except UnknownIdError:
        return
