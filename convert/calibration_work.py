"""The folder of an unfinished calibration: finished prompts stay, and a resumed run goes on after them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hfq.schema.atomic import fsync_folder
from hfq.schema.canonical import canonical_json
from hfq.schema.errors import DigestMismatchError, HfqError, OutputExistsError, ResumeMismatchError, UsageError

from .calibration import DOCUMENT, PARTS, STATISTICS, Calibration, load_calibration
from .calibration_layout import CallPlan, GroupPlan
from .calibration_merge import HEADER, merge_into, open_leaves, write_calibration
from .call_store import CALL_TENSORS, CALLS, SpreadCalls
from .generation import Frames
from .group_statistics import RunStatistics
from .kept_calls import Inputs, KeptCall, prompt_key
from .progress import Progress
from .prompts import Prompt
from .work_folder import WorkFolder, WorkKind, clear_finished, first_difference

__all__ = ["CALIBRATION", "CalibrationWork", "finished_calibration"]

_FILES: Final = frozenset({DOCUMENT, STATISTICS})
_CALLS: Final = frozenset({CALLS, CALL_TENSORS})
CALIBRATION: Final = WorkKind(
    "calibration",
    PARTS,
    re.compile(rf"[0-9a-f]{{16}}(\.partial)?(/({'|'.join(map(re.escape, sorted(_FILES | _CALLS)))}))?"),
    _FILES,
    _CALLS,
)


class CalibrationWork:
    """An open work folder whose pieces are the parts of finished prompts.

    Attributes:
        partial: the folder.
    """

    def __init__(
        self,
        folder: WorkFolder,
        header: Mapping[str, Any],
        entries: Mapping[Prompt, dict[str, Any]],
        keep_calls: int,
    ) -> None:
        self.partial = folder.partial
        self._work, self._header, self._entries, self._keep_calls = folder, header, entries, keep_calls
        self._written = {entry["prompt"]: entry["calibration"] for entry in folder.entries}

    @classmethod
    def begin(
        cls, out: Path, header: Mapping[str, Any], prompts: Mapping[Prompt, Frames], *, keep_calls: int, resume: bool
    ) -> CalibrationWork:
        """Start the folder, or check that it was started with the same inputs.

        Args:
            out: the folder that will be made in the end.
            header: what the parts share.
            prompts: with the frames that they are conditioned on.
            keep_calls: a third of the spread calls per expert and guidance branch.
            resume: go on in an existing folder.

        Raises:
            what `WorkFolder` raises
            ResumeMismatchError, DigestMismatchError: a part that is not of these inputs, or was changed.
            UsageError: two prompts with one text and the same frames.
        """
        entries = {prompt: _entry(prompt, frames) for prompt, frames in prompts.items()}
        keys: dict[str, Prompt] = {}
        for prompt, entry in entries.items():
            other = keys.setdefault(prompt_key(entry), prompt)
            if other is not prompt:
                raise UsageError("one prompt twice, with the same frames", found=f"{other.label} and {prompt.label}")
        inputs = _inputs(header, entries, keep_calls)
        work = cls(WorkFolder(out, CALIBRATION, inputs, resume=resume), header, entries, keep_calls)
        try:
            work._check_parts()
        except BaseException:
            work.close()
            raise
        return work

    def _check_parts(self) -> None:
        """Drop what a killed run left half written, and take nothing for finished that is not."""
        prompts = {self._folder(prompt).name: prompt for prompt in self._entries}
        for unfinished in self._work.items.glob("*.partial"):
            folder = unfinished.with_suffix("")
            if folder.name in prompts and not folder.exists() and self._is_written(prompts[folder.name], unfinished):
                os.rename(unfinished, folder)  # killed when only its name was missing
            else:
                self._work.remove(unfinished)
        for folder in sorted(self._work.items.iterdir()):
            try:
                with load_calibration(folder) as part:
                    document = part.document
            except HfqError:
                if not self._work.is_new:
                    raise
                self._work.remove(folder)  # of a finished run, killed while it removed this
                continue
            prompt = prompts.get(folder.name)
            found = {member: document[member] for member in HEADER}
            found["prompts"] = document["parts"][0]["prompts"]
            if prompt is None or first_difference(found, {**self._header, "prompts": [self._entries[prompt]]}):
                raise ResumeMismatchError(
                    "a part that was made with other inputs", where=folder, todo="remove it and run again"
                )
            if self._written.get(self.key(prompt), document["id"]) != document["id"]:
                raise DigestMismatchError(
                    "a part of the unfinished calibration was changed", where=folder, todo="remove it and run again"
                )

    def _is_written(self, prompt: Prompt, folder: Path) -> bool:
        try:
            with load_calibration(folder) as part:
                return self._written.get(self.key(prompt)) == part.id
        except HfqError:
            return False

    def key(self, prompt: Prompt) -> str:
        """64 hex digits that name a prompt: its text and its frames."""
        return prompt_key(self._entries[prompt])

    def _folder(self, prompt: Prompt) -> Path:
        return self._work.items / self.key(prompt)[:16]

    def is_done(self, prompt: Prompt) -> bool:
        """Whether the prompt's part is there."""
        return self._folder(prompt).exists()

    def write_part(self, prompt: Prompt, found: RunStatistics) -> None:
        """Keep the statistics and the calls of one prompt."""
        folder = self._folder(prompt)
        unfinished = folder.with_name(folder.name + ".partial")
        unfinished.mkdir()
        plans = [GroupPlan.of(role, group, statistics) for (role, group), statistics in found.groups.items()]
        calls, spread = _planned(found.calls), _planned(found.spread)
        try:
            identity = write_calibration(
                unfinished,
                self._header,
                plans,
                lambda plan: found.groups[plan.role, plan.group],
                [{"prompts": [self._entries[prompt]]}],
                calls=list(calls),
                read_call=calls.__getitem__,
                spread=SpreadCalls(self._keep_calls, list(spread), spread.__getitem__) if spread else None,
            )
        except (OSError, HfqError):
            self._work.remove(unfinished)
            raise
        self._work.add({"prompt": self.key(prompt), "calibration": identity})
        os.rename(unfinished, folder)
        fsync_folder(folder.parent)

    def publish(self, *, keep_parts: bool, progress: Progress) -> None:
        """Join the parts and give the folder its name.

        Raises:
            DigestMismatchError, MalformedFileError: a part that was changed.
            OutputExistsError: something of that name has appeared.
        """
        with contextlib.ExitStack() as stack:
            leaves = open_leaves([self._folder(prompt) for prompt in self._entries], stack)
            merge_into(self._work.result, leaves, progress)
        if keep_parts:
            self._work.keep_items()
        self._work.publish()

    def close(self) -> None:
        """Stop; the folder stays."""
        self._work.close()


