"""Reading a delta's folder: checked against its own documents, and reduced to what the registry keeps."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.canonical import canonical_json, content_id, sha256_hex
from hfq.schema.documents import parse_json, read_bytes, read_document
from hfq.schema.errors import (
    DigestMismatchError,
    HfqError,
    MissingPathError,
    SchemaViolationError,
    TrailingBytesError,
    TruncatedFileError,
    UnreadableFileError,
    UsageError,
)

__all__ = [
    "DOCUMENT",
    "DeltaFacts",
    "ExpertFacts",
    "KeptFacts",
    "WitnessFacts",
    "base_id",
    "claims_id",
    "read_delta_folder",
]

DOCUMENT: Final = "ptq_state.json"
STATE: Final = "ptq_state.safetensors"
PROVENANCE: Final = "provenance.json"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WitnessFacts:
    """A checkpoint file that the maker of this copy read."""

    layout: str
    exact_root: str
    name: str
    size_bytes: int
    sha256: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """One expert of the base that the delta is bound to."""

    role: str
    bf16_root: str
    tensors: int
    witnesses: tuple[WitnessFacts, ...]


@dataclass(frozen=True, slots=True)
class KeptFacts:
    """A site that the delta leaves alone."""

    expert: str
    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeltaFacts:
    """All that one registration writes, read and verified before the database is touched."""

    id: str
    folder: str
    created: str
    base_id: str
    model_type: str
    experts: tuple[ExpertFacts, ...]
    recipe_id: str
    recipe: Mapping[str, Any]
    recipe_json: str
    calibration_id: str | None
    prompts: tuple[str, ...]
    analysis_id: str | None
    selection_prompts: tuple[str, ...]
    state_sha256: str
    state_size_bytes: int
    state_tensors: int
    quantized: int
    kept: tuple[KeptFacts, ...]


def base_id(bf16_roots: Mapping[str, str]) -> str:
    """The identity of a whole model: SHA-256 over the sorted lines `role<TAB>bf16 root`, joined by LF."""
    return sha256_hex("\n".join(sorted(f"{role}\t{root}" for role, root in bf16_roots.items())).encode())


def read_delta_folder(folder: str | os.PathLike[str]) -> DeltaFacts:
    """Read and verify the documents of a delta and the size and SHA-256 of its state file.

    Raises:
        MissingPathError: no such folder, or one of its files is missing.
        TruncatedFileError, TrailingBytesError: the state file has another size than the document says.
        DigestMismatchError: other bytes, or a provenance that speaks of another delta or base.
        and what `hfq.schema.documents.read_document` raises.
    """
    path = Path(folder)
    if not path.is_dir():
        if path.exists():
            raise UsageError("not a folder", where=path, expected="the folder of a delta")
        raise MissingPathError("no such folder", where=path, expected="the folder of a delta")
    path = path.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError("the folder's path is not UTF-8", where=path, todo="rename it") from None
    document = read_document(path / DOCUMENT, "ptq-state")
    _check_digests(document, path / DOCUMENT)
    provenance = read_document(path / PROVENANCE, "provenance")
    experts = _match_provenance(document, provenance, path / PROVENANCE)
    _check_state(path / STATE, document["state"])
    recipe = document["recipe"]
    calibration = document["calibration"]
    analysis = (document["selection"] or {}).get("analysis")
    routes = [(expert, site, entry) for expert, sites in document["sites"].items() for site, entry in sites.items()]
    return DeltaFacts(
        id=document["id"],
        folder=str(path),
        created=provenance["created"],
        base_id=base_id({expert.role: expert.bf16_root for expert in experts}),
        model_type=document["base"]["model_type"],
        experts=experts,
        recipe_id=content_id(recipe),
        recipe=recipe,
        recipe_json=canonical_json(recipe).decode(),
        calibration_id=calibration["id"] if calibration else None,
        prompts=tuple(calibration["prompts"]) if calibration else (),
        analysis_id=analysis["id"] if analysis else None,
        selection_prompts=tuple(analysis["prompts"]) if analysis else (),
        state_sha256=document["state"]["sha256"],
        state_size_bytes=document["state"]["size_bytes"],
        state_tensors=document["state"]["tensors"],
        quantized=sum(entry["route"] == "quantize" for _, _, entry in routes),
        kept=tuple(
            KeptFacts(expert, site, entry["reason"]) for expert, site, entry in routes if entry["route"] == "keep"
        ),
    )


def claims_id(folder: Path, delta_id: str) -> bool:
    """Whether a folder still calls itself that delta. Cheap; whoever reads the delta verifies it."""
    try:
        document = parse_json(read_bytes(folder / DOCUMENT), str(folder))
    except HfqError:
        return False
    return isinstance(document, dict) and document.get("id") == delta_id


def _check_digests(document: Mapping[str, Any], where: Path) -> None:
    """A JSON Schema's `$` also matches before a final line feed; what becomes a key here must be 64 digits exactly."""
    named = {"id": document["id"], "state/sha256": document["state"]["sha256"]}
    for role, expert in document["base"]["experts"].items():
        named[f"base/experts/{role}/bf16_root"] = expert["bf16_root"]
    for field, value in named.items():
        if not _DIGEST.fullmatch(value):
            raise SchemaViolationError("not a SHA-256", where=f"{where}: {field}", found=repr(value))


