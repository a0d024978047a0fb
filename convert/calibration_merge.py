"""Writing calibrations, and joining parts into one.

Histograms, maxima, counts, kept inputs and kept calls of k parts merge to exactly what one run over the same prompts
gives. Sums of squares are float64 per part, added in the order of the parts' digests, so that the order of the
arguments and of the run does not matter either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from hfq.schema.atomic import refuse_existing, write_file
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.documents import validate
from hfq.schema.errors import CalibrationMergeError, UsageError

from .calibration import DOCUMENT, STATISTICS, Calibration, load_calibration
from .calibration_layout import CallPlan, GroupPlan
from .call_store import CALL_TENSORS, CALLS, CallStore, SpreadCalls, write_calls
from .group_statistics import GroupStatistics
from .kept_calls import Inputs, choose_calls, choose_spread
from .kept_rows import order_of_digests
from .progress import Progress, Silent
from .safetensors_writer import SafetensorsWriter
from .schedule import ExpertSchedule
from .work_folder import WorkFolder, WorkKind

__all__ = ["GroupPlan", "check_mergeable", "merge_calibrations", "merge_groups", "merge_into", "open_leaves",
           "write_calibration"]  # fmt: skip

_FILES: Final = 2
"""Open files of a part: statistics and kept calls."""

HEADER: Final = ("base", "settings", "histogram", "schedule")
"""Members of the document that parts of one calibration share."""

_MERGE: Final = WorkKind(
    "merge", "", re.compile(r"(?!)"), frozenset({DOCUMENT, STATISTICS}), frozenset({CALLS, CALL_TENSORS})
)


def write_calibration(
    folder: Path,
    header: Mapping[str, Any],
    plans: Sequence[GroupPlan],
    read: Callable[[GroupPlan], GroupStatistics],
    parts: Sequence[Mapping[str, Any]],
    *,
    calls: Sequence[CallPlan] = (),
    read_call: Callable[[CallPlan], Inputs] | None = None,
    spread: SpreadCalls | None = None,
) -> str:
    """Write a calibration into an existing folder and return its id.

    Args:
        folder: an empty folder; the caller publishes it.
        header: document members `base`, `settings`, `histogram` and `schedule`.
        plans: the input groups; sorted by expert and name here.
        read: gives the statistics of one group when its turn comes.
        parts: document member `parts`; an entry without `sha256` gets the digest of the file just written.
        calls: sampled calls of every expert, each expert's in their order, where the settings keep any.
        read_call: gives the inputs of one sampled call when its turn comes.
        spread: calls that are kept for an analysis, where there are any; the id does not depend on them.
    """
    ordered = sorted(plans, key=lambda plan: (plan.role, plan.group))
    path = folder / STATISTICS
    kept = sorted(calls, key=lambda call: (call.role, call.index))
    tensors = [tensor for plan in ordered for tensor in plan.tensors()]
    tensors += [tensor for call in kept for tensor in call.tensors()]
    with SafetensorsWriter(path, tensors) as writer:
        for plan in ordered:
            for entry, value in zip(plan.tensors(), plan.values(read(plan)), strict=True):
                writer.write(entry.name, value)
        for call in kept:
            assert read_call is not None
            for entry, value in zip(call.tensors(), call.values(read_call(call)), strict=True):
                writer.write(entry.name, value)
    digest = writer.sha256
    document: dict[str, Any] = {
        "schema": "hfq.calibration/1",
        **header,
        "parts": sorted(({"sha256": digest, **part} for part in parts), key=lambda part: str(part["sha256"])),
        "statistics": {"sha256": digest, "size_bytes": writer.size_bytes},
    }
    if header["settings"].get("keep_calls"):
        document["calls"] = {
            role: [call.key.to_json() for call in kept if call.role == role] for role in header["schedule"]
        }
    document["id"] = content_id(document)
    validate(document, "calibration", str(folder / DOCUMENT))
    if spread is not None:
        write_calls(folder, document["id"], header["schedule"], spread)
    # Last: a folder with this document is whole.
    write_file(folder / DOCUMENT, canonical_json(document) + b"\n")
    return str(document["id"])


def merge_groups(groups: Iterable[GroupStatistics], keep_inputs: int) -> GroupStatistics:
    """Join the statistics of one input group, one after the other; sums are added in this order."""
    result: GroupStatistics | None = None
    for group in groups:
        if result is None:
            result = group
            continue
        result.max = torch.maximum(result.max, group.max)
        result.sum_squares += group.sum_squares
        result.count += group.count
        for key, histogram in group.histograms.items():
            result.histograms[key].merge(histogram)
        for index in group.inputs:
            digests = torch.cat([result.digests[index], group.digests[index]])
            order = torch.from_numpy(order_of_digests(digests.numpy())[:keep_inputs])
            result.digests[index] = digests[order]
            result.inputs[index] = torch.cat([result.inputs[index], group.inputs[index]])[order]
    assert result is not None
    return result


def check_mergeable(calibrations: Sequence[Calibration]) -> None:
    """Check that calibrations were made alike and that no prompt occurs twice.

    Raises:
        CalibrationMergeError
    """
    first = calibrations[0]
    for other in calibrations[1:]:
        for member in HEADER:
            left, right = first.document[member], other.document[member]
            if left == right:
                continue
            # The number of kept calls may only follow from that of kept rows.
            names = sorted({*left, *right}, key=lambda name: (name == "keep_calls", name))
            name = next(name for name in names if left.get(name) != right.get(name))
            raise CalibrationMergeError(
                "made with other settings",
                where=other.path,
                expected=f"{member}.{name} = {_brief(left.get(name))} as in {first.path}",
                found=_brief(right.get(name)),
            )
        counts = [0 if found.spread is None else found.spread.keep for found in (first, other)]
        if all(counts) and counts[0] != counts[1]:
            raise CalibrationMergeError(
                "made with other settings",
                where=other.path,
                expected=f"--keep-calls {counts[0]} as in {first.path}",
                found=counts[1],
            )
        if other.groups(first.roles[0]) != first.groups(first.roles[0]):
            raise CalibrationMergeError("statistics of other inputs", where=other.path, expected=f"as in {first.path}")
    seen: dict[tuple[str, ...], Path] = {}
    for calibration in calibrations:
        for part in calibration.document["parts"]:
            for prompt in part["prompts"]:
                key = tuple(str(prompt.get(name)) for name in ("sha256", "image", "last_image"))
                if key in seen:
                    raise CalibrationMergeError(
                        f"the prompt {prompt.get('id') or prompt['sha256'][:12]} twice",
                        where=calibration.path,
                        found=f"also in {seen[key]}",
                    )
                seen[key] = calibration.path


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def merge_calibrations(
    sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, progress: Progress | None = None
) -> Calibration:
    """Join calibrations, or single parts of them, into one.

    Args:
        sources: calibration folders; a folder that kept its parts stands for these.
        out: folder to make.

    Raises:
        CalibrationMergeError: other model, settings or schedule, or the same part twice.
        OutputExistsError, and what `load_calibration` raises
    """
    destination = Path(out)
    refuse_existing(destination, resume=True)
    with contextlib.ExitStack() as stack:
        folders: list[Path] = []
        for source in sources:
            with load_calibration(source) as opened:
                folders += opened.leaf_folders()
        leaves = open_leaves(folders, stack)
        check_mergeable(leaves)
        # Merging takes no model and little time: the rest of a killed one is taken over, and nothing else stays.
        folder = WorkFolder(destination, _MERGE, {}, resume=True)
        try:
            merge_into(folder.result, leaves, progress or Silent())
            folder.publish()
        except BaseException:
            folder.discard()
            raise
    return load_calibration(destination)


def open_leaves(folders: Sequence[Path], stack: contextlib.ExitStack) -> list[Calibration]:
    """Open calibrations together, until the stack is left, and check every byte.

    Raises:
        UsageError: none at all, or more than the system lets one program open.
        DigestMismatchError, and what `load_calibration` raises
    """
    if not folders:
        raise UsageError("nothing to merge", expected="calibration folders")
    _allow_open_files(len(folders) * _FILES + 256, stack)
    leaves = []
    for folder in folders:
        leaves.append(stack.enter_context(load_calibration(folder)))
        leaves[-1].verify_bytes()
    return leaves


def _allow_open_files(wanted: int, stack: contextlib.ExitStack) -> None:
    """Most systems start a program with 1,024 open files and let it ask for more; it has what it had before when the
    stack is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UsageError("too many parts at once", expected=f"at most {(hard - 256) // _FILES}",
                         found=(wanted - 256) // _FILES,
                         todo="merge some of them first, then the results")  # fmt: skip
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def merge_into(folder: Path, leaves: Sequence[Calibration], progress: Progress) -> str:
    """Merge opened calibrations into an existing folder and return the id; inputs have been checked."""
    ordered = sorted(leaves, key=lambda leaf: str(leaf.document["statistics"]["sha256"]))
    document = ordered[0].document
    keep = int(document["settings"]["keep_inputs"])
    plans = [_merged_plan(ordered, role, group, keep) for role in ordered[0].roles for group in ordered[0].groups(role)]
    progress.start("merging statistics", len(plans), "inputs")

    def read(plan: GroupPlan) -> GroupStatistics:
        progress.advance()
        return merge_groups((leaf.read(plan.role, plan.group) for leaf in ordered), keep)

    calls = {plan: source for role in ordered[0].roles for plan, source in _merged_calls(ordered, role)}

    def read_call(plan: CallPlan) -> Inputs:
        leaf, source = calls[plan]
        return leaf.read_call(source)

    header = {member: document[member] for member in HEADER}
    parts = [part for leaf in ordered for part in leaf.document["parts"]]
    spread = _merged_spread(ordered, progress)
    identity = write_calibration(
        folder, header, plans, read, parts, calls=list(calls), read_call=read_call, spread=spread
    )
    progress.finish()
    return identity


