"""The journal of an unfinished conversion: which sites are done, so that a killed run goes on where it was.

`OUT.partial/` holds `started.json` (what was asked for), `journal.jsonl` (one line per finished site, written after the
site's state tensors are safely on disk) and `state/` (the state tensors, one file per site). The journal's lock ends
with the process, however that ends: two runs cannot work in one folder, and a killed one does not stand in the way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from torch import Tensor

from hfq.schema.atomic import fsync_folder, write_file
from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import DigestMismatchError, HfqError, MalformedFileError, OutputExistsError, ResumeMismatchError

from .calibration import file_sha256
from .delta import DOCUMENT, PROVENANCE, REPORT, STATE, UNFINISHED
from .safetensors_file import SafetensorsFile
from .safetensors_writer import write_safetensors

__all__ = ["Journal"]

_STARTED: Final = "started.json"
_STATE: Final = "state"


class Journal:
    """An open journal.

    Args:
        partial: `OUT.partial`; made when absent.
        inputs: what decides the result; an unfinished run with other inputs is refused field by field.

    Attributes:
        is_new: whether this run made the folder.

    Raises:
        ResumeMismatchError: naming the first field that differs.
        OutputExistsError: another run is at work in the folder, or it holds something else.
        MalformedFileError: a journal that this package did not write.
        DigestMismatchError: a line that has been changed since.
    """

    def __init__(self, partial: Path, inputs: Mapping[str, Any]) -> None:
        self.partial = partial
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        normal = parse_json(canonical_json(dict(inputs)), "inputs")
        (partial / _STATE).mkdir(parents=True, exist_ok=True)
        self._file = open(partial / UNFINISHED, "ab")  # noqa: SIM115 - open for the whole run
        try:
            _lock(self._file, partial)
            _remove_temporaries(partial)
            _refuse_foreign(partial)
            started = partial / _STARTED
            self.is_new = not started.exists()
            if self.is_new:
                self._file.truncate(0)
                write_file(started, canonical_json(normal))
            else:
                _compare("", parse_json(read_bytes(started), str(started)), normal, partial)
                self._read_lines()
        except BaseException:
            self._file.close()
            raise

    def _read_lines(self) -> None:
        path = self.partial / UNFINISHED
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        for line in data[:end].splitlines():
            written = parse_json(line, str(path))
            if not isinstance(written, dict) or set(written) != {"entry", "sha256"}:
                raise MalformedFileError("not a journal entry", where=path, todo="remove the folder and start again")
            entry = written["entry"]
            if sha256_hex(canonical_json(entry)) != written["sha256"]:
                raise DigestMismatchError(
                    "a line of the unfinished conversion was changed",
                    where=path,
                    todo="remove the folder and start again",
                )
            self._entries[entry["role"], entry["site"]] = entry
        if end < len(data):
            # The run was killed while it wrote this line; its site is done again.
            self._file.truncate(end)

    def get(self, role: str, site: str) -> dict[str, Any] | None:
        """The entry of a finished site."""
        return self._entries.get((role, site))

    def add(self, entry: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Record a finished site; when this returns, a crash cannot lose it."""
        role, site = entry["role"], entry["site"]
        path = self._state_path(role, site)
        full = {**entry, "state_sha256": write_safetensors(path, state) if state else None}
        self._file.write(canonical_json({"entry": full, "sha256": sha256_hex(canonical_json(full))}) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._entries[role, site] = full

    def state(self, role: str, site: str) -> SafetensorsFile:
        """The state tensors of a finished site, opened.

        Raises:
            DigestMismatchError: the file is not the one that was written.
        """
        path = self._state_path(role, site)
        try:
            file = SafetensorsFile(path)
        except HfqError as error:
            raise DigestMismatchError(
                f"a file of the unfinished conversion is damaged: {error.what}",
                where=path,
                todo="remove the .partial folder and start again",
            ) from None
        if file_sha256(path) != self._entries[role, site]["state_sha256"]:
            file.close()
            raise DigestMismatchError(
                "a tensor of the unfinished conversion was changed",
                where=path,
                todo="remove the .partial folder and start again",
            )
        return file

    def _state_path(self, role: str, site: str) -> Path:
        return self.partial / _STATE / f"{role}.{site}.safetensors"

    def close(self) -> None:
        """Stop writing; the folder stays."""
        self._file.close()

    def clear(self) -> None:
        """Remove what only an unfinished conversion needs. Killed in between, the next run begins anew."""
        self.close()
        (self.partial / _STARTED).unlink()
        fsync_folder(self.partial)
        (self.partial / UNFINISHED).unlink()
        shutil.rmtree(self.partial / _STATE)

    def discard(self) -> None:
        """Remove the whole unfinished output."""
        self.close()
        shutil.rmtree(self.partial)


def _lock(file: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputExistsError(
            "another conversion is at work in this folder", where=partial, todo="wait for it, or choose another name"
        ) from None


def _remove_temporaries(partial: Path) -> None:
    # What a killed writer left half written; nothing else may end up in the finished folder.
    for path in (*partial.glob(".*.tmp"), *(partial / _STATE).glob(".*.tmp")):
        path.unlink()


def _refuse_foreign(partial: Path) -> None:
    known = {_STARTED, UNFINISHED, _STATE, DOCUMENT, STATE, PROVENANCE, REPORT}
    for path in partial.iterdir():
        if path.name not in known:
            raise OutputExistsError(
                "not an unfinished conversion", where=partial, found=path.name, todo="choose another name"
            )


def _compare(field: str, before: Any, now: Any, partial: Path) -> None:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(set(before) | set(now)):
            _compare(f"{field}.{name}" if field else name, before.get(name), now.get(name), partial)
        return
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (left, right) in enumerate(zip(before, now, strict=True)):
            _compare(f"{field}[{index}]", left, right, partial)
        return
    raise ResumeMismatchError(
        "the unfinished conversion was started with other inputs",
        where=f"{partial}: {field}",
        expected=_shown(before),
        found=_shown(now),
        todo="use the same inputs, or remove the folder and start again",
    )


def _shown(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, dict | list) else str(value)[:80]
