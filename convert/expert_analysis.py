"""Figures and quantization error of every linear of one expert, of its inputs and of its blocks.

One pass over the weights, in file order, as a conversion makes it: memory is that of the largest weight and of one
input's statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from .activation_figures import ActivationPool
from .architecture import Site
from .calibration import Calibration, GroupStatistics
from .expert import Expert
from .figures import PERCENTILES, ValueCounts, nmse
from .progress import Progress
from .restore import RestoredSite
from .scan import ScannedTensor
from .site_error import block_of, measure_site
from .site_ops import SiteOps
from .weights import check_finite, quantize_activation, quantize_weight

__all__ = ["ExpertAnalysis", "Formats", "SquaredError"]

_ROWS: Final = 256
_NO_INPUTS: Final = "the calibration kept no input rows (hfq calibrate --keep-inputs N)"
_WORST: Final = ("kurtosis", "crest", "channel_ratio")


@dataclass(frozen=True)
class Formats:
    """The quantizers that are measured: `weight` and `activation` tables of a recipe, normalised."""

    weight: Mapping[str, Any]
    activation: Mapping[str, Any]


@dataclass
class SquaredError:
    """Sums of squares: of the differences, and of what they are differences to. Unknown until something is added."""

    error: float = 0.0
    power: float = 0.0
    known: bool = False

    def add(self, error: float | None, power: float | None) -> None:
        """Add one tensor's sums; None adds nothing."""
        if error is not None and power is not None:
            self.error, self.power, self.known = self.error + error, self.power + power, True

    @property
    def nmse(self) -> float | None:
        """Normalised mean squared error, None when nothing is known."""
        return nmse(self.error, self.power) if self.known else None


@dataclass
class _Input:
    """One input group: its figures as stored, and what blocks pool."""

    figures: dict[str, Any]
    pool: ActivationPool
    error: SquaredError


@dataclass
class _Block:
    """What the linears of one block add up to."""

    inputs: set[str] = field(default_factory=set)
    weights: ValueCounts = field(default_factory=ValueCounts)
    weight: SquaredError = field(default_factory=SquaredError)
    output: SquaredError = field(default_factory=SquaredError)
    worst: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_WORST, 0.0))
    sites: int = 0


