"""What a repository holds at one commit: names, sizes and digests, without a download."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from hfq.schema.errors import DigestMismatchError, HubListingError

from .address import is_commit
from .client import Hub
from .session import TIMEOUT_S

__all__ = ["Digests", "ListedFile", "Listing", "check_names", "digests_of", "read_listing"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_MAX_FILES: Final = 10_000
_MAX_NAME: Final = 1024
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Digests:
    """Of a file's bytes: what the Hub compares a regular file and an LFS file by."""

    size_bytes: int
    git_sha1: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as the Hub lists it. `sha256` is known for LFS files, `git_sha1` (of the blob) is used for all others."""

    name: str
    size_bytes: int
    git_sha1: str | None
    sha256: str | None

    def holds(self, found: Digests) -> bool:
        """Whether this is a file of those bytes."""
        if found.size_bytes != self.size_bytes:
            return False
        return found.sha256 == self.sha256 if self.sha256 is not None else found.git_sha1 == self.git_sha1

    def check(self, found: Digests, where: str) -> None:
        """Refuse bytes that are not the listed ones.

        Raises:
            DigestMismatchError
        """
        if not self.holds(found):
            expected, kind = (self.sha256, "sha256") if self.sha256 is not None else (self.git_sha1, "git blob")
            raise DigestMismatchError(
                "not the file that the Hub lists",
                where=where,
                expected=f"{self.size_bytes} bytes, {kind} {expected}",
                found=f"{found.size_bytes} bytes, {found.sha256 if kind == 'sha256' else found.git_sha1}",
                todo="somebody swapped it; try again, and ask the owner of the repository",
            )


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit, in the Hub's order, names as the Hub sent them."""

    repo: str
    commit: str
    is_private: bool
    files: tuple[ListedFile, ...]

    @property
    def by_name(self) -> dict[str, ListedFile]:
        """name -> file."""
        return {file.name: file for file in self.files}


def read_listing(hub: Hub, repo: str, revision: str) -> Listing:
    """The commit behind a branch, tag or commit, and its files.

    Raises:
        HubListingError: an answer that is no list of files.
        HubNotFoundError, HubAccessError and the other HubErrors
    """
    info = hub.read(
        f"{repo}@{revision}",
        lambda: hub.api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S),
    )
    if not is_commit(info.sha):
        raise HubListingError("not a commit", where=f"{repo}@{revision}", found=repr(info.sha))
    if is_commit(revision) and info.sha != revision:
        raise HubListingError("another commit than was asked for", where=repo, expected=revision, found=info.sha)
    siblings = info.siblings or []
    if len(siblings) > _MAX_FILES:
        raise HubListingError("too many files", where=repo, expected=f"at most {_MAX_FILES}", found=len(siblings))
    return Listing(repo, str(info.sha), info.private is True, tuple(_listed(repo, entry) for entry in siblings))


def check_names(listing: Listing, known: Iterable[str]) -> None:
    """Refuse a list that no honest repository has, whether or not its odd entries would be used.

    Args:
        known: names that are looked for; others that a file system may take for one of them are refused.

    Raises:
        HubListingError
    """
    folded: Mapping[str, str] = {name.casefold(): name for name in known}
    seen: set[str] = set()
    for file in listing.files:
        name = file.name
        where = f"{listing.repo}@{listing.commit[:12]}"
        parts = name.split("/")
        if len(name) > _MAX_NAME or not name.isprintable():
            raise HubListingError("a file name that is none", where=where, found=repr(name[:80]))
        if "\\" in name or any(part in ("", ".", "..") for part in parts) or re.match(r"[A-Za-z]:", name):
            raise HubListingError("a path that leaves the repository", where=where, found=repr(name))
        if name in seen:
            raise HubListingError("a file name occurs twice", where=where, found=repr(name))
        alike = folded.get(name.casefold().rstrip(". "))
        if alike is not None and alike != name:
            raise HubListingError("a look-alike of a delta's file", where=where, expected=alike, found=repr(name))
        seen.add(name)


def digests_of(source: bytes | Path | BinaryIO) -> Digests:
    """Size, git blob SHA-1 and SHA-256. A stream is read from its start and left there.

    Raises:
        OSError
    """
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return digests_of(file)
    if isinstance(source, bytes):
        size_bytes, blocks = len(source), iter([source])
    else:
        size_bytes = source.seek(0, os.SEEK_END)
        source.seek(0)
        blocks = iter(lambda: source.read(_BLOCK_BYTES), b"")
    # Git's object id, not a seal: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    blob, content = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False), hashlib.sha256()
    for block in blocks:
        blob.update(block)
        content.update(block)
    if not isinstance(source, bytes):
        source.seek(0)
    return Digests(size_bytes, blob.hexdigest(), content.hexdigest())


def _listed(repo: str, entry: Any) -> ListedFile:
    name, size = entry.rfilename, entry.size
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    if not isinstance(name, str):
        raise HubListingError("a file without a name", where=repo)
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise HubListingError("a file without a size", where=f"{repo}: {name}", found=repr(size))
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise HubListingError("not a SHA-256", where=f"{repo}: {name}", found=repr(sha256))
    if entry.lfs is not None and entry.lfs.size != size:
        raise HubListingError("a file of two sizes", where=f"{repo}: {name}", found=f"{size} and {entry.lfs.size}")
    if sha256 is None and not (isinstance(entry.blob_id, str) and _SHA1.fullmatch(entry.blob_id)):
        raise HubListingError("a file without a digest", where=f"{repo}: {name}", found=repr(entry.blob_id))
    return ListedFile(name, size, entry.blob_id if sha256 is None else None, sha256)