def finished_calibration(
    out: Path, header: Mapping[str, Any], prompts: Mapping[Prompt, Frames], *, keep_calls: int, keep_parts: bool
) -> Calibration:
    """The calibration that is there, if it is the one that would be made.

    Raises:
        OutputExistsError: it is not.
    """
    there, todo = "the output is already there, and is not what would be made", "choose another name, or remove it"
    entries = {prompt: _entry(prompt, frames) for prompt, frames in prompts.items()}
    try:
        calibration = load_calibration(out)
        calibration.verify_bytes()
        leaves = calibration.leaf_folders()
    except HfqError as error:
        raise OutputExistsError(there, where=out, found=str(error), todo=todo) from None
    made = {member: calibration.document[member] for member in ("base", "settings", "schedule", "histogram")}
    made["prompts"] = _sorted(prompt for part in calibration.document["parts"] for prompt in part["prompts"])
    made["calls"] = {"keep_calls": 0 if calibration.spread is None else calibration.spread.keep}
    inputs = _inputs(header, entries, keep_calls)
    found = first_difference(made, {**inputs, "prompts": _sorted(entries.values())})
    if found is not None:
        raise OutputExistsError(there, where=f"{out}: {found.field}", expected=found.now, found=found.before, todo=todo)
    if keep_parts and leaves == [out]:
        raise OutputExistsError(there, where=out, expected="one with its parts", found="no parts", todo=todo)
    clear_finished(out, CALIBRATION, inputs)
    return calibration


def _inputs(header: Mapping[str, Any], entries: Mapping[Prompt, dict[str, Any]], keep_calls: int) -> dict[str, Any]:
    """What decides the result, in this order: another setting explains another schedule."""
    prompts = {f"{number}": entry for number, entry in enumerate(entries.values(), 1)}
    calls = {"keep_calls": keep_calls}
    ordered = {"base": header["base"], "settings": header["settings"], "calls": calls, "prompts": prompts}
    return {**ordered, "schedule": header["schedule"], "histogram": header["histogram"]}


def _sorted(prompts: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(prompts, key=canonical_json)


def _planned(kept: Mapping[str, Sequence[KeptCall]]) -> dict[CallPlan, Inputs]:
    return {
        CallPlan.of(role, index, call.key, call.inputs): call.inputs
        for role, calls in kept.items()
        for index, call in enumerate(calls)
    }


def _entry(prompt: Prompt, frames: Frames) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": prompt.sha256, "image": frames.first_sha256}
    for name, value in (("last_image", frames.last_sha256), ("id", prompt.id), ("category", prompt.category)):
        if value is not None:
            entry[name] = value
    return entry
