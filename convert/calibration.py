"""Calibrations: what the inputs of a model's linears look like, read back from disk.

A calibration is a folder with `calibration.json` (schema `hfq.calibration/1`) and `statistics.safetensors`, whose
tensors `hfq.convert.calibration_layout` lists; `calls.json` and `calls.safetensors` beside them hold the calls that
were kept for an analysis. With `--parts` it also holds one such folder per prompt under `parts/`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

from hfq.schema.documents import read_document
from hfq.schema.errors import (
    CalibrationBaseError,
    CalibrationMergeError,
    DigestMismatchError,
    MissingPathError,
    MissingTensorError,
    WrongRoleError,
)

from .calibration_layout import CallPlan, GroupPlan, plan_calls, plan_groups
from .call_store import CallStore, file_sha256, open_calls
from .group_statistics import GroupStatistics, check_values
from .kept_calls import CallKey, Inputs, ModelCall, check_inputs, prompt_key
from .safetensors_file import SafetensorsFile
from .schedule import ExpertSchedule, movements
from .site_output import even_indices
from .work_folder import JOURNAL

__all__ = ["DOCUMENT", "PARTS", "STATISTICS", "Calibration", "GroupStatistics", "file_sha256", "load_calibration"]

DOCUMENT: Final = "calibration.json"
STATISTICS: Final = "statistics.safetensors"
PARTS: Final = "parts"


class Calibration:
    """A calibration on disk; statistics are read group by group.

    Attributes:
        path: its folder.
        document: the parsed `calibration.json`.
        spread: the calls that were kept for an analysis, where there are any.
    """

    def __init__(self, path: Path, document: dict[str, Any], statistics: SafetensorsFile) -> None:
        self.path = path
        self.document = document
        self.spread: CallStore | None = None
        self._file = statistics
        self._plans = plan_groups(document, statistics.tensors, str(path / STATISTICS))
        self._calls = plan_calls(document, statistics.tensors, str(path / STATISTICS))

    @property
    def id(self) -> str:
        """Content hash of the document, 64 hex digits."""
        return str(self.document["id"])

    @property
    def roles(self) -> list[str]:
        """Experts that were calibrated."""
        return list(self.document["base"]["experts"])

    @property
    def prompt_hashes(self) -> list[str]:
        """SHA-256 of every calibration prompt's text, sorted."""
        return sorted(prompt["sha256"] for part in self.document["parts"] for prompt in part["prompts"])

    def groups(self, role: str) -> list[str]:
        """Input groups of an expert, sorted."""
        return list(self._plans.get(role, {}))

    def plan(self, role: str, group: str) -> GroupPlan:
        """Channels, calls, histogram keys and kept rows of one input group, from the header alone.

        Raises:
            MissingTensorError: the calibration has no such group.
        """
        plan = self._plans.get(role, {}).get(group)
        if plan is None:
            raise MissingTensorError(
                "the calibration has no statistics of this input", where=f"{self.path / STATISTICS}: {role} {group}"
            )
        return plan

    def read(self, role: str, group: str) -> GroupStatistics:
        """The statistics of one input group.

        Raises:
            MissingTensorError: the calibration has no such group.
            MalformedFileError: numbers that no run can have made.
        """
        plan = self.plan(role, group)
        statistics = plan.gather({entry.name: self._file.read(entry.name) for entry in plan.tensors()})
        check_values(statistics, f"{self.path / STATISTICS}: {role} {group}")
        return statistics

    def sample_inputs(self, role: str, group: str, rows: int) -> Tensor:
        """At most `rows` of the kept rows of one input group, evenly spaced over all timestep bins, BF16 [n, channels];
        one bin is in memory at a time.

        Raises:
            MissingTensorError: the calibration has no such group.
        """
        plan = self.plan(role, group)
        indices = even_indices(sum(plan.rows.values()), rows)
        parts, begin = [], 0
        for index, count in plan.rows.items():
            chosen = indices[(indices >= begin) & (indices < begin + count)] - begin
            if len(chosen):
                parts.append(self._file.read(f"{role}/{group}/inputs/bin{index}")[chosen])
            begin += count
        return torch.cat(parts)

    def call_plans(self, role: str) -> Sequence[CallPlan]:
        """The sampled calls of an expert, from document and header alone; none when the calibration kept none."""
        return self._calls.get(role, ())

    def read_call(self, plan: CallPlan) -> Inputs:
        """The inputs of one sampled call.

        Raises:
            MalformedFileError: numbers that no run can have made.
        """
        inputs = plan.gather({entry.name: self._file.read(entry.name) for entry in plan.tensors()})
        check_inputs(inputs, plan.key.call, f"{self.path / STATISTICS}: {plan.prefix}")
        return inputs

    def calls(self, role: str) -> list[ModelCall]:
        """The kept calls of an expert, all of them in memory: those spread over its steps, by step, digest and branch;
        of a calibration without these the sampled ones, by timestep bin, branch and rising digest.

        Raises:
            MalformedFileError: numbers that no run can have made.
        """
        if self.spread is not None:
            return self._model_calls([(plan.key, self.spread.read(plan)) for plan in self.spread.plans(role)])
        return self.sampled_calls(role)

    def sampled_calls(self, role: str) -> list[ModelCall]:
        """The sampled calls of an expert, by timestep bin, branch and rising digest; all of them in memory.

        Raises:
            MalformedFileError: numbers that no run can have made.
        """
        return self._model_calls([(plan.key, self.read_call(plan)) for plan in self.call_plans(role)])

    def _model_calls(self, kept: Sequence[tuple[CallKey, Inputs]]) -> list[ModelCall]:
        entries = [prompt for part in self.document["parts"] for prompt in part["prompts"]]
        texts = {prompt_key(entry): str(entry["sha256"]) for entry in entries}
        schedules = {role: ExpertSchedule.from_json(entry) for role, entry in self.document["schedule"].items()}
        moved = movements(schedules)
        return [
            ModelCall(
                **key.call.to_json(), prompt_sha256=texts[key.prompt], inputs=inputs, movement=moved[key.call.step]
            )
            for key, inputs in kept
        ]

    def check_group(self, role: str, group: str, channels: int) -> None:
        """Cheap check, from names and shapes alone, that a site can use this calibration.

        Raises:
            CalibrationBaseError: the expert is missing; or another model: the input is missing or of another width.
        """
        if role not in self.roles:
            raise CalibrationBaseError(
                f"the calibration does not have the expert {role}",
                where=self.path,
                expected=role,
                found=", ".join(self.roles),
                todo=f"calibrate it: hfq calibrate MODEL --role {role} --prompts FILE -o CAL; or take "
                f"--role {self.roles[0]} alone",
            )
        plan = self._plans.get(role, {}).get(group)
        if plan is None or plan.channels != channels:
            raise CalibrationBaseError(
                "the calibration was made with another model",
                where=f"{self.path}: {role} {group}",
                expected=f"{channels} channels",
                found="nothing" if plan is None else f"{plan.channels} channels",
                todo="calibrate this model: hfq calibrate MODEL --prompts FILE -o CAL",
            )

    def check_tensor(self, role: str, name: str, bf16_sha256: str) -> None:
        """Compare one base tensor's digest with that of the model which was calibrated.

        Raises:
            WrongRoleError: it is that of the other expert.
            CalibrationBaseError: it differs or is unknown there.
        """
        expert = self.document["base"]["experts"].get(role)
        expected = None if expert is None else expert["tensors"].get(name)
        for other, entry in self.document["base"]["experts"].items():
            if expected not in (None, bf16_sha256) and entry["tensors"].get(name) == bf16_sha256:
                raise WrongRoleError(
                    f"these are the weights that were calibrated as {other}",
                    where=f"{role} {name}",
                    expected=role,
                    found=other,
                    todo=f"give them as {other}; are the two experts exchanged?",
                )
        if expected != bf16_sha256:
            raise CalibrationBaseError(
                "the calibration was made with another model",
                where=f"{self.path}: {role} {name}",
                expected="no such tensor" if expected is None else f"bf16 digest {expected[:12]}…",
                found=f"{bf16_sha256[:12]}… in the base",
                todo="calibrate this model: hfq calibrate MODEL --prompts FILE -o CAL",
            )

    def verify_bytes(self) -> None:
        """Hash the statistics file, and that of calls kept for an analysis, and compare with the documents.

        Raises:
            DigestMismatchError
        """
        found = file_sha256(self.path / STATISTICS)
        if found != self.document["statistics"]["sha256"]:
            raise DigestMismatchError(
                "the statistics are not those of the document",
                where=self.path / STATISTICS,
                expected=self.document["statistics"]["sha256"][:12] + "…",
                found=found[:12] + "…",
            )
        if self.spread is not None:
            self.spread.verify_bytes()

    def leaf_folders(self) -> list[Path]:
        """The folders of its parts when they were kept (`--parts`), else its own.

        Raises:
            CalibrationMergeError: the folders are not the parts that the document lists.
        """
        folder = self.path / PARTS
        if not folder.is_dir():
            return [self.path]
        found = sorted(entry for entry in folder.iterdir() if (entry / DOCUMENT).is_file())
        if len(found) != len(self.document["parts"]):
            raise CalibrationMergeError(
                "the parts are not all there",
                where=folder,
                expected=f"{len(self.document['parts'])} parts",
                found=len(found),
                todo="name the parts that you want one by one: --merge CAL/parts/X CAL/parts/Y",
            )
        return found

    def close(self) -> None:
        """Close its files."""
        self._file.close()
        if self.spread is not None:
            self.spread.close()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Open a calibration folder. Its document is checked, its statistics are read when asked for.

    Raises:
        MissingPathError, MalformedFileError and subclasses, DigestMismatchError, and what `plan_groups`, `plan_calls`
            and `open_calls` raise
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingPathError(
            "no such calibration", where=folder, todo="make one: hfq calibrate MODEL --prompts FILE -o CAL"
        )
    if (folder / JOURNAL).is_file():
        raise MissingPathError(
            "a calibration that is not finished",
            where=folder,
            expected="a calibration",
            todo="go on with `hfq calibrate` and the same arguments and --resume",
        )
    document = read_document(folder / DOCUMENT, "calibration")
    statistics = SafetensorsFile(folder / STATISTICS)
    if statistics.size_bytes != document["statistics"]["size_bytes"]:
        raise DigestMismatchError(
            "the statistics are not those of the document",
            where=folder / STATISTICS,
            expected=f"{document['statistics']['size_bytes']} bytes",
            found=f"{statistics.size_bytes} bytes",
        )
    try:
        found = Calibration(folder, document, statistics)
        found.spread = open_calls(folder, document)
        return found
    except BaseException:
        statistics.close()
        raise
