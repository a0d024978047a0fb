"""The folder of an unfinished calibration: finished prompts stay, and a resumed run goes on after them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hfq.schema.atomic import fsync_folder, publish_folder, refuse_existing, write_file
from hfq.schema.canonical import canonical_json
from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import HfqError, MalformedFileError, ResumeMismatchError, UsageError

from .calibration import PARTS
from .calibration_layout import CallPlan, GroupPlan
from .calibration_merge import HEADER, merge_into, open_leaves, write_calibration
from .call_store import SpreadCalls
from .generation import Frames
from .group_statistics import RunStatistics
from .kept_calls import Inputs, KeptCall, prompt_key
from .progress import Progress
from .prompts import Prompt

__all__ = ["CalibrationWork"]

_STARTED: Final = "started.json"


class CalibrationWork:
    """`OUT.partial/`: `started.json` with everything that decides the result, and `parts/` with finished prompts.

    Attributes:
        partial: the folder.
    """

    def __init__(
        self,
        out: Path,
        partial: Path,
        header: Mapping[str, Any],
        prompts: Mapping[Prompt, dict[str, Any]],
        keep_calls: int,
    ):
        self._out, self.partial = out, partial
        self._header, self._entries, self._keep_calls = header, prompts, keep_calls

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
            OutputExistsError
            ResumeMismatchError: naming the first difference.
            UsageError: two prompts with one text and the same frames.
        """
        partial = refuse_existing(out, resume=resume)
        work = cls(out, partial, header, {prompt: _entry(prompt, frames) for prompt, frames in prompts.items()},
                   keep_calls)  # fmt: skip
        keys: dict[str, Prompt] = {}
        for prompt in prompts:
            other = keys.setdefault(work.key(prompt), prompt)
            if other is not prompt:
                raise UsageError("one prompt twice, with the same frames", found=f"{other.label} and {prompt.label}")
        started = partial / _STARTED
        numbered = {f"{number}": entry for number, entry in enumerate(work._entries.values(), 1)}
        document = parse_json(
            canonical_json({**header, "calls": {"keep_calls": keep_calls}, "prompts": numbered}), _STARTED
        )
        if started.exists():
            _compare(parse_json(read_bytes(started), str(started)), document, started)
        else:
            (partial / PARTS).mkdir(parents=True, exist_ok=True)
            write_file(started, canonical_json(document))
        return work

    def key(self, prompt: Prompt) -> str:
        """64 hex digits that name a prompt: its text and its frames."""
        return prompt_key(self._entries[prompt])

    def _folder(self, prompt: Prompt) -> Path:
        return self.partial / PARTS / self.key(prompt)[:16]

    def is_done(self, prompt: Prompt) -> bool:
        """Whether the prompt's part is there."""
        return self._folder(prompt).exists()

    def write_part(self, prompt: Prompt, found: RunStatistics) -> None:
        """Keep the statistics and the calls of one prompt."""
        folder = self._folder(prompt)
        unfinished = folder.with_name(folder.name + ".partial")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        plans = [GroupPlan.of(role, group, statistics) for (role, group), statistics in found.groups.items()]
        calls, spread = _planned(found.calls), _planned(found.spread)
        try:
            write_calibration(
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
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        os.rename(unfinished, folder)
        fsync_folder(folder.parent)

    def publish(self, *, keep_parts: bool, progress: Progress) -> None:
        """Join the parts and give the folder its name.

        Raises:
            ResumeMismatchError: a part that was not made with these inputs.
            DigestMismatchError, MalformedFileError: a part that was changed.
        """
        self._remove_rests()
        with contextlib.ExitStack() as stack:
            leaves = open_leaves([self._folder(prompt) for prompt in self._entries], stack)
            for leaf, entry in zip(leaves, self._entries.values(), strict=True):
                right = {**self._header, "prompts": [entry]}
                found = {member: leaf.document[member] for member in HEADER}
                found["prompts"] = leaf.document["parts"][0]["prompts"]
                if canonical_json(found) != canonical_json(right):
                    raise ResumeMismatchError(
                        "a part that was made with other inputs", where=leaf.path, todo="remove it and run again"
                    )
            merge_into(self.partial, leaves, progress)
        (self.partial / _STARTED).unlink()
        if not keep_parts:
            shutil.rmtree(self.partial / PARTS)
        publish_folder(self.partial, self._out)

    def _remove_rests(self) -> None:
        """What a killed run left half written."""
        expected = {_STARTED, PARTS}
        parts = {self._folder(prompt).name for prompt in self._entries}
        for place in [*self.partial.iterdir(), *(self.partial / PARTS).iterdir()]:
            if place.name not in (parts if place.parent.name == PARTS else expected):
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


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


def _compare(before: Any, now: Mapping[str, Any], where: Path) -> None:
    if isinstance(before, dict):
        # A folder that was started before calls were spread says nothing about them.
        before = {"calls": {}, **before}
    if not isinstance(before, dict) or not all(isinstance(before.get(member), dict) for member in now):
        raise MalformedFileError("not the record of an unfinished calibration", where=where, todo="remove the folder")
    # In this order: another setting explains another schedule.
    for member in ("base", "settings", "calls", "prompts", "schedule", "histogram"):
        # The number of kept calls may only follow from that of kept rows.
        for name in sorted({*before[member], *now[member]}, key=lambda name: (name == "keep_calls", name)):
            left, right = before[member].get(name), now[member].get(name)
            if left != right:
                raise ResumeMismatchError(
                    "the unfinished calibration was started with other inputs",
                    where=f"{where.parent}: {member}.{name}",
                    expected=str(left)[:80],
                    found=str(right)[:80],
                    todo="use the same settings, or remove the folder",
                )
