"""The spread calls of a calibration on disk: `calls.json` (schema `hfq.calls/1`) and `calls.safetensors` beside it.

They have a document of their own, which names the calibration: what is measured on them binds it, and statistics,
masks and what follows from those have the id that they have without calls. Tensor names are those of kept calls in a
statistics file (`<role>/calls/<index>/<argument>`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.atomic import write_file
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.documents import read_document, validate
from hfq.schema.errors import CalibrationBaseError, DigestMismatchError, MalformedFileError, MissingPathError

from .calibration_layout import CallPlan, plan_listed
from .kept_calls import CallKey, Inputs, check_inputs, prompt_key, spread_counts
from .safetensors_file import SafetensorsFile
from .safetensors_writer import SafetensorsWriter
from .schedule import BRANCHES, ExpertSchedule

__all__ = ["CALLS", "CALL_TENSORS", "CallStore", "SpreadCalls", "file_sha256", "open_calls", "write_calls"]

CALLS: Final = "calls.json"
CALL_TENSORS: Final = "calls.safetensors"
_CHUNK: Final = 8 << 20


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class SpreadCalls:
    """Spread calls that are to be written.

    Attributes:
        keep: a third of the calls of each guidance branch that were asked for, per expert.
        plans: of every expert, each expert's in their order.
        read: gives the inputs of one call when its turn comes.
    """

    keep: int
    plans: Sequence[CallPlan]
    read: Callable[[CallPlan], Inputs]


def write_calls(folder: Path, calibration: str, roles: Iterable[str], spread: SpreadCalls) -> None:
    """Write both files into a calibration's folder.

    Args:
        calibration: its id.
        roles: its experts.
    """
    kept = sorted(spread.plans, key=lambda plan: (plan.role, plan.index))
    with SafetensorsWriter(folder / CALL_TENSORS, [entry for plan in kept for entry in plan.tensors()]) as writer:
        for plan in kept:
            for entry, value in zip(plan.tensors(), plan.values(spread.read(plan)), strict=True):
                writer.write(entry.name, value)
    document: dict[str, Any] = {
        "schema": "hfq.calls/1",
        "calibration": calibration,
        "keep": spread.keep,
        "experts": {role: [plan.key.to_json() for plan in kept if plan.role == role] for role in roles},
        "tensors": {"sha256": writer.sha256, "size_bytes": writer.size_bytes},
    }
    document["id"] = content_id(document)
    validate(document, "calls", str(folder / CALLS))
    write_file(folder / CALLS, canonical_json(document) + b"\n")


class CallStore:
    """Spread calls on disk; inputs are read call by call.

    Attributes:
        path: folder of the calibration.
        document: the parsed `calls.json`.
    """

    def __init__(self, path: Path, document: dict[str, Any], calibration: Mapping[str, Any], file: SafetensorsFile):
        self.path, self.document, self._file = path, document, file
        where = str(path / CALL_TENSORS)
        keys = {role: _listed(document, calibration, role, str(path / CALLS)) for role in calibration["schedule"]}
        self._plans = plan_listed(keys, file.tensors, where)

    @property
    def id(self) -> str:
        """Content hash of the document, 64 hex digits."""
        return str(self.document["id"])

    @property
    def keep(self) -> int:
        """A third of the calls of each guidance branch that were asked for, per expert."""
        return int(self.document["keep"])

    def plans(self, role: str) -> Sequence[CallPlan]:
        """The calls of an expert by step, rising digest and branch."""
        return self._plans.get(role, ())

    def read(self, plan: CallPlan) -> Inputs:
        """The inputs of one call.

        Raises:
            MalformedFileError: numbers that no run can have made.
        """
        inputs = plan.gather({entry.name: self._file.read(entry.name) for entry in plan.tensors()})
        check_inputs(inputs, plan.key.call, f"{self.path / CALL_TENSORS}: {plan.prefix}")
        return inputs

    def verify_bytes(self) -> None:
        """Hash the tensors' file and compare with the document.

        Raises:
            DigestMismatchError
        """
        expected, found = self.document["tensors"]["sha256"], file_sha256(self.path / CALL_TENSORS)
        if found != expected:
            raise DigestMismatchError(
                "the kept calls are not those of the document",
                where=self.path / CALL_TENSORS,
                expected=expected[:12] + "…",
                found=found[:12] + "…",
            )

    def close(self) -> None:
        """Close the tensors' file."""
        self._file.close()


