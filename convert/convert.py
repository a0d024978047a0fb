"""Conversion: one pass over the base, site by site, into a delta.

Every tensor is read once; its digests, its rounding to BF16 and, for quantized sites, stages, quantization and error
are done while it is in memory, several tensors at a time. Peak memory is a small multiple of the largest weight,
whatever the number of blocks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hfq.schema.atomic import write_file
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.documents import validate
from hfq.schema.errors import HfqError, ResumeMismatchError, UnreadableFileError

from .analyze import Analysis
from .architecture import Site
from .calibration import Calibration, GroupStatistics
from .checkpoint import Checkpoint
from .clip_choice import choose_headrooms, error_at
from .conversion_plan import SAMPLES_HELD, STATISTICS_HELD, Plan, journal_inputs, plan_conversion
from .delta import DOCUMENT, PROVENANCE, REPORT, STATE, Delta, load_delta, state_name
from .finished_delta import finished_delta
from .finite import NonFinite, non_finite_line
from .identity import FileWitness, Identity, same_weights
from .journal import CONVERSION, Journal
from .plain_site import PlainSite
from .progress import Progress, Silent
from .prompts import Prompt
from .provenance import provenance_document
from .recipe import Recipe
from .routing import stages_for
from .row_works import PlainRows
from .safetensors_writer import SafetensorsWriter, TensorPlan
from .scan import RowWork, ScannedTensor
from .site_conversion import ConvertedSite, convert_site, plain_site
from .site_error import OUTPUT_ROWS, report_document, zero_lines
from .site_output import RowOutputs
from .stage_rules import NEEDS_CALIBRATION
from .weight_counts import count_bits
from .weights import NUMERICS, check_finite
from .work_folder import WorkFolder, check_output

__all__ = ["Conversion", "WitnessOptions", "quantize"]

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int32": torch.int32, "uint8": torch.uint8}


def quantize(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    hash_files: bool = True,
    trust_witness: bool = False,
    progress: Progress | None = None,
    analysis: str | os.PathLike[str] | Analysis | None = None,
    evaluation_prompts: Sequence[Prompt] | None = None,
) -> Delta:
    """Convert a base into a delta.

    Args:
        checkpoint: from `open_checkpoint`.
        recipe: preset name, file, document or Recipe.
        calibration: folder or Calibration. When the recipe needs none, its kept input rows measure the linears'
            outputs for the report, and nothing else.
        out: folder to make. Unfinished work is in `OUT.partial`.
        resume: go on in `OUT.partial`; an output that is complete, of the same base and inputs, is returned.
        hash_files: also hash the checkpoint's files (witnesses in `provenance.json`).
        trust_witness: do not hash files again that this machine has hashed before and that have not changed since
            (size, times, inode); `provenance.json` says which.
        analysis: file, folder or Analysis of the same base, for rules that select blocks by a score; ignored with a
            note when the recipe has none.
        evaluation_prompts: prompts that the result will be judged by; those that the calibration or the analysis has
            are noted and recorded in `provenance.json`.

    Raises:
        OutputExistsError, ResumeMismatchError, RecipeError, MissingAnalysisError, AnalysisBaseError, WrongRoleError,
        MissingCalibrationError, CalibrationBaseError,
        CalibrationRangeError, NonFiniteWeightError, and what reading the checkpoint raises. After any of them nothing
        is left that this call made, except after an interruption, a full disk or a base that cannot be read: then
        `resume` goes on.
    """
    shown = progress or Silent()
    destination = Path(out)
    check_output(destination, CONVERSION, resume=resume)
    plan = plan_conversion(
        checkpoint, recipe, calibration, shown, analysis=analysis, evaluation_prompts=evaluation_prompts
    )
    inputs = journal_inputs(checkpoint, plan)
    if resume and destination.exists():
        return finished_delta(destination, checkpoint, inputs, shown)
    folder = WorkFolder(destination, CONVERSION, inputs, resume=resume)
    with contextlib.closing(folder):
        try:
            witness = WitnessOptions(hash_files, trust_witness)
            Conversion(checkpoint, plan, Journal(folder), shown, witness).run()
        except BaseException as error:
            # Bad input does not get better by resuming; an interruption, a full disk or a lost network share does.
            if not isinstance(error, HfqError) or isinstance(error, UnreadableFileError):
                shown.note(f"unfinished work is in {folder.partial}; the same command with --resume goes on there")
            elif folder.is_new:
                folder.discard()
            raise
        folder.publish()
    return load_delta(destination)


@dataclass(frozen=True)
class WitnessOptions:
    """Whether files are hashed, and whether a hash of before is believed."""

    hash_files: bool
    trust: bool


class Conversion:
    """One run of `quantize` into an open journal. Sites are converted side by side, on all threads."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, journal: Journal, progress: Progress, witness: WitnessOptions
    ) -> None:
        self._checkpoint, self._plan, self._journal, self._progress = checkpoint, plan, journal, progress
        self._witness = witness
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._statistics: dict[tuple[str, str], GroupStatistics] = {}
        self._samples: dict[tuple[str, str], Tensor] = {}

    def run(self) -> None:
        """Read the base, do what is not done yet, and write the delta's four files into the folder of the result."""
        started = time.perf_counter()
        identities: dict[str, Identity] = {}
        witnesses: dict[str, tuple[FileWitness, ...]] = {}
        non_finite: dict[str, Mapping[str, NonFinite]] = {}
        for role, expert in self._checkpoint.experts.items():
            scan = expert.scan(self._progress, hash_files=self._witness.hash_files, trust_witness=self._witness.trust)
            costs = self._plan.working_bytes(role)
            scan.each(
                functools.partial(self._see, role),
                begin=functools.partial(self._begin, role),
                cost=lambda name, costs=costs: costs.get(name, 0),  # type: ignore[misc]
                memory_bytes=self._plan.memory_bytes,
            )
            identities[role], witnesses[role], non_finite[role] = scan.identity, scan.witnesses, scan.non_finite
            self._plan.check_root(role, scan.identity.bf16_root)
        result = self._journal.folder.result
        state = self._write_state(result / STATE)
        headrooms = self._choose_headrooms()
        document = self._document(identities, state, headrooms)
        validate(document, "ptq-state", DOCUMENT)
        warnings = [*self._plan.warnings, *same_weights(identity.bf16_root for identity in identities.values())]
        for warning in warnings[len(self._plan.warnings) :]:
            self._progress.note(f"warning: {warning}")
        errors: dict[str, dict[str, Any]] = {role: {} for role in self._plan.routes}
        for role, site in self._quantized():
            errors[role][site] = self._error(role, site, headrooms)
        warnings += [non_finite_line(role, found) for role, found in non_finite.items() if found]
        zero = zero_lines(errors)
        for line in zero:
            self._progress.note(f"warning: {line}")
        warnings += zero
        report = validate(
            report_document(document["id"], errors, warnings, self._plan.use, count_bits(document)), "report", REPORT
        )
        provenance = provenance_document(
            document["id"],
            self._checkpoint,
            identities,
            witnesses,
            non_finite,
            seconds=time.perf_counter() - started,
            resumed=not self._journal.folder.is_new,
            evaluation=self._plan.evaluation,
        )
        validate(provenance, "provenance", PROVENANCE)
        for name, content in ((REPORT, report), (PROVENANCE, provenance), (DOCUMENT, document)):
            write_file(result / name, canonical_json(content) + b"\n")

    def _begin(self, role: str, name: str, shape: tuple[int, ...]) -> RowWork[None] | None:
        """How a tensor is handled a few rows at a time, where that is possible."""
        if self._plan.needs_whole(role, name):
            return None
        if not self._plan.is_quantized(role, name):
            return PlainRows(None, functools.partial(self._end_kept, role))
        site = name.removesuffix(".weight")
        is_done = self._journal.get(role, site) is not None
        plain = None
        if not is_done:
            sample = self._sample(role, self._plan.sites[role][site])
            output = None if sample is None else RowOutputs(sample, self._plan.recipe.activation)
            plain = PlainSite(shape, self._plan.recipe.weight, f"{role} {site}", measured=True, output=output)
        return PlainRows(plain, functools.partial(self._end_plain, role))

    def _see(self, role: str, tensor: ScannedTensor) -> None:
        """Handle one whole tensor, on any thread."""
        if not self._plan.is_quantized(role, tensor.name):
            self._check_tensor(role, tensor)
        elif self._is_new(role, tensor):
            self._convert(role, self._plan.sites[role][tensor.name.removesuffix(".weight")], tensor)

    def _end_kept(self, role: str, _: None, tensor: ScannedTensor) -> None:
        self._check_tensor(role, tensor)

    def _end_plain(self, role: str, plain: PlainSite | None, tensor: ScannedTensor) -> None:
        if self._is_new(role, tensor):
            assert plain is not None
            found = plain_site(plain, self._plan.recipe.activation, math.prod(tensor.shape))
            self._keep(role, tensor.name.removesuffix(".weight"), tensor, found)

    def _check_tensor(self, role: str, tensor: ScannedTensor) -> None:
        """Raises CalibrationBaseError: a calibration that is used has seen another tensor."""
        if self._plan.use.calibration is not None and role in self._plan.use.roles:
            self._plan.use.calibration.check_tensor(role, tensor.name, tensor.bf16_sha256)

    def _is_new(self, role: str, tensor: ScannedTensor) -> bool:
        """Whether a site is not done yet.

        Raises:
            CalibrationBaseError
            ResumeMismatchError: it was done from another weight.
        """
        self._check_tensor(role, tensor)
        done = self._journal.get(role, tensor.name.removesuffix(".weight"))
        if done is not None and done["weight"] != tensor.bf16_sha256:
            raise ResumeMismatchError(
                "the unfinished conversion was started with another base",
                where=f"{self._journal.folder.partial}: {role} {tensor.name}",
                expected=f"{done['weight'][:12]}…",
                found=f"{tensor.bf16_sha256[:12]}…",
                todo="use the same base, or remove the folder and start again",
            )
        return done is None

    def _convert(self, role: str, site: Site, tensor: ScannedTensor) -> None:
        where = f"{role} {site.name}"
        stages = stages_for(self._plan.recipe, role, site.name)
        if stages:
            check_finite(tensor.bf16, where)  # plain rounding finds out by itself
        needed = any(stage["kind"] in NEEDS_CALIBRATION for stage in stages)
        statistics = self._read_statistics(role, site) if needed else None
        found = convert_site(
            site,
            tensor.bf16,
            self._plan.recipe,
            stages,
            statistics,
            self._sample(role, site),
            self._plan.use.edges.get(role),
            where,
        )
        self._keep(role, site.name, tensor, found)

    def _keep(self, role: str, site: str, tensor: ScannedTensor, found: ConvertedSite) -> None:
        """Write a finished site into the journal; on any thread."""
        entry = {
            "role": role,
            "site": site,
            "weight": tensor.bf16_sha256,
            "digest": found.digest,
            "ops": found.ops,
            "error": found.error,
            "search": found.search,
            "rounded": found.rounded,
            "state": {
                name: [str(value.dtype).removeprefix("torch."), list(value.shape)]
                for name, value in found.state.items()
            },
        }
        with self._writing:
            self._journal.add(entry, found.state)

    def _read_statistics(self, role: str, site: Site) -> GroupStatistics:
        assert self._plan.calibration is not None
        key = (role, site.input_group)
        with self._reading:
            if key not in self._statistics:
                while len(self._statistics) >= STATISTICS_HELD:
                    del self._statistics[next(iter(self._statistics))]
                self._statistics[key] = self._plan.calibration.read(*key)
            return self._statistics[key]

    def _sample(self, role: str, site: Site) -> Tensor | None:
        """Kept rows of the site's input that measure its output, BF16 [rows, in_features]."""
        key, calibration = (role, site.input_group), self._plan.use.calibration
        if calibration is None or key not in self._plan.use.measured:
            return None
        with self._reading:
            if key not in self._samples:
                while len(self._samples) >= SAMPLES_HELD:
                    del self._samples[next(iter(self._samples))]
                self._samples[key] = calibration.sample_inputs(*key, OUTPUT_ROWS)
            return self._samples[key]

    def _quantized(self) -> Iterator[tuple[str, str]]:
        for role, routes in self._plan.routes.items():
            yield from ((role, site) for site, route in routes.items() if route.to == "quantize")

    def _done(self, role: str, site: str) -> dict[str, Any]:
        entry = self._journal.get(role, site)
        assert entry is not None
        return entry

    def _choose_headrooms(self) -> dict[tuple[str, str], list[float]]:
        """(role, site) -> headroom per timestep bin, for sites with a clip."""
        searches: dict[str, dict[str, Any]] = {}
        scopes: dict[str, str] = {}
        for role, site in self._quantized():
            search = self._done(role, site)["search"]
            if search is not None:
                stages = stages_for(self._plan.recipe, role, site)
                scope = next(stage["scope"] for stage in stages if stage["kind"] == "clip")
                # One choice for both experts is a choice among the experts whose stage says so.
                name = site if scope == "global" else f"{role} {site}"
                searches.setdefault(name, {})[role] = search
                scopes[name] = scope
        return {
            (role, name.rpartition(" ")[2]): headroom
            for name, found in searches.items()
            for role, headroom in choose_headrooms(found, scopes[name]).items()
        }

    def _error(self, role: str, site: str, headrooms: Mapping[tuple[str, str], list[float]]) -> dict[str, Any]:
        done = self._done(role, site)
        if done["search"] is None:
            return dict(done["error"])
        error, power = error_at(done["search"], headrooms[role, site])
        return {**done["error"], "output_error": error, "output_power": power}

    def _write_state(self, path: Path) -> dict[str, Any]:
        """Join the sites' tensors into the state file, sorted by name; returns the document's `state`."""
        plans = []
        owners: dict[str, tuple[str, str, str]] = {}
        for role, site in self._quantized():
            for local, (dtype, shape) in self._done(role, site)["state"].items():
                name = state_name(role, site, local)
                plans.append(TensorPlan(name, _DTYPES[dtype], tuple(shape)))
                owners[name] = (role, site, local)
        plans.sort(key=lambda plan: (-plan.dtype.itemsize, plan.name))
        with SafetensorsWriter(path, plans) as writer:
            for plan in plans:
                role, site, local = owners[plan.name]
                with self._journal.state(role, site) as file:
                    writer.write(plan.name, file.read(local))
        return {"sha256": writer.sha256, "size_bytes": writer.size_bytes, "tensors": len(plans)}

    def _document(
        self,
        identities: Mapping[str, Identity],
        state: Mapping[str, Any],
        headrooms: Mapping[tuple[str, str], list[float]],
    ) -> dict[str, Any]:
        recipe, calibration = self._plan.recipe, self._plan.calibration
        sites: dict[str, dict[str, Any]] = {}
        for role, routes in self._plan.routes.items():
            sites[role] = {}
            for site, route in routes.items():
                found: dict[str, Any] = {"route": route.to, "rule": route.rule, "reason": route.reason}
                if route.to == "quantize":
                    done = self._done(role, site)
                    ops = [
                        {**op, "headroom": headrooms[role, site]} if op["op"] == "clip" else op for op in done["ops"]
                    ]
                    found |= {"weight": dict(recipe.weight), "ops": ops, "digest": done["digest"]}
                    if done.get("rounded") is not None:
                        found["rounded"] = done["rounded"]
                sites[role][site] = found
        document: dict[str, Any] = {
            "schema": "hfq.ptq-state/1",
            "numerics": NUMERICS,
            "base": {
                "model_type": self._checkpoint.architecture.model_type,
                "experts": {
                    role: {
                        "bf16_root": identity.bf16_root,
                        "tensors": {
                            name: {"shape": list(entry.shape), "bf16": entry.bf16}
                            for name, entry in identity.tensors.items()
                        },
                    }
                    for role, identity in identities.items()
                },
            },
            "recipe": dict(recipe.document),
            "calibration": None
            if calibration is None
            else {"id": calibration.id, "prompts": calibration.prompt_hashes},
            "selection": self._plan.selection.document,
            "state": dict(state),
            "sites": sites,
        }
        document["id"] = content_id(document)
        return document
