"""What a calibration's statistics file must hold, from its document; nothing else is accepted.

Tensors, for every expert and input group (`<role>/<group>/...`):

- `max` float32 [calls, channels], `sum_squares` float64 [calls, channels], `count` int64 [calls]: exact, over every
  row of every call; a call is one (step, guidance branch) of the schedule.
- `histogram/<key>` int32 [channels, 129] and `top/<key>` int32 [channels]: see `hfq.convert.histogram`; `<key>` is
  `all`, or by timestep bin and/or branch such as `bin0-cond`.
- `inputs/bin<b>` bfloat16 [rows, channels] and `digests/bin<b>` uint8 [rows, 32]: kept input rows, by rising digest.

And for every call that the document lists under `calls`, in its order (`<role>/calls/<index>/...`): `<argument>`, or
`<argument>/<i>` for a list, with the dtype and shape that the transformer was given.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from hfq.schema.errors import (
    MalformedFileError,
    MissingTensorError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

from .group_statistics import GroupStatistics
from .histogram import BINS, Histogram
from .kept_calls import DTYPES, CallKey, Inputs, flatten, prompt_key
from .safetensors_file import TensorEntry
from .safetensors_writer import TensorPlan
from .schedule import ExpertSchedule
from .tensor_bytes import TORCH_DTYPES

__all__ = ["CallPlan", "GroupPlan", "plan_calls", "plan_groups", "plan_listed"]

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,20}")

_CALLS: Final = "calls"
_INPUT_NAME: Final = re.compile(r"([a-z][a-z0-9_]{0,63})(?:/(0|[1-9][0-9]{0,2}))?")
_EVERY_CALL: Final = ("hidden_states", "timestep", "encoder_hidden_states")
_DIMENSIONS: Final = {
    "hidden_states": (5,), "timestep": (1, 2), "encoder_hidden_states": (3,), "encoder_hidden_states_image": (3,),
    "control_hidden_states": (5,), "control_hidden_states_scale": (1,),
}  # fmt: skip
_OTHER_DIMENSIONS: Final = (1, 2, 3, 4, 5, 6)
"""Of an argument that no released model has."""


@dataclass(frozen=True)
class GroupPlan:
    """The tensors of one input group, known before their values are.

    Attributes:
        role, group: names in the calibration.
        channels: of the input.
        calls: of the schedule.
        keys: of the histograms, sorted.
        rows: timestep bin -> kept rows, by rising bin.
    """

    role: str
    group: str
    channels: int
    calls: int
    keys: Sequence[str]
    rows: Mapping[int, int]

    @classmethod
    def of(cls, role: str, group: str, statistics: GroupStatistics) -> GroupPlan:
        """The plan of statistics that are there."""
        rows = {index: int(kept.shape[0]) for index, kept in sorted(statistics.inputs.items())}
        calls = int(statistics.max.shape[0])
        return cls(role, group, statistics.channels, calls, tuple(sorted(statistics.histograms)), rows)

    def tensors(self) -> list[TensorPlan]:
        """Full names, dtypes and shapes in the file's order."""
        prefix = f"{self.role}/{self.group}/"
        return [TensorPlan(prefix + name, dtype, shape) for name, dtype, shape in self._entries()]

    def _entries(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        yield "max", torch.float32, (self.calls, self.channels)
        yield "sum_squares", torch.float64, (self.calls, self.channels)
        yield "count", torch.int64, (self.calls,)
        for key in self.keys:
            yield f"histogram/{key}", torch.int32, (self.channels, BINS)
            yield f"top/{key}", torch.int32, (self.channels,)
        for index, rows in self.rows.items():
            yield f"inputs/bin{index}", torch.bfloat16, (rows, self.channels)
            yield f"digests/bin{index}", torch.uint8, (rows, 32)

    def values(self, statistics: GroupStatistics) -> Iterator[Tensor]:
        """The values in the same order."""
        yield statistics.max
        yield statistics.sum_squares
        yield statistics.count
        for key in self.keys:
            yield statistics.histograms[key].counts
            yield statistics.histograms[key].top
        for index in self.rows:
            yield statistics.inputs[index]
            yield statistics.digests[index]

    def gather(self, tensors: Mapping[str, Tensor]) -> GroupStatistics:
        """The statistics from tensors under their full names."""
        prefix = f"{self.role}/{self.group}/"
        return GroupStatistics(
            tensors[prefix + "max"],
            tensors[prefix + "sum_squares"],
            tensors[prefix + "count"],
            {key: Histogram(tensors[f"{prefix}histogram/{key}"], tensors[f"{prefix}top/{key}"]) for key in self.keys},
            {index: tensors[f"{prefix}inputs/bin{index}"] for index in self.rows},
            {index: tensors[f"{prefix}digests/bin{index}"] for index in self.rows},
        )


@dataclass(frozen=True)
class CallPlan:
    """The tensors of one kept call, known before their values are.

    Attributes:
        role: expert.
        index: place among the role's kept calls.
        key: which call it is.
        leaves: tensors under the names that `flatten` gives, sorted.
    """

    role: str
    index: int
    key: CallKey
    leaves: tuple[TensorPlan, ...]

    @classmethod
    def of(cls, role: str, index: int, key: CallKey, inputs: Inputs) -> CallPlan:
        """The plan of inputs that are there."""
        leaves = sorted(flatten(inputs).items())
        return cls(role, index, key, tuple(TensorPlan(name, x.dtype, tuple(x.shape)) for name, x in leaves))

    @property
    def prefix(self) -> str:
        """What full names begin with."""
        return f"{self.role}/{_CALLS}/{self.index}/"

    @property
    def kind(self) -> list[tuple[str, torch.dtype, int]]:
        """Name, dtype and dimensions of every tensor: what all calls of an expert share; lengths may differ."""
        return [(leaf.name, leaf.dtype, len(leaf.shape)) for leaf in self.leaves]

    def tensors(self) -> list[TensorPlan]:
        """Full names, dtypes and shapes in the file's order."""
        return [TensorPlan(self.prefix + leaf.name, leaf.dtype, leaf.shape) for leaf in self.leaves]

    def values(self, inputs: Inputs) -> list[Tensor]:
        """The values in the same order."""
        found = flatten(inputs)
        return [found[leaf.name] for leaf in self.leaves]

    def gather(self, tensors: Mapping[str, Tensor]) -> Inputs:
        """The inputs from tensors under their full names."""
        inputs: Inputs = {}
        names = {leaf.name for leaf in self.leaves}
        for argument in sorted({name.partition("/")[0] for name in names}):
            if argument in names:
                inputs[argument] = tensors[self.prefix + argument]
            else:
                length = sum(name.startswith(f"{argument}/") for name in names)
                inputs[argument] = [tensors[f"{self.prefix}{argument}/{i}"] for i in range(length)]
        return inputs


def plan_groups(
    document: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> dict[str, dict[str, GroupPlan]]:
    """role -> group -> plan, by holding a statistics file's header against the document. No tensor is read.

    Tensors of kept calls are left to `plan_calls`; together the two know every tensor or refuse it.

    Raises:
        MalformedFileError: a tensor name that no calibration has, or experts that differ from document to schedule.
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError
    """
    experts, schedule = set(document["base"]["experts"]), document["schedule"]
    if experts != set(schedule):
        raise MalformedFileError(
            "the experts of the base are not those of the schedule",
            where=where,
            expected=", ".join(sorted(experts)),
            found=", ".join(sorted(schedule)),
        )
    groups: dict[str, set[str]] = {role: set() for role in experts}
    for name in tensors:
        role, _, rest = name.partition("/")
        group, _, leaf = rest.partition("/")
        if role in groups and group == _CALLS:
            continue
        if role not in groups or not leaf or not _GROUP_NAME.fullmatch(group):
            raise MalformedFileError("a tensor name that no calibration has", where=where, found=name)
        groups[role].add(group)
    plans = {
        role: {group: _plan(document, tensors, role, group, where) for group in sorted(groups[role])}
        for role in sorted(groups)
    }
    expected = {plan.name for of_role in plans.values() for group in of_role.values() for plan in group.tensors()}
    extra = sorted(name for name in set(tensors) - expected if not _is_of_call(name))
    if extra:
        raise UnexpectedTensorError("a tensor that the document does not ask for", where=f"{where}: {extra[0]}")
    names = {role: set(of_role) for role, of_role in plans.items()}
    first = next(iter(names.values()))
    for role, found in names.items():
        if not found or found != first:
            raise MissingTensorError(
                "the experts do not have the same inputs",
                where=f"{where}: {role}",
                found=f"{min(found ^ first, default='no input at all')}",
            )
    return plans


def _plan(
    document: Mapping[str, Any], tensors: Mapping[str, TensorEntry], role: str, group: str, where: str
) -> GroupPlan:
    schedule = ExpertSchedule.from_json(document["schedule"][role])
    settings = document["settings"]
    prefix = f"{role}/{group}/"

    def shape_of(name: str) -> tuple[int, ...]:
        if prefix + name not in tensors:
            raise MissingTensorError("statistics are incomplete", where=f"{where}: {prefix}{name}")
        return tensors[prefix + name].shape

    bins = sorted({call.bin for call in schedule.calls}) if settings["keep_inputs"] else []
    rows = {index: (*shape_of(f"inputs/bin{index}"), 0)[0] for index in bins}
    channels = (*shape_of("max"), 0, 0)[1]
    keys = tuple(schedule.histogram_keys(settings["by"]))
    plan = GroupPlan(role, group, channels, len(schedule.calls), keys, rows)
    for entry in plan.tensors():
        shape_of(entry.name.removeprefix(prefix))
        found = tensors[entry.name]
        if TORCH_DTYPES.get(found.dtype) != entry.dtype or found.shape != entry.shape or channels == 0:
            raise ShapeMismatchError(
                "statistics that do not fit the document",
                where=f"{where}: {entry.name}",
                expected=f"{entry.dtype} {list(entry.shape)}",
                found=f"{found.dtype} {list(found.shape)}",
            )
    most = max(rows.values(), default=0)
    if most > settings["keep_inputs"]:
        raise ShapeMismatchError(
            "more kept rows than the settings allow",
            where=f"{where}: {role}/{group}",
            expected=settings["keep_inputs"],
            found=most,
        )
    return plan


def _is_of_call(name: str) -> bool:
    return name.split("/")[1:2] == [_CALLS]


def plan_calls(
    document: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> dict[str, tuple[CallPlan, ...]]:
    """role -> plans of its kept calls, by holding a statistics file's header against the document.

    Raises:
        MalformedFileError: calls that no run can have chosen, or a tensor name that no calibration has.
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError
    """
    listed = {role: _listed_calls(document, role, where) for role in document["schedule"]}
    return plan_listed(listed, {name: entry for name, entry in tensors.items() if _is_of_call(name)}, where)


def plan_listed(
    listed: Mapping[str, Sequence[CallKey]], tensors: Mapping[str, TensorEntry], where: str
) -> dict[str, tuple[CallPlan, ...]]:
    """role -> plans of its kept calls, from the calls that a document lists and from a file's tensors.

    Args:
        tensors: of calls, and nothing else.

    Raises:
        MalformedFileError, MissingTensorError, UnexpectedTensorError, ShapeMismatchError
    """
    leaves: dict[str, list[TensorEntry]] = {}
    for name, entry in tensors.items():
        leaves.setdefault("/".join(name.split("/")[:3]) + "/", []).append(entry)
    plans = {role: tuple(_plan_role(listed[role], leaves, role, where)) for role in sorted(listed)}
    known = {plan.prefix for of_role in plans.values() for plan in of_role}
    extra = sorted(entry.name for prefix, found in leaves.items() if prefix not in known for entry in found)
    if extra:
        raise UnexpectedTensorError("a tensor that the document does not ask for", where=f"{where}: {extra[0]}")
    return plans


def _plan_role(
    keys: Sequence[CallKey], leaves: Mapping[str, Sequence[TensorEntry]], role: str, where: str
) -> Iterator[CallPlan]:
    kind: list[tuple[str, torch.dtype, int]] | None = None
    for index, key in enumerate(keys):
        prefix = f"{role}/{_CALLS}/{index}/"
        found = sorted(leaves.get(prefix, ()), key=lambda entry: entry.name)
        plan = CallPlan(role, index, key, tuple(_leaf(entry, prefix, where) for entry in found))
        _check_arguments(plan, where)
        if kind is not None and plan.kind != kind:
            raise ShapeMismatchError(
                "kept calls with different arguments",
                where=f"{where}: {prefix}",
                expected=f"those of {role}/{_CALLS}/0/",
                found=", ".join(name for name, _, _ in plan.kind),
            )
        kind = plan.kind
        yield plan


def _listed_calls(document: Mapping[str, Any], role: str, where: str) -> list[CallKey]:
    """The calls that a document lists for an expert, which are as many as its settings ask for.

    That no other call has a smaller digest is not looked up: a document could make that take for ever.
    """
    settings, listed = document["settings"], document.get(_CALLS, {})
    keep = settings.get("keep_calls", 0)
    if (keep > 0) != (_CALLS in document) or (keep and set(listed) != set(document["schedule"])):
        raise MalformedFileError(
            "the kept calls are not those of the settings",
            where=where,
            expected="calls of every expert" if keep else "none",
            found=", ".join(sorted(listed)) or "none",
        )
    if not keep:
        return []
    known = {(call.step, call.branch): call for call in ExpertSchedule.from_json(document["schedule"][role]).calls}
    prompts = {prompt_key(prompt) for part in document["parts"] for prompt in part["prompts"]}
    keys = []
    for number, entry in enumerate(listed[role]):
        call = known.get((entry["step"], entry["branch"]))
        key = None if call is None else CallKey.of(settings["seed"], entry["prompt"], call)
        if key is None or key.prompt not in prompts or key.digest != entry["digest"]:
            raise MalformedFileError("a kept call that no run has made", where=f"{where}: {role} call {number}")
        keys.append(key)
    cells = Counter((call.bin, call.branch) for call in known.values())
    expected = {cell: min(keep, count * len(prompts)) for cell, count in cells.items()}
    rising = all(left.order < right.order for left, right in itertools.pairwise(keys))
    if not rising or Counter(key.cell for key in keys) != expected:
        raise MalformedFileError(
            "kept calls that no run can have chosen",
            where=f"{where}: {role}",
            expected=f"{keep} of every timestep bin and branch, where there are as many, by rising digest",
        )
    return keys


def _leaf(entry: TensorEntry, prefix: str, where: str) -> TensorPlan:
    name = entry.name.removeprefix(prefix)
    match = _INPUT_NAME.fullmatch(name)
    if match is None:
        raise MalformedFileError("a tensor name that no calibration has", where=where, found=entry.name)
    dtype, dimensions = TORCH_DTYPES.get(entry.dtype), _DIMENSIONS.get(match[1], _OTHER_DIMENSIONS)
    if dtype is None or dtype not in DTYPES or len(entry.shape) not in dimensions or 0 in entry.shape:
        raise ShapeMismatchError(
            "an argument that no transformer takes",
            where=f"{where}: {entry.name}",
            expected=f"numbers in {' or '.join(map(str, dimensions))} dimensions",
            found=f"{entry.dtype} {list(entry.shape)}",
        )
    return TensorPlan(name, dtype, entry.shape)


def _check_arguments(plan: CallPlan, where: str) -> None:
    leaves = {leaf.name: leaf for leaf in plan.leaves}
    for name in _EVERY_CALL:
        if name not in leaves:
            raise MissingTensorError("a kept call is incomplete", where=f"{where}: {plan.prefix}{name}")
    if len({leaves[name].shape[0] for name in _EVERY_CALL}) != 1:
        raise ShapeMismatchError(
            "arguments of different batches",
            where=f"{where}: {plan.prefix}",
            found=", ".join(f"{name} {list(leaves[name].shape)}" for name in _EVERY_CALL),
        )
    for argument in sorted({name.partition("/")[0] for name in leaves}):
        parts = {name for name in leaves if name.startswith(f"{argument}/")}
        complete = {f"{argument}/{index}" for index in range(len(parts))}
        if parts != complete or (parts and argument in leaves):
            raise MissingTensorError("a list of tensors with a gap", where=f"{where}: {plan.prefix}{argument}")