def _match_provenance(
    document: Mapping[str, Any], provenance: Mapping[str, Any], where: Path
) -> tuple[ExpertFacts, ...]:
    todo = "the files of two deltas were mixed; fetch them again"
    if provenance["delta"] != document["id"]:
        raise DigestMismatchError(
            "the provenance is of another delta",
            where=where,
            expected=document["id"],
            found=provenance["delta"],
            todo=todo,
        )
    bound = document["base"]["experts"]
    witnessed = provenance["base"]["experts"]
    facts = []
    for role in sorted(bound):
        root = bound[role]["bf16_root"]
        copy = witnessed.get(role)
        if copy is None or copy["bf16_root"] != root:
            raise DigestMismatchError(
                "the provenance speaks of another base",
                where=f"{where}: {role}",
                expected=f"bf16 root {root}",
                found=copy["bf16_root"] if copy else "no such expert",
                todo=todo,
            )
        witnesses = tuple(
            WitnessFacts(
                layout=provenance["base"]["layout"],
                exact_root=copy["exact_root"],
                name=file["name"],
                size_bytes=file["size_bytes"],
                sha256=file["sha256"],
                trusted=file["trusted"],
            )
            for file in copy["files"]
        )
        facts.append(ExpertFacts(role, root, len(bound[role]["tensors"]), witnesses))
    return tuple(facts)


def _check_state(path: Path, claim: Mapping[str, Any]) -> None:
    todo = "fetch the delta again from where it came"
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MissingPathError("the delta has no state file", where=path, todo=todo) from None
    except OSError as error:
        raise UnreadableFileError("cannot be opened", where=path, found=error.strerror) from error
    with os.fdopen(descriptor, "rb") as file:
        if not path.is_file():
            raise UnreadableFileError("not a regular file", where=path)
        size_bytes, expected = os.fstat(file.fileno()).st_size, claim["size_bytes"]
        if size_bytes != expected:
            failure = TruncatedFileError if size_bytes < expected else TrailingBytesError
            raise failure(
                f"the file is too {'short' if size_bytes < expected else 'long'}",
                where=path,
                expected=f"{expected} bytes",
                found=size_bytes,
                todo=todo,
            )
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != claim["sha256"]:
        raise DigestMismatchError(
            "the file's bytes are not those of this delta",
            where=path,
            expected=f"sha256 {claim['sha256']}",
            found=digest.hexdigest(),
            todo=todo,
        )
