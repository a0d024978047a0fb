"""Tying a base on disk to a revision on the Hub: by the files' digests, without a download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .address import MAIN, check_repo, check_revision
from .client import open_hub
from .listing import Listing, check_names, read_listing

__all__ = ["HubRevision", "match_files", "tie_base"]


@dataclass(frozen=True, slots=True)
class HubRevision:
    """Which of a base's files lie in a repository at one commit.

    Attributes:
        commit: git commit, 40 hex digits.
        matched: the caller's name -> path in the repository.
        missing: names whose bytes no LFS file of that commit has.
    """

    repo: str
    commit: str
    matched: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def is_tied(self) -> bool:
        """Whether every file is there."""
        return bool(self.matched) and not self.missing


def tie_base(
    repo: str,
    files: Mapping[str, str],
    revision: str = MAIN,
    *,
    endpoint: str | None = None,
    token: str | None = None,
) -> HubRevision:
    """Look for files among the LFS files of a repository.

    Bytes decide, not names: a copy may lie in other folders. Where several files have the same bytes, that with the
    same path is taken, then that with the same last part, then the first in order. A small file that is no LFS file
    has no SHA-256 on the Hub and counts as missing.

    Args:
        files: name -> SHA-256, 64 hex digits, as this machine computed them.

    Raises:
        UsageError, HubListingError
        HubNotFoundError, HubAccessError, HubBusyError, HubUnavailableError, HubError
    """
    check_repo(repo)
    check_revision(revision)
    return match_files(read_listing(open_hub(endpoint, token), repo, revision), files)


def match_files(listing: Listing, files: Mapping[str, str]) -> HubRevision:
    """`tie_base` for a list that is at hand.

    Raises:
        HubListingError: names that no honest repository has.
    """
    check_names(listing, ())
    paths: dict[str, list[str]] = {}
    for file in listing.files:
        if file.sha256 is not None:
            paths.setdefault(file.sha256, []).append(file.name)
    matched: dict[str, str] = {}
    for name, sha256 in sorted(files.items()):
        if sha256 in paths:
            matched[name] = _nearest(name, paths[sha256])
    return HubRevision(listing.repo, listing.commit, matched, tuple(sorted(set(files) - set(matched))))


def _nearest(name: str, paths: Sequence[str]) -> str:
    last = name.rpartition("/")[2]
    return min(paths, key=lambda path: (path != name, path.rpartition("/")[2] != last, path))
