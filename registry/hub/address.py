"""Names on the Hub, checked before anything is sent: repository, revision, endpoint."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from huggingface_hub import constants

from hfq.schema.errors import UsageError

__all__ = [
    "MAIN",
    "check_endpoint",
    "check_repo",
    "check_revision",
    "is_commit",
    "is_tag_of",
    "names_delta",
    "saved_token_fits",
    "split_place",
    "tag_of",
]

MAIN: Final = "main"

_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO: Final = re.compile(rf"{_PART}/{_PART}")
_REVISION: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./+-]{0,198}[A-Za-z0-9_])?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DELTA_TAG: Final = re.compile(r"delta-[0-9a-f]{12,64}")


def check_repo(repo: str) -> str:
    """`OWNER/NAME`, as the Hub allows it.

    Raises:
        UsageError
    """
    name = repo.partition("/")[2]
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or len(repo) > 96 or name.endswith((".git", ".ipynb")):
        raise UsageError("not the name of a repository", expected="OWNER/NAME", found=repr(repo))
    return repo


def split_place(text: str) -> tuple[str, str | None]:
    """`OWNER/NAME` or `OWNER/NAME@REVISION`, both parts checked; None is the repository's main branch.

    Raises:
        UsageError
    """
    repo, at, revision = text.partition("@")
    return check_repo(repo), check_revision(revision) if at else None


def check_revision(revision: str) -> str:
    """A branch, tag or commit.

    Raises:
        UsageError
    """
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise UsageError("not a revision", expected="a branch, a tag or a commit", found=repr(revision))
    return revision


def is_commit(text: object) -> bool:
    """Whether `text` is a full git commit id, 40 lower-case hex digits."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def check_endpoint(endpoint: str | None) -> str:
    """The Hub's address without a final slash; None is the client's own (`HF_ENDPOINT`, else the public Hub).

    Raises:
        UsageError: not http(s), with a user name or a query in it, or plain http to another machine: a token would
            travel in clear text.
    """
    text = (endpoint or constants.ENDPOINT).rstrip("/")
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or url.username or url.query or url.fragment:
        raise UsageError("not the address of a Hub", expected="https://HOST", found=repr(text))
    if url.scheme == "http" and not _is_loopback(host):
        raise UsageError("a Hub over plain http", expected=f"https://{host}", found=repr(text))
    return text


def saved_token_fits(endpoint: str) -> bool:
    """Whether the token that the user saved or put into the environment belongs to this endpoint.

    It was made for the client's own endpoint; another one that an argument names must not see it.
    """
    return endpoint == constants.ENDPOINT.rstrip("/")


def tag_of(delta_id: str) -> str:
    """The tag of a delta's commit, with all 64 digits: a tag is a claim that is checked, not a name for display.

    A colon, as in `delta:9f2c...`, cannot stand in the name of a git reference.
    """
    return f"delta-{delta_id}"


def names_delta(revision: str) -> bool:
    """Whether a revision reads like a delta's tag: `delta-` and 12 digits, as older releases wrote, or more."""
    return _DELTA_TAG.fullmatch(revision) is not None


def is_tag_of(revision: str, delta_id: str) -> bool:
    """Whether a revision is a tag of this delta; all digits that it has are compared."""
    return names_delta(revision) and tag_of(delta_id).startswith(revision)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
