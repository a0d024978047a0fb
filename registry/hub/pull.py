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

from hfq.schema.documents import read_document
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    HubAccessError,
    HubBusyError,
    HubError,
    HubNotFoundError,
    HubUnavailableError,
    MalformedFileError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
)

from ..folder import read_delta_folder
from .address import MAIN, check_repo, check_revision, is_tag_of, names_delta, tag_of
from .client import Hub, open_hub
from .files import CARD, DOCUMENT, PROVENANCE, REPORT, STATE, listed_files
from .listing import ListedFile, Listing, digests_of, read_listing
from .unfinished import Unfinished

__all__ = ["Pulled", "pull"]

_SPARE_BYTES: Final = 64 << 20
_EXPECTED_BY_GIT: Final = (".gitattributes", ".gitignore")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A verified copy.

    Attributes:
        commit: git commit that the files are of, 40 hex digits.
        ignored: files of the repository that are no part of a delta; they were never asked for.
        tag: the delta's own tag, where the revision asked for was that.
    """

    folder: Path
    repo: str
    commit: str
    id: str
    files: tuple[str, ...]
    ignored: tuple[str, ...]
    endpoint: str
    tag: str | None


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
    After a broken connection, an interruption or a kill the same call goes on from there; what turns out wrong is
    removed.

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
    hub = open_hub(endpoint, token)
    unfinished = Unfinished.begin(target)
    try:
        listing = read_listing(hub, repo, wanted)
        files = listed_files(listing)
        unfinished.keep_only(tuple(files.values()))
        found = _download(hub, listing, files, unfinished)
        if names_delta(wanted) and not is_tag_of(wanted, found):
            raise DigestMismatchError(
                "the tag names another delta", where=f"{repo}@{wanted}", expected=wanted, found=tag_of(found)
            )
        unfinished.publish(target)
    except (HubUnavailableError, HubBusyError) as error:
        raise _with_arrived(error, unfinished.leave(), target) from error
    except (HubAccessError, HubNotFoundError, UsageError, KeyboardInterrupt):
        unfinished.leave()
        raise
    except OSError as error:  # the Hub's failures have become HubErrors below; what is left is the disk's
        unfinished.discard()
        raise UnreadableFileError("cannot be written", where=unfinished.folder, found=error.strerror) from error
    except BaseException:  # whatever was refused is not to be built on
        unfinished.discard()
        raise
    ignored = tuple(file.name for file in listing.files if file.name not in (*files, *_EXPECTED_BY_GIT))
    tag = wanted if is_tag_of(wanted, found) else None
    return Pulled(target, repo, listing.commit, found, tuple(files), ignored, hub.endpoint, tag)


def _with_arrived(error: HubError, arrived_bytes: int, out: Path) -> HfqError:
    if not arrived_bytes:
        return error
    return type(error)(
        error.what,
        where=error.where,
        expected=error.expected,
        found=error.found,
        todo=f"pull again into {out.name}: it goes on from the {arrived_bytes} bytes that have arrived",
    )


def _download(hub: Hub, listing: Listing, files: Mapping[str, ListedFile], unfinished: Unfinished) -> str:
    """Fetch what is not there yet and verify everything; returns the delta's id."""
    partial = unfinished.folder
    _fetch(hub, listing, files[DOCUMENT], unfinished)
    document = read_document(partial / DOCUMENT, "ptq-state")
    _check_state_size(listing, files[STATE], document["state"], unfinished)
    for name in (PROVENANCE, REPORT, CARD, STATE):
        if name in files:
            _fetch(hub, listing, files[name], unfinished)
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


def _check_state_size(listing: Listing, file: ListedFile, claim: Mapping[str, Any], unfinished: Unfinished) -> None:
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
    free_bytes = shutil.disk_usage(unfinished.folder).free
    left_bytes = file.size_bytes - unfinished.size_bytes(file)
    if left_bytes + _SPARE_BYTES > free_bytes:
        raise UsageError(
            "the disk has no room for it",
            where=unfinished.folder.parent,
            expected=f"{left_bytes} bytes",
            found=free_bytes,
        )


def _fetch(hub: Hub, listing: Listing, file: ListedFile, unfinished: Unfinished) -> None:
    where = f"{listing.repo}@{listing.commit[:12]}: {file.name}"
    done, path = unfinished.folder / file.name, unfinished.incomplete(file)
    if done.exists():
        if file.holds(digests_of(done)):
            return
        done.unlink()  # of another commit, or damaged
    is_resumed = path.exists()
    _complete(hub, listing, file, path, where)
    found = digests_of(path)
    if is_resumed and not file.holds(found):
        # An earlier pull's bytes may be damaged: a power cut takes what was not on the disk yet.
        path.unlink()
        _complete(hub, listing, file, path, where)
        found = digests_of(path)
    file.check(found, where)
    os.rename(path, done)


def _complete(hub: Hub, listing: Listing, file: ListedFile, path: Path, where: str) -> None:
    """Ask for the bytes that `path` lacks, again after a broken connection."""
    url = hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=hub.endpoint)

    def ask() -> None:
        try:
            with _BoundedFile(path, where, file.size_bytes) as target:
                http_get(
                    url,
                    target,
                    resume_size=target.tell(),
                    headers=hub.headers,
                    expected_size=file.size_bytes,
                    displayed_filename=file.name,
                )
                os.fsync(target.fileno())
        except OSError as error:
            if error.errno is not None:
                raise UnreadableFileError("cannot be written", where=path, found=error.strerror) from error
            if type(error) is OSError:  # the client's own, for a stream that ended too early
                raise TruncatedFileError("fewer bytes than listed", where=where, todo="try again") from error
            raise

    hub.read(where, ask)


class _BoundedFile(io.FileIO):
    """A file to be continued, which takes no more bytes than were listed: a stream need not end where it says."""

    def __init__(self, path: Path, where: str, limit: int) -> None:
        super().__init__(path, "a")
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
