"""Verifying an exported graph level by level: what it is, what it holds, what it computes.

file                 made from this delta, this base, this expert, and wired as an export wires it
ops                  the file's own function bodies, bit for bit, on adversarial numbers
payload              every weight and attribute; packed weights decoded by the file's own bodies
in_situ              every op inside the running graph against torch on the runtime's own inputs: all bits
linear               every linear on the runtime's own input: product in float64, whole linear in torch
block, model         between the linears, with these forced to be equal; and a free run against torch, next to
                     controls and to the error of quantization
reference_evaluator  a second runtime, small graphs only
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.kept_calls import ModelCall
from hfq.convert.progress import Progress, Silent
from hfq.schema.documents import validate
from hfq.schema.errors import GraphNumericsError, GraphOriginError, GraphPayloadError, HfqError, UsageError
from hfq.schema.version import VERSION

from .domain import DOMAIN
from .inputs import verification_inputs
from .levels import Level
from .onnx_file import OnnxFile, open_onnx
from .op_level import OpClassResult, check_functions
from .origin import Origin, read_origin
from .origin_level import check_origin
from .output_level import References, output_level
from .payload_level import check_payload
from .reference_level import reference_level
from .running import PROVIDER, RunningGraph
from .site_nodes import SiteNodes
from .site_runs import Flips, check_sites

__all__ = ["LEVELS", "OnnxVerification", "onnx_report", "verify_onnx"]

LEVELS: Final = ("file", "ops", "payload", "in_situ", "linear", "block", "model", "reference_evaluator")
_ERRORS: Final[dict[str, type[HfqError]]] = {"file": GraphOriginError, "payload": GraphPayloadError}
_STOPPED: Final = "not carried out: the level `file` failed"


@dataclass
class OnnxVerification:
    """The result of `verify_onnx`.

    Attributes:
        path: of the graph.
        delta_id: 64 hex digits.
        origin: what the graph says of itself.
        levels: by name, in the order of `LEVELS`.
        facts: versions, execution provider, threads, opset, IR version, where inputs come from.
    """

    path: Path
    delta_id: str
    origin: Origin
    levels: dict[str, Level] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no level failed."""
        return all(level.verdict != "failed" for level in self.levels.values())

    @property
    def inconclusive(self) -> list[str]:
        """Levels that say nothing either way."""
        return [name for name, level in self.levels.items() if level.verdict == "inconclusive"]

    def first_error(self) -> HfqError | None:
        """The error of the first failure, or None; it names the graph and the node."""
        for name, level in self.levels.items():
            for failure in level.failures:
                return _ERRORS.get(name, GraphNumericsError)(
                    failure.what,
                    where=f"{self.path.name}: {failure.where}",
                    expected=failure.expected,
                    found=failure.found,
                    todo="export it again from this delta: hfq export onnx",
                )
        return None

    def raise_first(self) -> None:
        """Raise the first failure's error, if there is one.

        Raises:
            GraphOriginError, GraphPayloadError, GraphNumericsError
        """
        error = self.first_error()
        if error is not None:
            raise error

    def to_json(self) -> dict[str, Any]:
        """An entry of `graphs` in a document `hfq.onnx-report/1`."""
        return {
            "file": self.path.name,
            "ok": self.ok,
            "expert": self.origin.role,
            "scope": str(self.origin.scope),
            "bin": self.origin.bin,
            **self.facts,
            "levels": {name: level.to_json() for name, level in self.levels.items()},
        }


def onnx_report(delta: Delta, verified: Sequence[OnnxVerification]) -> dict[str, Any]:
    """The document `hfq.onnx-report/1` of graphs of one delta, checked against its schema.

    Raises:
        SchemaViolationError
    """
    document = {
        "schema": "hfq.onnx-report/1",
        "delta": delta.id,
        "ok": all(entry.ok for entry in verified),
        "graphs": [entry.to_json() for entry in verified],
    }
    return validate(document, "onnx-report", "onnx report")