def _merged_plan(leaves: Sequence[Calibration], role: str, group: str, keep: int) -> GroupPlan:
    first = leaves[0].plan(role, group)
    rows: dict[int, int] = {}
    for leaf in leaves:
        plan = leaf.plan(role, group)
        if (plan.channels, plan.calls) != (first.channels, first.calls):
            raise CalibrationMergeError(
                "statistics of another width",
                where=f"{leaf.path}: {role} {group}",
                expected=f"{first.channels} channels as in {leaves[0].path}",
                found=plan.channels,
            )
        for index, count in plan.rows.items():
            rows[index] = min(keep, rows.get(index, 0) + count)
    return GroupPlan(role, group, first.channels, first.calls, first.keys, dict(sorted(rows.items())))


def _merged_calls(leaves: Sequence[Calibration], role: str) -> Iterator[tuple[CallPlan, tuple[Calibration, CallPlan]]]:
    """The kept calls of an expert in the merged calibration, each with the leaf and the plan that it comes from."""
    sources = {plan.key: (leaf, plan) for leaf in leaves for plan in leaf.call_plans(role)}
    keep = int(leaves[0].document["settings"].get("keep_calls", 0))
    chosen = {
        dataclasses.replace(sources[key][1], index=index): sources[key]
        for index, key in enumerate(choose_calls(sources, keep))
    }
    _check_kinds(chosen)
    yield from chosen.items()


