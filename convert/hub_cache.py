"""What the Hugging Face Hub's cache says of a file by its name: the digest of its content.

In `models--OWNER--NAME/blobs/` a large file is named by its SHA-256, a small one by its git hash (SHA-1 of `blob SIZE`,
a zero byte and the content); `snapshots/` holds links to them.

Source: huggingface_hub, "Understand caching".
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from hfq.schema.documents import read_bytes
from hfq.schema.errors import BlobDigestError

__all__ = ["blob_digest", "check_blob", "read_side_file"]

_REPOSITORY: Final = re.compile(r"(models|datasets|spaces)--.+")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}", re.ASCII)


def blob_digest(path: Path) -> str | None:
    """The digest that a file's name in the Hub's cache is, 64 (SHA-256) or 40 (git) hex digits; None elsewhere."""
    blob = Path(os.path.realpath(path))
    is_blob = blob.parent.name == "blobs" and _REPOSITORY.fullmatch(blob.parents[1].name)
    return blob.name if is_blob and _DIGEST.fullmatch(blob.name) else None


def check_blob(path: Path, found: str) -> None:
    """Compare the digest of a file's content, hex, with the name that the Hub's cache gave it, if it is of that kind.

    Raises:
        BlobDigestError
    """
    named = blob_digest(path)
    if named is not None and len(named) == len(found) and named != found:
        raise BlobDigestError(
            "a file in the Hub's cache does not hold what its name says",
            where=f"{path}: blob {Path(os.path.realpath(path))}",
            expected=named,
            found=found,
            todo="remove the blob and download the model again",
        )


def read_side_file(path: Path, limit: int) -> bytes:
    """The bytes of a small file beside the weights (configuration, index), of at most `limit` bytes.

    Raises:
        BlobDigestError: it is in the Hub's cache under another digest.
        and what `read_bytes` raises
    """
    data = read_bytes(path, limit)
    named = blob_digest(path)
    if named is not None:
        # A git hash: SHA-1 is what git has, and an accident is what is looked for.
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        check_blob(path, git if len(named) == len(git) else hashlib.sha256(data).hexdigest())
    return data
