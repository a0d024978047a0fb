"""What the registry answers about the Hub: where a delta lies there, and which commits hold a base."""

from __future__ import annotations

from dataclasses import dataclass

from .models import Base, Delta
from .text import printable

__all__ = ["HubBaseRecord", "HubCopyRecord", "HubFileRecord", "describe_copy", "hub_bases", "hub_copies"]


@dataclass(frozen=True, slots=True)
class HubCopyRecord:
    """A commit that holds the delta. `how` is pushed, pulled or registered; `tag` is its tag of that commit, if any."""

    endpoint: str
    repo: str
    commit: str
    tag: str | None
    how: str
    recorded_at: str

    @property
    def url(self) -> str:
        """The page of the commit's files."""
        return _url(self.endpoint, self.repo, self.commit)


@dataclass(frozen=True, slots=True)
class HubFileRecord:
    """A checkpoint file of the expert `role`, by SHA-256, and its path in the repository."""

    role: str
    sha256: str
    path: str


@dataclass(frozen=True, slots=True)
class HubBaseRecord:
    """A commit that holds every file of one copy of a base."""

    endpoint: str
    repo: str
    commit: str
    tied_at: str
    files: tuple[HubFileRecord, ...]

    @property
    def url(self) -> str:
        """The page of the commit's files."""
        return _url(self.endpoint, self.repo, self.commit)


def hub_copies(row: Delta) -> tuple[HubCopyRecord, ...]:
    """Where a delta lies, the last recorded first."""
    return tuple(
        HubCopyRecord(copy.endpoint, copy.repo, copy.commit, copy.tag, copy.how, copy.recorded_at)
        for copy in row.hub_copies
    )


def hub_bases(row: Base) -> tuple[HubBaseRecord, ...]:
    """The commits that a base is tied to, the last first; files by role and path."""
    found: dict[tuple[str, str, str], list[tuple[str, HubFileRecord]]] = {}
    for expert in row.experts:
        for file in expert.hub_files:
            record = HubFileRecord(expert.role, file.sha256, file.path)
            found.setdefault((file.endpoint, file.repo, file.commit), []).append((file.tied_at, record))
    records = [
        HubBaseRecord(
            *place,
            tied_at=max(at for at, _ in files),
            files=tuple(sorted((file for _, file in files), key=lambda file: (file.role, file.path, file.sha256))),
        )
        for place, files in found.items()
    ]
    return tuple(sorted(records, key=lambda record: (record.tied_at, record.repo, record.commit), reverse=True))


def describe_copy(copy: HubCopyRecord) -> str:
    """The page of the commit, how it got there or was found, and the tag."""
    tag = f", tag {copy.tag}" if copy.tag else ""
    return printable(f"{copy.url}  {copy.how} {copy.recorded_at[:19]}Z{tag}", 1000)


def _url(endpoint: str, repo: str, commit: str) -> str:
    return f"{endpoint}/{repo}/tree/{commit}"
