"""What a calibration's statistics file must hold, from its document; nothing else is accepted.

Tensors, for every expert and input group (`<role>/<group>/...`):

- `max` float32 [calls, channels], `sum_squares` float64 [calls, channels], `count` int64 [calls]: exact, over every
  row of every call; a call is one (step, guidance branch) of the schedule.
- `histogram/<key>` int32 [channels, 129] and `top/<key>` int32 [channels]: see `hfq.convert.histogram`; `<key>` is
  `all`, or by timestep bin and/or branch such as `bin0-cond`.
- `inputs/bin<b>` bfloat16 [rows, channels] and `digests/bin<b>` uint8 [rows, 32]: kept input rows, by rising digest.
"""

from __future__ import annotations

import re
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
from .safetensors_file import TORCH_DTYPES, TensorEntry
from .safetensors_writer import TensorPlan
from .schedule import ExpertSchedule

__all__ = ["GroupPlan", "plan_groups"]

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,20}")


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


def plan_groups(
    document: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str
) -> dict[str, dict[str, GroupPlan]]:
    """role -> group -> plan, by holding a statistics file's header against the document. No tensor is read.

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
        if role not in groups or not leaf or not _GROUP_NAME.fullmatch(group):
            raise MalformedFileError("a tensor name that no calibration has", where=where, found=name)
        groups[role].add(group)
    plans = {
        role: {group: _plan(document, tensors, role, group, where) for group in sorted(groups[role])}
        for role in sorted(groups)
    }
    expected = {plan.name for of_role in plans.values() for group in of_role.values() for plan in group.tensors()}
    extra = sorted(set(tensors) - expected)
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
