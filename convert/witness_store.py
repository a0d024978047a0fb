"""What this machine found when it hashed a file: remembered for `--trust-witness`, believed only while nothing changed.

One small JSON file per hashed file, in the user's cache folder, readable by the user alone. A record counts when size,
time of the last write, time of the last change, inode and device are those of the open file; whatever else is in the
folder (damaged, of another version, of another machine) counts as absent. Losing the folder costs a hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import HfqError

from .finite import NonFinite
from .identity import TensorDigest
from .safetensors_file import SafetensorsFile

__all__ = ["FileRecord", "recall", "remember"]

_VERSION: Final = "hfq.witness/2"
"""Records of version 1 do not say whether the values are finite numbers: such a file is hashed again."""
_RECORD_BYTES: Final = 64 << 20
_MOST_RECORDS: Final = 1_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class FileRecord:
    """What was found in one file: SHA-256 of the whole; digests of its expert's tensors, and what is no finite number
    in those that hold such, by stored name."""

    sha256: str
    tensors: Mapping[str, TensorDigest]
    non_finite: Mapping[str, NonFinite]


def _folder() -> Path:
    return Path(platformdirs.user_cache_dir("hfq", appauthor=False)) / "witnesses"


def _path(file: SafetensorsFile) -> Path:
    place = f"{platform.node()}\t{file.stamp.device}\t{file.stamp.inode}"
    return _folder() / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"


def _named(file: SafetensorsFile) -> dict[str, Any]:
    """What a record must say of the file to be about it."""
    return {"version": _VERSION, "machine": platform.node(), "stamp": [str(value) for value in astuple(file.stamp)]}


def remember(file: SafetensorsFile, record: FileRecord) -> None:
    """Keep a record of an open file that has just been read whole; a folder that cannot be written is no error."""
    document = {
        **_named(file),
        "sha256": record.sha256,
        "tensors": {name: [entry.exact, entry.bf16] for name, entry in record.tensors.items()},
        "non_finite": {
            name: {"position": list(found.position), "value": repr(found.value), "count": found.count}
            for name, found in record.non_finite.items()
        },
    }
    path = _path(file)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, json.dumps(document, separators=(",", ":")).encode())
        _remove_oldest(path.parent)


def _write(path: Path, data: bytes) -> None:
    """Replace a record. No fsync: half a record counts as none."""
    descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)  # readable by the user alone
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def recall(file: SafetensorsFile, wanted: Mapping[str, str]) -> FileRecord | None:
    """What this machine found in an open file, or None when it has not hashed it since the file last changed.

    Args:
        wanted: stored names of the tensors whose digests are needed; a record without one of them is none.
    """
    try:
        status = _folder().stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return None  # somebody else could have written it
        found = parse_json(read_bytes(_path(file), _RECORD_BYTES), "witness")
    except (HfqError, OSError):
        return None
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in _named(file).items()):
        return None
    sha256, tensors = found.get("sha256"), found.get("tensors")
    if not _is_digest(sha256) or not isinstance(tensors, dict) or not wanted.keys() <= tensors.keys():
        return None
    digests: dict[str, TensorDigest] = {}
    for name in wanted:
        pair, entry = tensors[name], file.tensors[name]
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_digest(value) for value in pair):
            return None
        digests[name] = TensorDigest(entry.dtype, entry.shape, pair[0], pair[1])
    non_finite = _read_non_finite(found.get("non_finite"), file)
    return None if non_finite is None else FileRecord(str(sha256), digests, non_finite)


def _read_non_finite(document: object, file: SafetensorsFile) -> dict[str, NonFinite] | None:
    """What a record says of values that are no finite numbers; None when it says nothing that can be understood."""
    try:
        assert isinstance(document, dict)
        return {
            name: NonFinite(tuple(int(axis) for axis in entry["position"]), float(entry["value"]), int(entry["count"]))
            for name, entry in document.items()
            if name in file.tensors
        }
    except (AssertionError, KeyError, TypeError, ValueError):
        return None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _remove_oldest(folder: Path) -> None:
    records = list(folder.glob("*.json"))
    if len(records) <= _MOST_RECORDS:
        return
    records.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in records[: len(records) - _MOST_RECORDS]:
        with contextlib.suppress(OSError):
            os.unlink(path)
