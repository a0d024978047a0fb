"""Pulling a delta: the list first, then the files one by one, checked, and only then the folder."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import http_get

from hfq.schema.atomic import publish_folder
from hfq.schema.documents import read_document
from hfq.schema.errors import (
    DigestMismatchError,
    HubListingError,
    HubNotFoundError,
    MalformedFileError,
    OutputExistsError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
)

from ..folder import read_delta_folder
from .address import MAIN, check_repo, check_revision, tag_of
from .client import Hub, open_hub
from .files import CARD, DOCUMENT, LIMITS, NAMES, PROVENANCE, REPORT, REQUIRED, STATE
from .listing import ListedFile, Listing, check_names, digests_of, read_listing

__all__ = ["Pulled", "pull"]

_SPARE_BYTES: Final = 64 << 20
_EXPECTED_BY_GIT: Final = (".gitattributes", ".gitignore")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A verified copy.

    Attributes:
        commit: git commit that the files are of, 40 hex digits.
        ignored: files of the repository that are no part of a delta; they were never asked for.
    """

    folder: Path
    repo: str
    commit: str
    id: str
    files: tuple[str, ...]
    ignored: tuple[str, ...]


def pull(
    repo: str,
    out: str | os.PathLike[str],
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Pulled:
    """Download a delta into `out`, which appears only when everything in it has been verified.

    Only a delta's own files are asked for, by the commit that was listed, into `OUT.partial`. Nothing is executed.

    Args:
        revision: a branch, tag or commit; None is main.
        endpoint: another Hub than the client's own.
        token: None takes the user's saved one, if any.

    Raises:
        OutputExistsError, UsageError
        HubListingError: paths that leave the repository, doubles, look-alikes, sizes out of bounds.
        HubNotFoundError: no such repository or revision, or it holds no delta.
        DigestMismatchError: a file that is not the listed one, or a delta that contradicts itself or its tag.
        TooLargeError, TruncatedFileError: more or fewer bytes than listed.
        what `read_delta_folder` raises, HubAccessError, HubBusyError, HubUnavailableError, HubError
    """
    check_repo(repo)
    wanted = check_revision(revision or MAIN)
    target = Path(out)
    partial = _room_for(target)
    hub = open_hub(endpoint, token)
    listing = read_listing(hub, repo, wanted)
    files = _select(listing)
    try:
        partial.mkdir()
    except OSError as error:
        raise UnreadableFileError("cannot be made", where=partial, found=error.strerror) from error
    try:
        found = _download(hub, listing, files, partial)
        if wanted.startswith("delta-") and wanted != tag_of(found):
            raise DigestMismatchError(
                "the tag names another delta", where=f"{repo}@{wanted}", expected=wanted, found=tag_of(found)
            )
        _publish(partial, target)
    except OSError as error:  # the Hub's failures have become HubErrors below; what is left is the disk's
        raise UnreadableFileError("cannot be written", where=partial, found=error.strerror) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    ignored = tuple(file.name for file in listing.files if file.name not in (*files, *_EXPECTED_BY_GIT))
    return Pulled(target, repo, listing.commit, found, tuple(files), ignored)


def _room_for(out: Path) -> Path:
    if out.exists() or out.is_symlink():
        raise OutputExistsError("the output is already there", where=out, todo="choose another name, or remove it")
    if not out.name or not out.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=out.parent)
    partial = out.with_name(out.name + ".partial")
    if partial.exists() or partial.is_symlink():
        raise OutputExistsError("unfinished work is already there", where=partial, todo="remove it")
    return partial


def _select(listing: Listing) -> dict[str, ListedFile]:
    """The delta's files, in the order of NAMES, with sizes inside their bounds."""
    check_names(listing, NAMES)
    where = f"{listing.repo}@{listing.commit[:12]}"
    listed = listing.by_name
    for name in REQUIRED:
        if name not in listed:
            raise HubNotFoundError("the repository holds no delta", where=where, expected=name)
    for name, limit in LIMITS.items():
        if name in listed and listed[name].size_bytes > limit:
            raise HubListingError(
                "a file too large",
                where=f"{where}: {name}",
                expected=f"at most {limit} bytes",
                found=listed[name].size_bytes,
            )
    return {name: listed[name] for name in NAMES if name in listed}