class ExpertAnalysis:
    """The analysis of one expert; `run` once, then `document`.

    Args:
        expert: of the base.
        calibration: of the same base.
        formats: what to measure.
    """

    def __init__(self, expert: Expert, calibration: Calibration, formats: Formats) -> None:
        self._expert, self._calibration, self._formats = expert, calibration, formats
        self._named = {site.name: site for site in expert.sites}
        self._inputs: dict[str, _Input] = {}
        self._sites: dict[str, dict[str, Any]] = {}
        self._blocks: dict[str, _Block] = {}
        self._statistics: tuple[str, GroupStatistics] | None = None

    def check(self) -> None:
        """Check from names and widths that the calibration is of this model.

        Raises:
            CalibrationBaseError
        """
        for site in self._expert.sites:
            self._calibration.check_group(self._expert.role, site.input_group, site.in_features)

    def run(self, progress: Progress) -> str:
        """Read the expert once and return its bf16 root.

        Raises:
            CalibrationBaseError, WrongRoleError: at the first tensor that is not the one which was calibrated.
            NonFiniteWeightError, and what reading the checkpoint or the calibration raises
        """
        scan = self._expert.scan(progress, hash_files=False)
        for tensor in scan:
            self._calibration.check_tensor(self._expert.role, tensor.name, tensor.bf16_sha256)
            site = self._named.get(tensor.name.removesuffix(".weight"))
            if site is not None and tensor.name.endswith(".weight"):
                self._measure(site, tensor)
            del tensor  # or it stays in memory while the next one is read
        self._statistics = None
        return scan.identity.bf16_root

    def _measure(self, site: Site, tensor: ScannedTensor) -> None:
        where = f"{self._expert.role} {site.name}"
        check_finite(tensor.bf16, where)
        rows = _pooled(self._read(site.input_group))
        quantized = quantize_weight(tensor.bf16, self._formats.weight, where)
        restored = RestoredSite(quantized, SiteOps(activation=self._formats.activation), "")
        sums = measure_site(tensor.bf16, restored, rows)
        counts = ValueCounts()
        counts.add(tensor.bf16)
        weight, output = SquaredError(), SquaredError()
        weight.add(sums["weight_error"], sums["weight_power"])
        output.add(sums["output_error"], sums["output_power"])
        figures = counts.figures().to_json()
        self._sites[site.name] = {
            "block": block_of(site.name),
            "input": site.input_group,
            "shape": [site.out_features, site.in_features],
            "bits_per_weight": sums["bits_per_weight"],
            "weight": {**figures, "nmse": weight.nmse},
            "output_nmse": output.nmse,
        }
        block = self._blocks.setdefault(block_of(site.name), _Block())
        block.inputs.add(site.input_group)
        block.weights.merge(counts)
        block.weight.add(weight.error, weight.power)
        if output.known:
            block.output.add(output.error, output.power)
        for name in _WORST:
            block.worst[name] = _larger(block.worst[name], figures[name])
        block.sites += 1

    def _read(self, group: str) -> GroupStatistics:
        """Statistics of an input; its figures are made the first time."""
        if self._statistics is None or self._statistics[0] != group:
            self._statistics = (group, self._calibration.read(self._expert.role, group))
        statistics = self._statistics[1]
        if group not in self._inputs:
            self._inputs[group] = self._describe(statistics)
        return statistics

    def _describe(self, statistics: GroupStatistics) -> _Input:
        pool, error, rows = ActivationPool(), SquaredError(), _pooled(statistics)
        pool.add(statistics)
        mean: float | None = None
        if rows is not None:
            mean = float(rows.double().mean())
            for begin in range(0, rows.shape[0], _ROWS):
                exact = rows[begin : begin + _ROWS]
                difference = quantize_activation(exact, self._formats.activation).double() - exact.double()
                error.add(float(difference.square_().sum()), float(exact.double().square_().sum()))
        figures = pool.figures(mean, _NO_INPUTS).to_json()
        if not error.known:
            figures["reasons"]["nmse"] = _NO_INPUTS
        counted = {
            "channels": statistics.channels,
            "sampled": pool.sampled,
            "kept_rows": 0 if rows is None else int(rows.shape[0]),
        }
        return _Input({**counted, **figures, "nmse": error.nmse}, pool, error)

    def document(self) -> dict[str, Any]:
        """`inputs`, `sites` and `blocks` of the expert under `hfq.analysis/1`."""
        return {
            "inputs": {group: found.figures for group, found in self._inputs.items()},
            "sites": self._sites,
            "blocks": {name: self._pool(block) for name, block in self._blocks.items()},
        }

    def _pool(self, block: _Block) -> dict[str, Any]:
        pool, error = ActivationPool(), SquaredError()
        worst: dict[str, float | None] = dict.fromkeys(_WORST, 0.0)
        for group in sorted(block.inputs):
            found = self._inputs[group]
            pool.merge(found.pool)
            if found.error.known:
                error.add(found.error.error, found.error.power)
            # Pooled, different scales of the inputs would look like tails of one of them.
            worst = {name: _larger(worst[name], found.figures[name]) for name in _WORST}
        weights = block.weights.figures().to_json()
        pooled = ("max", "rms", *PERCENTILES)
        activations = pool.figures(None, "").to_json()
        return {
            "sites": block.sites,
            "activation": {**{name: activations[name] for name in pooled}, **worst, "nmse": error.nmse},
            "weight": {**{name: weights[name] for name in pooled}, **block.worst, "nmse": block.weight.nmse},
            "output_nmse": block.output.nmse,
        }


def _larger(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else max(left, right)


def _pooled(statistics: GroupStatistics) -> Tensor | None:
    """Kept rows of all timestep bins, BF16 [rows, channels]."""
    if not statistics.inputs:
        return None
    rows = statistics.pooled_inputs()
    return rows if rows.shape[0] else None
