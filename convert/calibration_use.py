"""What a conversion takes from a calibration, found out before any large weight is read.

Every input group that a stage or the report looks at is read once and checked, one after the other; so are the base's
small tensors. What a calibration cannot give ends a dry run and a conversion alike, at their start.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hfq.schema.errors import TooFewRowsError

from .architecture import Site
from .calibration import Calibration
from .checkpoint import Checkpoint
from .few_rows import judge_rows
from .group_statistics import GroupStatistics, different_rows, row_numbers
from .progress import Progress
from .stage_rules import NEEDS_CALIBRATION
from .stages.stage import pooled_rows
from .tensor_bytes import tensor_bytes

__all__ = ["CalibrationUse", "SparseChannels", "use_calibration"]

StagedSite = tuple[str, Site, list[Mapping[str, Any]]]
"""Expert, a quantized site of it, and the stages that it goes through."""

_SMALL_BYTES: Final = 1 << 20


@dataclass
class SparseChannels:
    """Input channels of one site whose samples do not tell the percentile that a stage asks for.

    Attributes:
        floor: channels at the recipe's floor.
        maximum: channels at their exact maximum.
    """

    floor: int = 0
    maximum: int = 0


@dataclass(frozen=True)
class CalibrationUse:
    """What is taken.

    Attributes:
        calibration: None without one.
        needed: whether a stage reads it; else outputs are measured with it and nothing else.
        calibrated: experts of which stages read statistics.
        edges: role -> timestep edges of the expert's bins.
        measured: (role, input group) whose kept rows measure outputs.
        sparse: role -> site -> channels, where there are any.
        rounded: (role, site) that `gptq` leaves to plain rounding because too few rows differ.
        tried: (role, site) where `gptq` is tried on rows left out first.
        warnings: what the report repeats, one line each.
    """

    calibration: Calibration | None = None
    needed: bool = False
    calibrated: frozenset[str] = frozenset()
    edges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    measured: frozenset[tuple[str, str]] = frozenset()
    sparse: Mapping[str, Mapping[str, SparseChannels]] = field(default_factory=dict)
    rounded: frozenset[tuple[str, str]] = frozenset()
    tried: frozenset[tuple[str, str]] = frozenset()
    warnings: Sequence[str] = ()

    def sparse_counts(self) -> dict[str, dict[str, int]]:
        """role -> `linears`, `floor` and `maximum`: linears with sparse channels, and their channels; only experts that
        have any."""
        return {
            role: {
                "linears": len(sites),
                "floor": sum(found.floor for found in sites.values()),
                "maximum": sum(found.maximum for found in sites.values()),
            }
            for role, sites in self.sparse.items()
        }

    def rounded_counts(self) -> dict[str, int]:
        """role -> linears in `rounded`; only experts that have any."""
        return dict(Counter(role for role, _ in sorted(self.rounded)))

    @property
    def roles(self) -> set[str]:
        """Experts that must be those which were calibrated."""
        return {*self.calibrated, *(role for role, _ in self.measured)}


def use_calibration(
    checkpoint: Checkpoint, calibration: Calibration, staged: Iterable[StagedSite], progress: Progress
) -> CalibrationUse:
    """Read and check what the sites of a recipe need.

    Args:
        staged: the quantized sites.

    Raises:
        CalibrationBaseError, WrongRoleError, DigestMismatchError, MalformedFileError, TooFewRowsError,
        CalibrationRangeError
    """
    sites = list(staged)
    groups: dict[tuple[str, str], list[StagedSite]] = {}
    for role, site, stages in sites:
        needs = any(stage["kind"] in NEEDS_CALIBRATION for stage in stages)
        if needs or role in calibration.roles:
            calibration.check_group(role, site.input_group, site.in_features)
        if needs or _keeps_rows(calibration, role, site.input_group):
            groups.setdefault((role, site.input_group), []).append((role, site, stages))
    calibration.verify_bytes()
    _check_base(checkpoint, calibration, groups)
    findings = _Findings(calibration)
    progress.start("reading the calibration", len(groups), "inputs")
    for (role, group), members in groups.items():
        statistics = calibration.read(role, group)
        for _, site, stages in members:
            findings.see(role, site, stages, statistics)
        del statistics  # or it stays in memory while the next one is read
        progress.advance()
    progress.finish()
    calibrated = frozenset(
        role for role, _, stages in sites if any(stage["kind"] in NEEDS_CALIBRATION for stage in stages)
    )
    edges = {}
    for role in calibrated:
        early, late = calibration.document["schedule"][role]["edges"]
        edges[role] = (float(early), float(late))
    return CalibrationUse(
        calibration,
        needed=bool(calibrated),
        calibrated=calibrated,
        edges=edges,
        measured=frozenset(key for key in groups if _keeps_rows(calibration, *key)),
        sparse=findings.sparse,
        rounded=frozenset(findings.rounded),
        tried=frozenset(findings.tried),
        warnings=list(findings.warnings()),
    )


def _keeps_rows(calibration: Calibration, role: str, group: str) -> bool:
    return group in calibration.groups(role) and any(calibration.plan(role, group).rows.values())


def _check_base(
    checkpoint: Checkpoint, calibration: Calibration, groups: dict[tuple[str, str], list[StagedSite]]
) -> None:
    """Hold the base's small tensors, and of each expert one linear, against those that were calibrated: another model,
    or exchanged experts, show there already.

    Raises:
        CalibrationBaseError, WrongRoleError
    """
    first = {role: members[0][1].name for (role, _), members in reversed(groups.items())}
    for role, site in first.items():
        expert = checkpoint.experts[role]
        if expert.known_root == calibration.document["base"]["experts"][role]["bf16_root"]:
            continue
        for name in expert.names:
            if name == f"{site}.weight" or expert.info(name).size_bytes <= _SMALL_BYTES:
                digest = hashlib.sha256(tensor_bytes(expert.read_bf16(name))).hexdigest()
                calibration.check_tensor(role, name, digest)


class _Findings:
    """What the statistics say about the stages of each site."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self.sparse: dict[str, dict[str, SparseChannels]] = {}
        self.rounded: list[tuple[str, str]] = []
        self.tried: list[tuple[str, str]] = []
        self._few: dict[str, list[tuple[float, str]]] = {}
        self._different: tuple[GroupStatistics, dict[int, int]] | None = None

    def see(self, role: str, site: Site, stages: Sequence[Mapping[str, Any]], statistics: GroupStatistics) -> None:
        """One site, with the statistics of its input.

        Raises:
            TooFewRowsError, CalibrationRangeError
        """
        for stage in stages:
            if stage["kind"] == "smooth" and stage["statistic"] == "percentile":
                found = statistics.channel_percentile(
                    float(stage["percentile"]), float(stage["activation_floor"]), f"{role} {site.name}"
                )
                channels = SparseChannels(int(found.floored.sum()), int(found.maxed.sum()))
                if channels.floor or channels.maximum:
                    self.sparse.setdefault(role, {})[site.name] = channels
            elif stage["kind"] == "clip" and not statistics.kept_rows:
                raise TooFewRowsError(
                    "the calibration kept too few input rows for clip",
                    where=f"{self._calibration.path}: {role} {site.input_group}",
                    expected="at least 1",
                    found=0,
                    todo="calibrate with --keep-inputs 1024 (rows per timestep bin) and more prompts",
                )
            elif stage["kind"] == "gptq":
                self._judge(role, site, stage, statistics)

    def _judge(self, role: str, site: Site, stage: Mapping[str, Any], statistics: GroupStatistics) -> None:
        different = self._count(statistics, int(stage["tokens"]))
        group = f"{self._calibration.path}: {role} {site.input_group}"
        where = f"{role} {site.name}"
        judged = judge_rows(different, statistics.kept_rows, site.in_features, stage, where, group)
        if judged == "round":
            self.rounded.append((role, site.name))
        elif judged == "try":
            self.tried.append((role, site.name))
        if different < site.in_features:
            text = f"{site.name}: {different} different rows, {site.in_features}"
            self._few.setdefault(role, []).append((different / site.in_features, text))

    def _count(self, statistics: GroupStatistics, tokens: int) -> int:
        """Different rows, counted once for the sites that share an input."""
        if self._different is None or self._different[0] is not statistics:
            self._different = (statistics, {})
        known = self._different[1]
        if tokens not in known:
            known[tokens] = different_rows(row_numbers(pooled_rows(statistics, tokens)))
        return known[tokens]

    def warnings(self) -> Iterator[str]:
        """One line per expert where gptq has few rows."""
        for role, few in self._few.items():
            rounded = sum(found == role for found, _ in self.rounded)
            tried = sum(found == role for found, _ in self.tried)
            yield (
                f"{role}: gptq has fewer different input rows than channels in {len(few)} linears ({min(few)[1]} "
                f"channels); {rounded} linears are rounded plainly, {tried} where that does better on rows left out; "
                "keep more (--keep-inputs), or calibrate more prompts where a prompt has no more, as for cross_attn.k "
                "and v"
            )