def open_calls(folder: Path, calibration: Mapping[str, Any]) -> CallStore | None:
    """The spread calls beside a calibration, or None when it has none.

    Args:
        calibration: its document.

    Raises:
        MissingPathError: one of the two files without the other.
        CalibrationBaseError: calls of another calibration.
        MalformedFileError and subclasses, DigestMismatchError
    """
    present = [name for name in (CALLS, CALL_TENSORS) if (folder / name).exists()]
    if not present:
        return None
    if len(present) == 1:
        missing = CALLS if present[0] == CALL_TENSORS else CALL_TENSORS
        raise MissingPathError(
            "half of the kept calls is missing",
            where=folder / missing,
            found=f"{present[0]} alone",
            todo="copy the whole folder again",
        )
    document = read_document(folder / CALLS, "calls")
    if document["calibration"] != calibration["id"]:
        raise CalibrationBaseError(
            "kept calls of another calibration",
            where=folder / CALLS,
            expected=f"calibration {calibration['id'][:12]}…",
            found=f"{document['calibration'][:12]}…",
            todo="copy the whole folder again",
        )
    file = SafetensorsFile(folder / CALL_TENSORS)
    try:
        if file.size_bytes != document["tensors"]["size_bytes"]:
            raise DigestMismatchError(
                "the kept calls are not those of the document",
                where=folder / CALL_TENSORS,
                expected=f"{document['tensors']['size_bytes']} bytes",
                found=f"{file.size_bytes} bytes",
            )
        return CallStore(folder, document, calibration, file)
    except BaseException:
        file.close()
        raise


def _listed(document: Mapping[str, Any], calibration: Mapping[str, Any], role: str, where: str) -> list[CallKey]:
    """The calls that the document lists for an expert: as many at each step as were asked for, every branch of each.

    That no other prompt has a smaller digest is not looked up: a document could make that take for ever.
    """
    if set(document["experts"]) != set(calibration["schedule"]):
        raise MalformedFileError(
            "kept calls of other experts",
            where=where,
            expected=", ".join(sorted(calibration["schedule"])),
            found=", ".join(sorted(document["experts"])),
        )
    schedule = ExpertSchedule.from_json(calibration["schedule"][role])
    known = {(call.step, call.branch): call for call in schedule.calls}
    prompts = {prompt_key(prompt) for part in calibration["parts"] for prompt in part["prompts"]}
    keys = []
    for number, entry in enumerate(document["experts"][role]):
        call = known.get((entry["step"], entry["branch"]))
        key = None if call is None else CallKey.of_step(calibration["settings"]["seed"], entry["prompt"], call)
        if key is None or key.prompt not in prompts or key.digest != entry["digest"]:
            raise MalformedFileError("a kept call that no run has made", where=f"{where}: {role} call {number}")
        keys.append(key)
    branches = Counter(step for step, _ in known)
    expected = {
        step: branches[step] * min(count, len(prompts))
        for step, count in spread_counts(schedule, document["keep"]).items()
    }
    order = [(key.call.step, key.digest, BRANCHES.index(key.call.branch)) for key in keys]
    pairs = Counter((step, digest) for step, digest, _ in order)
    rising = all(left < right for left, right in itertools.pairwise(order))
    whole = all(count == branches[step] for (step, _), count in pairs.items())
    if not (rising and whole and Counter(step for step, _, _ in order) == expected):
        raise MalformedFileError(
            "kept calls that no run can have chosen",
            where=f"{where}: {role}",
            expected=f"three times {document['keep']} of each branch, spread over the steps, by step and rising digest",
        )
    return keys