def _check_kinds(chosen: Mapping[CallPlan, tuple[Calibration | CallStore, CallPlan]]) -> None:
    """Calls of an expert that are joined were given the same arguments."""
    first: dict[str, tuple[Path, CallPlan]] = {}
    for source, plan in chosen.values():
        path, known = first.setdefault(plan.role, (source.path, plan))
        if plan.kind != known.kind:
            raise CalibrationMergeError(
                "kept calls with other arguments",
                where=f"{source.path}: {plan.prefix}",
                expected=f"as in {path}",
                found=", ".join(name for name, _, _ in plan.kind),
            )


def _merged_spread(leaves: Sequence[Calibration], progress: Progress) -> SpreadCalls | None:
    """The calls that one run over all prompts keeps for an analysis; None unless every leaf has its own."""
    stores = [(leaf, leaf.spread) for leaf in leaves]
    without = [leaf.path for leaf, store in stores if store is None]
    if without:
        if len(without) < len(leaves):
            progress.note(
                f"warning: {without[0]} kept no calls for an analysis; the merged calibration keeps none either"
            )
        return None
    sources = {
        (plan.role, plan.key): (store, plan)
        for leaf, store in stores
        if store is not None
        for role in leaf.roles
        for plan in store.plans(role)
    }
    document = leaves[0].document
    keep = max(store.keep for _, store in stores if store is not None)
    chosen: dict[CallPlan, tuple[CallStore, CallPlan]] = {}
    for role, entry in document["schedule"].items():
        prompts = {key.prompt for of_role, key in sources if of_role == role}
        for index, key in enumerate(
            choose_spread(ExpertSchedule.from_json(entry), keep, document["settings"]["seed"], prompts)
        ):
            store, plan = sources[role, key]
            chosen[dataclasses.replace(plan, index=index)] = store, plan
    _check_kinds(chosen)
    return SpreadCalls(keep, list(chosen), lambda plan: chosen[plan][0].read(chosen[plan][1]))
