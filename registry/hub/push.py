"""Pushing a delta: one commit on top of the one that was looked at, then a tag."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

from hfq.schema.documents import parse_document, read_bytes
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    UnreadableFileError,
    UsageError,
)

from ..folder import read_delta_folder
from ..text import display_id
from .address import MAIN, check_repo, check_revision, is_commit, tag_of
from .card import card_facts, render_card
from .card_check import check_card
from .card_scores import Recorded
from .client import Hub, open_hub
from .files import CARD, DOCUMENT, NAMES, PROVENANCE, REPORT, STATE
from .listing import Digests, Listing, digests_of, read_listing

__all__ = ["Pushed", "PushedFile", "push"]


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file as it was, or would be, uploaded."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        commit: git commit, 40 hex digits; None after a dry run.
        tag: None after a dry run and for a pull request, whose commit is not yet the repository's.
        tagged: the commit that the tag names: an older one where only the card is new.
        url: of the tag, the commit or the pull request.
        is_new: whether there was anything to commit.
        card: the text of the model card.
        notes: what the Hub remarked on the card.
    """

    repo: str
    id: str
    commit: str | None
    tag: str | None
    files: tuple[PushedFile, ...]
    url: str
    is_new: bool
    card: str
    endpoint: str
    tagged: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Parcel:
    """The verified bytes. Streams, not paths: what was verified is what is sent."""

    id: str
    card: str
    streams: Mapping[str, BinaryIO]
    digests: Mapping[str, Digests]

    @property
    def files(self) -> tuple[PushedFile, ...]:
        return tuple(PushedFile(name, found.size_bytes, found.sha256) for name, found in self.digests.items())


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    base_model: str | Sequence[str],
    license: str,
    pipeline_tag: str | None = None,
    recorded: Recorded | None = None,
    base_commits: Mapping[str, str] | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Verify a delta's folder and upload its documents, its state file and a model card as one commit.

    The repository is made if it is not there, its other files stay. Pushing the same again changes nothing.

    Args:
        base_model: repositories of the checkpoint that the delta needs.
        license: the Hub's identifier, for example `apache-2.0`.
        pipeline_tag: None takes that of the model's kind.
        recorded: what a registry knows of the delta's clips, for the card; None where none knows the delta.
        base_commits: base repository -> commit that is known to hold the base; the card links it.
        private: of a repository that is made; an existing one must not be public then.
        revision: a branch, made if it is not there; None is main.
        create_pr: open a pull request instead of committing to the branch.
        dry_run: verify, render and check, and contact nobody.
        endpoint: another Hub than the client's own.
        token: None takes the user's saved one.

    Raises:
        what `read_delta_folder` raises, ModelCardError, UsageError
        HubConflictError: the branch moved meanwhile, or the delta's tag names other files.
        HubAccessError, HubNotFoundError, HubBusyError, HubUnavailableError, HubError
    """
    check_repo(repo)
    branch = check_revision(revision or MAIN)
    if is_commit(branch):
        raise UsageError("a commit cannot be added to", expected="a branch", found=branch)
    hub = open_hub(endpoint, token)
    with _packed(folder, repo, branch, base_model, license, pipeline_tag, recorded, base_commits, create_pr) as parcel:
        if dry_run:
            url = f"{hub.endpoint}/{repo}/tree/{branch}"
            return Pushed(repo, parcel.id, None, None, parcel.files, url, True, parcel.card, hub.endpoint)
        parent = _prepare(hub, repo, branch, private=private, create_pr=create_pr)
        tag = None if create_pr else tag_of(parcel.id)
        tagged = None if tag is None else _tagged(hub, repo, tag, parcel)
        info, notes = _commit(hub, repo, branch, parcel, parent, create_pr=create_pr)
        _check_arrival(hub, repo, info.oid, parcel)
        if tag is not None and tagged is None:
            _set_tag(hub, repo, tag, info.oid, parcel)
        tagged = None if tag is None else tagged or info.oid
        place = tag if tag is not None and tagged == info.oid else info.oid
        url = info.pr_url or f"{hub.endpoint}/{repo}/tree/{place}"
        is_new = info.oid != parent.commit
        return Pushed(
            repo, parcel.id, info.oid, tag, parcel.files, url, is_new, parcel.card, hub.endpoint, tagged, notes
        )


@contextlib.contextmanager
def _packed(
    folder: str | os.PathLike[str],
    repo: str,
    branch: str,
    base_model: str | Sequence[str],
    license: str,
    pipeline_tag: str | None,
    recorded: Recorded | None,
    base_commits: Mapping[str, str] | None,
    create_pr: bool,
) -> Iterator[_Parcel]:
    facts = read_delta_folder(folder)
    path = Path(facts.folder)
    contents = {name: read_bytes(path / name) for name in (DOCUMENT, PROVENANCE)}
    if (path / REPORT).exists():
        contents[REPORT] = read_bytes(path / REPORT)
    document = parse_document(contents[DOCUMENT], "ptq-state", str(path / DOCUMENT))
    report = parse_document(contents[REPORT], "report", str(path / REPORT)) if REPORT in contents else None
    provenance = parse_document(contents[PROVENANCE], "provenance", str(path / PROVENANCE))
    for name, owner in ((DOCUMENT, document["id"]), (PROVENANCE, provenance["delta"])):
        _check_owner(path / name, owner, facts.id)
    if report is not None:
        _check_owner(path / REPORT, report["delta"], facts.id)
    # The commit carries the tag, so the card may name it before it is there; a pull request has none.
    pinned = (branch if branch != MAIN else None) if create_pr else tag_of(facts.id)
    card = render_card(
        document,
        report,
        card_facts(
            document,
            repo=repo,
            base_model=base_model,
            license=license,
            pipeline_tag=pipeline_tag,
            revision=pinned,
            recorded=recorded,
            base_commits=base_commits,
        ),
    )
    check_card(card)
    contents[CARD] = card.encode()
    with _open(path / STATE) as state:
        streams: dict[str, BinaryIO] = {STATE: state, **{name: io.BytesIO(data) for name, data in contents.items()}}
        streams = {name: streams[name] for name in NAMES if name in streams}
        digests = {name: digests_of(stream) for name, stream in streams.items()}
        if digests[STATE].sha256 != facts.state_sha256:
            raise DigestMismatchError("the file changed while it was read", where=path / STATE, todo="run it again")
        yield _Parcel(facts.id, card, streams, digests)


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnreadableFileError("cannot be opened", where=path, found=error.strerror) from error


def _check_owner(where: Path, owner: str, delta_id: str) -> None:
    if owner != delta_id:
        raise DigestMismatchError("of another delta", where=where, expected=delta_id, found=owner)


def _prepare(hub: Hub, repo: str, branch: str, *, private: bool, create_pr: bool) -> Listing:
    """The branch as it is now; repository and branch are made when they are not there."""
    try:
        main = read_listing(hub, repo, MAIN)
    except HubNotFoundError:
        if create_pr:
            raise
        hub.write(repo, lambda: hub.api.create_repo(repo, private=private, exist_ok=True))
        main = read_listing(hub, repo, MAIN)
    if private and not main.is_private:
        raise UsageError(
            "the repository is public",
            where=repo,
            todo="make it private on its page, or push without --private",
        )
    if branch == MAIN:
        return main
    try:
        return read_listing(hub, repo, branch)
    except HubNotFoundError:
        if create_pr:
            raise
        hub.write(repo, lambda: hub.api.create_branch(repo, branch=branch, revision=main.commit, exist_ok=True))
        return read_listing(hub, repo, branch)


def _tagged(hub: Hub, repo: str, tag: str, parcel: _Parcel) -> str | None:
    """The commit that the tag names, if there is one. A tag is not moved: it must name this delta already."""
    refs = hub.read(repo, lambda: hub.api.list_repo_refs(repo))
    commit = next((str(ref.target_commit) for ref in refs.tags if ref.name == tag), None)
    if commit is not None:
        listed = read_listing(hub, repo, tag).by_name
        for name in (DOCUMENT, STATE):
            if name not in listed or not listed[name].holds(parcel.digests[name]):
                raise HubConflictError(
                    "the delta's tag is there and names other files",
                    where=f"{repo}@{tag}",
                    expected=f"the {name} of {display_id(parcel.id)}",
                    found=f"commit {commit[:12]}",
                    todo="find out who set it; remove it on the repository's page if it is wrong",
                )
    return commit


_MESSAGE: Final = "Add {display}"


def _commit(
    hub: Hub, repo: str, branch: str, parcel: _Parcel, parent: Listing, *, create_pr: bool
) -> tuple[CommitInfo, tuple[str, ...]]:
    # A report that the new delta does not have would be another delta's.
    stale = [name for name in NAMES if name in parent.by_name and name not in parcel.streams]

    def ask() -> CommitInfo:
        operations: list[Any] = [CommitOperationDelete(name) for name in stale]
        for name, stream in parcel.streams.items():
            stream.seek(0)
            operations.append(CommitOperationAdd(name, stream))
        return hub.api.create_commit(
            repo,
            operations,
            commit_message=_MESSAGE.format(display=display_id(parcel.id)),
            commit_description=f"id {parcel.id}",
            revision=branch,
            create_pr=create_pr,
            parent_commit=parent.commit,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info = hub.write(f"{repo}@{branch}", ask)
    if not is_commit(info.oid):
        raise HubError("not a commit", where=repo, found=repr(info.oid))
    return info, tuple(str(entry.message) for entry in caught if issubclass(entry.category, UserWarning))


def _check_arrival(hub: Hub, repo: str, commit: str, parcel: _Parcel) -> None:
    """A repository's .gitignore makes the Hub drop files of a commit without a word."""
    listed = read_listing(hub, repo, commit).by_name
    for name, found in parcel.digests.items():
        if name not in listed:
            raise HubError(
                "the Hub left a file out of the commit",
                where=f"{repo}@{commit[:12]}",
                expected=name,
                todo="look at the repository's .gitignore, and push again",
            )
        listed[name].check(found, f"{repo}@{commit[:12]}: {name}")


def _set_tag(hub: Hub, repo: str, tag: str, commit: str, parcel: _Parcel) -> None:
    try:
        hub.write(
            f"{repo}@{tag}",
            lambda: hub.api.create_tag(repo, tag=tag, tag_message=f"id {parcel.id}", revision=commit),
        )
    except HubConflictError:
        if _tagged(hub, repo, tag, parcel) is None:  # else somebody pushed the same delta at the same time
            raise
    except HubError as error:
        raise _with_commit(error, commit) from error


def _with_commit(error: HubError, commit: str) -> HfqError:
    return type(error)(
        f"commit {commit[:12]} is made and not tagged: {error.what}",
        where=error.where,
        expected=error.expected,
        found=error.found,
        todo="push again: only the tag is missing",
    )