def _download(hub: Hub, listing: Listing, files: Mapping[str, ListedFile], partial: Path) -> str:
    """Fetch and verify everything; returns the delta's id."""
    _fetch(hub, listing, files[DOCUMENT], partial)
    document = read_document(partial / DOCUMENT, "ptq-state")
    _check_state_size(listing, files[STATE], document["state"], partial)
    for name in (PROVENANCE, REPORT, CARD, STATE):
        if name in files:
            _fetch(hub, listing, files[name], partial)
    facts = read_delta_folder(partial)
    if REPORT in files:
        report = read_document(partial / REPORT, "report")
        if report["delta"] != facts.id:
            raise DigestMismatchError(
                "the report is of another delta",
                where=f"{listing.repo}: {REPORT}",
                expected=facts.id,
                found=report["delta"],
            )
    if CARD in files:
        _check_text(partial / CARD, f"{listing.repo}: {CARD}")
    return facts.id


def _check_state_size(listing: Listing, file: ListedFile, claim: Mapping[str, Any], partial: Path) -> None:
    """Before gigabytes are fetched: the list, the document and the disk must agree."""
    where = f"{listing.repo}@{listing.commit[:12]}: {file.name}"
    if file.size_bytes != claim["size_bytes"]:
        failure = TruncatedFileError if file.size_bytes < claim["size_bytes"] else TrailingBytesError
        raise failure(
            "not the size that the document names",
            where=where,
            expected=f"{claim['size_bytes']} bytes",
            found=file.size_bytes,
        )
    if file.sha256 is not None and file.sha256 != claim["sha256"]:
        raise DigestMismatchError(
            "not the file that the document names", where=where, expected=claim["sha256"], found=file.sha256
        )
    free_bytes = shutil.disk_usage(partial).free
    if file.size_bytes + _SPARE_BYTES > free_bytes:
        raise UsageError(
            "the disk has no room for it", where=partial.parent, expected=f"{file.size_bytes} bytes", found=free_bytes
        )


def _fetch(hub: Hub, listing: Listing, file: ListedFile, partial: Path) -> None:
    path = partial / file.name
    where = f"{listing.repo}@{listing.commit[:12]}: {file.name}"
    url = hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=hub.endpoint)

    def ask() -> None:
        try:
            with _BoundedFile(path, where, file.size_bytes) as target:
                http_get(url, target, headers=hub.headers, expected_size=file.size_bytes, displayed_filename=file.name)
                os.fsync(target.fileno())
        except OSError as error:
            if error.errno is not None:
                raise UnreadableFileError("cannot be written", where=path, found=error.strerror) from error
            if type(error) is OSError:  # the client's own, for a stream that ended too early
                raise TruncatedFileError("fewer bytes than listed", where=where, todo="try again") from error
            raise

    hub.read(where, ask)
    file.check(digests_of(path), where)


class _BoundedFile(io.FileIO):
    """A new file that takes no more bytes than were listed: a stream need not end where it says."""

    def __init__(self, path: Path, where: str, limit: int) -> None:
        super().__init__(path, "w")
        self._where = where
        self._limit = limit

    def write(self, data: Any) -> int:
        block = memoryview(data)
        if self.tell() + block.nbytes > self._limit:
            raise TooLargeError("more bytes than listed", where=self._where, expected=f"{self._limit} bytes")
        written = 0
        while written < block.nbytes:  # a raw file may take a part only
            written += super().write(block[written:]) or 0
        return written


def _check_text(path: Path, where: str) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=where, found=f"byte {error.start}") from None


def _publish(partial: Path, out: Path) -> None:
    """Give the verified folder its name; an `out` that appeared meanwhile is not replaced."""
    if out.exists() or out.is_symlink():  # renaming onto an empty folder would succeed
        raise OutputExistsError("the output appeared meanwhile", where=out, todo="choose another name, or remove it")
    publish_folder(partial, out)
