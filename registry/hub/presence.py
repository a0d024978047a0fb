"""What the Hub holds of a delta on disk and of its base: asked by digests, before a registration is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hfq.schema.documents import read_bytes
from hfq.schema.errors import DigestMismatchError, HubTieError

from ..folder import DeltaFacts, ExpertFacts
from ..hub_records import HubFileRecord
from ..hub_store import BasePlace, DeltaPlace, OnHub
from .address import MAIN, is_tag_of, names_delta, split_place, tag_of
from .client import Hub, open_hub
from .files import CARD, NAMES, REPORT, STATE, listed_files
from .listing import Digests, ListedFile, digests_of, read_listing
from .revision import match_files

__all__ = ["ask_hub"]

_NAMES_SHOWN: Final = 3


def ask_hub(
    facts: DeltaFacts,
    *,
    copy: str | None = None,
    bases: Sequence[str] = (),
    endpoint: str | None = None,
    token: str | None = None,
) -> OnHub:
    """Ask whether one commit holds exactly this delta, and which commits hold its base. Metadata only.

    Args:
        facts: of a verified folder; its documents are compared as they lie there.
        copy: `OWNER/NAME[@REVISION]` of the delta.
        bases: `OWNER/NAME[@REVISION]`; each must hold every file of the copy of the base that the delta was made from,
            by the hashes in its provenance. They are its maker's word: of a delta made elsewhere, somebody else's.
        endpoint: another Hub than the client's own.
        token: None takes the user's saved one, if any.

    Raises:
        UsageError, HubListingError
        DigestMismatchError: a file of the delta is another one there, or is on one side only.
        HubTieError: a base's file is not there, or its hash was taken on trust.
        HubNotFoundError: no such repository or revision, or it holds no delta.
        HubAccessError, HubBusyError, HubUnavailableError, HubError
    """
    delta_place = split_place(copy) if copy is not None else None
    base_places = [split_place(text) for text in bases]
    for expert in facts.experts if base_places else ():
        _refuse_trusted(expert)
    hub = open_hub(endpoint, token)
    return OnHub(
        copy=_find_delta(hub, *delta_place, facts) if delta_place is not None else None,
        bases=tuple(_find_base(hub, *place, facts) for place in base_places),
    )


def _find_delta(hub: Hub, repo: str, revision: str | None, facts: DeltaFacts) -> DeltaPlace:
    listing = read_listing(hub, repo, revision or MAIN)
    listed = listed_files(listing)
    folder = Path(facts.folder)
    where = f"{repo}@{listing.commit[:12]}"
    for name in NAMES:
        has_local = name != REPORT or (folder / REPORT).exists()
        if name == CARD or (name not in listed and not has_local):  # a card belongs to the repository
            continue
        if name not in listed or not has_local:
            side, other = ("the folder", "the Hub") if has_local else ("the Hub", "the folder")
            raise DigestMismatchError(
                f"{side} has a file that {other} does not have",
                where=f"{where}: {name}",
                todo=f"register a folder that was pulled from there: `hfq pull {repo}`",
            )
        found = _digests_of_state(listed[name], facts) if name == STATE else digests_of(read_bytes(folder / name))
        if not listed[name].holds(found):
            raise DigestMismatchError(
                "the Hub holds another file than the folder",
                where=f"{where}: {name}",
                expected=_describe(listed[name], found.size_bytes, found.sha256, found.git_sha1),
                found=_describe(listed[name], listed[name].size_bytes, listed[name].sha256, listed[name].git_sha1),
                todo=f"name the revision that holds it, or register a folder that was pulled: `hfq pull {repo}`",
            )
    tag = revision if revision is not None and is_tag_of(revision, facts.id) else None
    if revision is not None and tag is None and names_delta(revision):
        raise DigestMismatchError("the tag names another delta", where=f"{repo}@{revision}", expected=tag_of(facts.id))
    return DeltaPlace(hub.endpoint, repo, listing.commit, tag)


def _digests_of_state(listed: ListedFile, facts: DeltaFacts) -> Digests:
    # Gigabytes that were hashed a moment ago; git's digest is needed only where the file is no LFS file.
    if listed.sha256 is None:
        return digests_of(Path(facts.folder) / STATE)
    return Digests(facts.state_size_bytes, "", facts.state_sha256)


def _describe(listed: ListedFile, size_bytes: int, sha256: str | None, git_sha1: str | None) -> str:
    digest = f"sha256 {sha256}" if listed.sha256 is not None else f"git blob {git_sha1}"
    return f"{size_bytes} bytes, {digest}"


def _refuse_trusted(expert: ExpertFacts) -> None:
    trusted = [file.name for file in expert.witnesses if file.trusted]
    if trusted or not expert.witnesses:
        raise HubTieError(
            "a base is tied by hashes that were computed, and these were taken on trust",
            where=expert.role,
            expected="a computed SHA-256 of every file of the base",
            found=_first(trusted) if trusted else "no file",
            todo="convert again without trusting hashes",
        )


def _find_base(hub: Hub, repo: str, revision: str | None, facts: DeltaFacts) -> BasePlace:
    listing = read_listing(hub, repo, revision or MAIN)
    files: list[HubFileRecord] = []
    missing: list[str] = []
    for expert in facts.experts:
        for file in expert.witnesses:  # one by one: two of them may have the same name
            match = match_files(listing, {file.name: file.sha256})
            missing += [f"{expert.role}: {name}" for name in match.missing]
            files += [HubFileRecord(expert.role, file.sha256, path) for path in match.matched.values()]
    if missing:
        total = len(files) + len(missing)
        raise HubTieError(
            "the commit does not hold the base that the delta was made from",
            where=f"{repo}@{listing.commit[:12]}",
            expected=f"all {total} files, by SHA-256",
            found=f"{len(files)} of them; missing {_first(missing)}",
            todo="name the repository and revision that the files were downloaded from",
        )
    return BasePlace(hub.endpoint, repo, listing.commit, tuple(files))


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