def verify_onnx(
    delta: Delta,
    base: Checkpoint,
    path: str | os.PathLike[str],
    *,
    role: str | None = None,
    calls: Sequence[ModelCall] | Mapping[str, Sequence[ModelCall]] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> OnnxVerification:
    """Verify one graph; nothing is written.

    When the first level fails the others are not carried out: the graph is not run.

    Args:
        base: the delta's base; a wrong one is found on the way.
        role: the expert that the graph should be of; None for the one it names.
        calls: of that expert, or expert -> its calls; real inputs for a block or a model. Without them inputs are
            made up.
        threads: of ONNX Runtime within an op; torch's number when None.

    Raises:
        MissingPathError, UnreadableFileError, MalformedFileError and subclasses: no such file, or no graph; see
            `open_onnx` and `read_origin`.
        WrongBaseError, WrongRoleError, DigestMismatchError: the base is not the delta's.
        UsageError: threads that are no number of threads.
        GraphRunError: ONNX Runtime does not load or run it.
    """
    if threads is not None and threads < 1:
        raise UsageError("not a number of threads", expected="1 or more", found=threads)
    file = open_onnx(path)
    origin = read_origin(file)
    result = OnnxVerification(file.path, delta.id, origin)
    run = _Run(file, origin, delta, base, threads or torch.get_num_threads(), progress or Silent(), result)
    run.all(role, calls.get(origin.role) if isinstance(calls, Mapping) else calls)
    return result


@dataclass
class _Run:
    """One verification as it goes from level to level."""

    file: OnnxFile
    origin: Origin
    delta: Delta
    base: Checkpoint
    threads: int
    progress: Progress
    result: OnnxVerification

    def all(self, role: str | None, calls: Sequence[ModelCall] | None) -> None:
        sites: dict[str, SiteNodes] = {}
        self.result.facts = self._facts("none")

        def check_file() -> list[Level]:
            level, found = check_origin(self.file, self.origin, self.delta, self.base, role)
            sites.update(found)
            return [level]

        self._time(check_file)
        if self.result.levels["file"].failures:
            for name in LEVELS[1:]:
                self.result.levels[name] = Level.skipped(name, _STOPPED)
            return
        self._time(lambda: [self._ops()])
        self._time(lambda: [self._payload(sites)])
        inputs, source = verification_inputs(self.origin, self.base, calls)
        self.result.facts = self._facts(source)
        weights = self._quantized_weights()
        graph = RunningGraph(self.file, weights, self.threads)
        self.progress.note("running torch, with controls")
        references = References(obstacle="") if self.origin.scope.kind == "site" else self._references(inputs)
        flips = Flips(references.quantized_inputs)
        self._time(lambda: list(self._sites(sites, graph, inputs, flips)))
        self._time(lambda: [output_level("block", self.origin, graph, inputs, references, flips, sites)])
        self._time(lambda: [output_level("model", self.origin, graph, inputs, references, flips, sites)])
        self._time(lambda: [reference_level(self.file, self.origin, weights, graph, inputs, references)])

    def _time(self, work: Callable[[], list[Level]]) -> None:
        """Levels that are measured together share their time evenly."""
        started = time.perf_counter()
        levels = work()
        for level in levels:
            level.seconds = (time.perf_counter() - started) / len(levels)
            self.result.levels[level.name] = level

    def _ops(self) -> Level:
        nodes = [node for node in self.file.model.graph.node if node.domain == DOMAIN]
        if not nodes:
            why = "the bodies are written out" if self._quantized_weights() else "nothing in it is quantized"
            return Level.skipped("ops", f"the graph has no op of the domain {DOMAIN}: {why}")
        self.progress.note("running the file's own function bodies")
        results = check_functions(
            list(self.file.model.functions), nodes, self.file.opset, self.file.ir_version, threads=self.threads
        )
        level = Level("ops")
        level.figures["classes"] = [_op_class(entry) for entry in results]
        level.figures["elements"] = sum(entry.elements for entry in results)
        level.figures["mismatches"] = sum(entry.mismatches for entry in results)
        for entry in results:
            if entry.mismatches:
                where = next(node.name for node in nodes if node.op_type == entry.op)
                found = f"{entry.mismatches} of {entry.elements}: {entry.first}"
                level.fail(where, f"the body of {entry.op} is wrong on {entry.elements_class}", "equal bits", found)
        return level

    def _payload(self, sites: dict[str, SiteNodes]) -> Level:
        return check_payload(self.file, self.origin, sites, self.delta, self.base, self.threads, self.progress)

    def _references(self, inputs: list[dict[str, torch.Tensor]]) -> References:
        return References.of(self.delta, self.base, self.origin, inputs)

    def _sites(
        self, sites: dict[str, SiteNodes], graph: RunningGraph, inputs: list[dict[str, torch.Tensor]], flips: Flips
    ) -> tuple[Level, Level]:
        if not sites:
            reason = "nothing in this part of the model is quantized"
            return Level.skipped("in_situ", reason), Level.skipped("linear", reason)
        return check_sites(self.file, self.origin, sites, self.delta, self.base, graph, inputs, flips, self.progress)

    def _quantized_weights(self) -> int:
        quantized = set(self.delta.quantized(self.origin.role))
        sites = self.base.experts[self.origin.role].architecture.sites()
        return sum(
            site.in_features * site.out_features
            for site in sites
            if site.name in quantized and self.origin.scope.holds(site.name)
        )

    def _facts(self, inputs: str) -> dict[str, Any]:
        import onnx
        import onnxruntime as ort

        return {
            "opset": self.file.opset,
            "ir_version": self.file.ir_version,
            "provider": PROVIDER,
            "threads": self.threads,
            "inputs": inputs,
            "exported_by": self.origin.version[:40],
            "versions": {
                "hfq": VERSION,
                "onnx": onnx.__version__,
                "onnxruntime": ort.__version__,
                "torch": torch.__version__,
            },
        }


def _op_class(entry: OpClassResult) -> dict[str, Any]:
    return {
        "op": entry.op,
        "attributes": dict(entry.attributes),
        "class": entry.elements_class,
        "elements": entry.elements,
        "mismatches": entry.mismatches,
        "first": entry.first,
    }
