"""Conversion: one pass over the base, site by site, into a delta.

Every tensor is read once; its digests, its rounding to BF16 and, for quantized sites, stages, quantization and error
are done while it is in memory. Peak memory is a small multiple of the largest weight, whatever the number of blocks.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.documents import validate
from hfq.schema.errors import HfqError, MissingCalibrationError, ResumeMismatchError, UnreadableFileError
from hfq.schema.version import VERSION

from .architecture import Site
from .atomic import publish_folder, refuse_existing, write_file
from .calibration import Calibration, GroupStatistics, load_calibration
from .checkpoint import Checkpoint
from .delta import DOCUMENT, PROVENANCE, REPORT, STATE, Delta, load_delta, state_name
from .delta_inspect import routing_table
from .identity import FileWitness, Identity
from .journal import Journal
from .ops import read_ops
from .progress import Progress, Silent
from .provenance import provenance_document
from .recipe import Recipe, load_recipe, preset_names
from .restore import RestoredSite, transform_weight
from .routing import Route, route_sites, stages_for
from .safetensors_writer import SafetensorsWriter, TensorPlan
from .scan import ScannedTensor
from .site_error import measure_site, report_document
from .stages import STAGES, StageInput
from .weights import NUMERICS, check_finite, quantize_weight, site_digest

__all__ = ["Conversion", "dry_run", "quantize"]

_SITE_BYTES: Final = 700
_TENSOR_BYTES: Final = 160
_RUNTIME_BYTES: Final = 450_000_000

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int32": torch.int32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Plan:
    """What will be done, known before any weight is read.

    Attributes:
        recipe: normalised.
        routes: role -> site -> route.
        sites: role -> site name -> Site.
        calibration: None when the recipe needs none.
        calibrated: experts whose statistics are used.
    """

    recipe: Recipe
    routes: dict[str, dict[str, Route]]
    sites: dict[str, dict[str, Site]]
    calibration: Calibration | None
    calibrated: frozenset[str]


def plan_conversion(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None,
    progress: Progress,
) -> Plan:
    """Check everything that can be checked without reading weights.

    Raises:
        RecipeError and subclasses, MissingCalibrationError, CalibrationBaseError, DigestMismatchError
    """
    loaded = load_recipe(recipe)
    sites = {role: {site.name: site for site in expert.sites} for role, expert in checkpoint.experts.items()}
    routes = route_sites(loaded, {role: list(named) for role, named in sites.items()})
    for role, expert_routes in routes.items():
        for name, route in expert_routes.items():
            if route.to == "quantize":
                stages_for(loaded, role, name)
    if loaded.name in preset_names() and loaded.digest != load_recipe(loaded.name).digest:
        progress.note(f"the recipe is named {loaded.name} like a preset and is another: give it a name of its own")
    opened, calibrated = None, set[str]()
    if loaded.needs_calibration:
        if calibration is None:
            raise MissingCalibrationError(
                f"the recipe {loaded.name} needs activation statistics",
                todo="calibrate once: hfq calibrate MODEL --prompts FILE -o CAL, then --calibration CAL",
            )
        opened = calibration if isinstance(calibration, Calibration) else load_calibration(calibration)
        opened.verify_bytes()
        for role, named in sites.items():
            for site in named.values():
                if routes[role][site.name].to == "quantize" and stages_for(loaded, role, site.name):
                    opened.check_group(role, site.input_group, site.in_features)
                    calibrated.add(role)
    elif calibration is not None:
        progress.note(f"the recipe {loaded.name} needs no calibration; the given one is ignored")
    return Plan(loaded, routes, sites, opened, frozenset(calibrated))


def quantize(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None = None,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    hash_files: bool = True,
    progress: Progress | None = None,
) -> Delta:
    """Convert a base into a delta.

    Args:
        checkpoint: from `open_checkpoint`.
        recipe: preset name, file, document or Recipe.
        calibration: folder or Calibration; ignored with a note when the recipe needs none.
        out: folder to make. Unfinished work is in `OUT.partial`.
        resume: go on in `OUT.partial`.
        hash_files: also hash the checkpoint's files (witnesses in `provenance.json`).

    Raises:
        OutputExistsError, ResumeMismatchError, RecipeError, MissingCalibrationError, CalibrationBaseError,
        CalibrationRangeError, NonFiniteWeightError, and what reading the checkpoint raises. After any of them nothing
        is left that this call made, except after an interruption, a full disk or a base that cannot be read: then
        `resume` goes on.
    """
    shown = progress or Silent()
    destination = Path(out)
    partial = refuse_existing(destination, resume=resume)
    plan = plan_conversion(checkpoint, recipe, calibration, shown)
    journal = Journal(partial, _inputs(checkpoint, plan))
    try:
        Conversion(checkpoint, plan, journal, shown, hash_files=hash_files).run()
    except BaseException as error:
        # Bad input does not get better by resuming; an interruption, a full disk or a lost network share does.
        if not isinstance(error, HfqError) or isinstance(error, UnreadableFileError):
            shown.note(f"unfinished work is in {partial}; the same command with --resume goes on there")
        elif journal.is_new:
            journal.discard()
        raise
    finally:
        journal.close()
    publish_folder(partial, destination)
    return load_delta(destination)


def dry_run(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `quantize` would do, without reading a weight: recipe, routing, predicted delta size and peak memory.

    Raises:
        what `plan_conversion` raises
    """
    plan = plan_conversion(checkpoint, recipe, calibration, progress or Silent())
    state = elements = documents = 0
    for role, routes in plan.routes.items():
        for site, route in routes.items():
            documents += _SITE_BYTES
            if route.to == "quantize":
                stages = stages_for(plan.recipe, role, site)
                state += sum(4 * plan.sites[role][site].in_features for stage in stages if stage["kind"] == "smooth")
    base = 0
    for expert in checkpoint.experts.values():
        for name in expert.names:
            count = math.prod(expert.info(name).shape)
            base, elements = base + 2 * count, max(elements, count)
            documents += _TENSOR_BYTES
    return {
        "recipe": plan.recipe.name,
        "routing": routing_table(plan.routes),
        "delta_bytes": state + documents,
        "base_bytes": base,
        # Copies of the largest weight in several forms; `make check-large` measured at most 1.7 GB at 14B widths.
        "peak_bytes": _RUNTIME_BYTES + 18 * elements,
    }


def _inputs(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    return {
        "hfq": VERSION,
        "numerics": NUMERICS,
        # Values are compared site by site, when they are read.
        "base": {
            role: {name: list(expert.info(name).shape) for name in expert.names}
            for role, expert in checkpoint.experts.items()
        },
        "recipe": dict(plan.recipe.document),
        "calibration": None if plan.calibration is None else plan.calibration.id,
    }


class Conversion:
    """One run of `quantize` into an open journal."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, journal: Journal, progress: Progress, *, hash_files: bool
    ) -> None:
        self._checkpoint, self._plan, self._journal, self._progress = checkpoint, plan, journal, progress
        self._hash_files = hash_files
        self._statistics: tuple[tuple[str, str], GroupStatistics] | None = None

    def run(self) -> None:
        """Read the base, do what is not done yet, and write the delta's four files into the partial folder."""
        started = time.perf_counter()
        identities: dict[str, Identity] = {}
        witnesses: dict[str, tuple[FileWitness, ...]] = {}
        for role, expert in self._checkpoint.experts.items():
            scan = expert.scan(self._progress, hash_files=self._hash_files)
            for tensor in scan:
                self._see(role, tensor)
                del tensor  # or it stays in memory while the next one is read
            identities[role], witnesses[role] = scan.identity, scan.witnesses
        partial = self._journal.partial
        state = self._write_state(partial / STATE)
        document = self._document(identities, state)
        validate(document, "ptq-state", DOCUMENT)
        errors: dict[str, dict[str, Any]] = {role: {} for role in self._plan.routes}
        for role, site in self._quantized():
            errors[role][site] = self._done(role, site)["error"]
        report = validate(report_document(document["id"], errors), "report", REPORT)
        provenance = provenance_document(
            document["id"],
            self._checkpoint,
            identities,
            witnesses,
            seconds=time.perf_counter() - started,
            resumed=not self._journal.is_new,
        )
        validate(provenance, "provenance", PROVENANCE)
        for name, content in ((REPORT, report), (PROVENANCE, provenance), (DOCUMENT, document)):
            write_file(partial / name, canonical_json(content) + b"\n")
        self._journal.clear()

    def _see(self, role: str, tensor: ScannedTensor) -> None:
        """Handle one tensor of the base."""
        if self._plan.calibration is not None and role in self._plan.calibrated:
            self._plan.calibration.check_tensor(role, tensor.name, tensor.bf16_sha256)
        name = tensor.name.removesuffix(".weight")
        route = self._plan.routes[role].get(name) if name != tensor.name else None
        if route is None or route.to != "quantize":
            if not bool(torch.isfinite(tensor.bf16).all()):
                self._progress.note(f"warning: {role} {tensor.name} holds NaN or infinity and is kept as it is")
            return
        done = self._journal.get(role, name)
        if done is None:
            self._convert(role, self._plan.sites[role][name], tensor)
        elif done["weight"] != tensor.bf16_sha256:
            raise ResumeMismatchError(
                "the unfinished conversion was started with another base",
                where=f"{self._journal.partial}: {role} {tensor.name}",
                expected=f"{done['weight'][:12]}…",
                found=f"{tensor.bf16_sha256[:12]}…",
                todo="use the same base, or remove the folder and start again",
            )

    def _convert(self, role: str, site: Site, tensor: ScannedTensor) -> None:
        recipe, where = self._plan.recipe, f"{role} {site.name}"
        check_finite(tensor.bf16, where)
        stages = stages_for(recipe, role, site.name)
        statistics = self._read_statistics(role, site) if stages else None
        state: dict[str, Tensor] = {}
        ops: list[dict[str, Any]] = []
        for options in stages:
            weight = transform_weight(tensor.bf16, read_ops([*ops, {"op": "qdq"}], state, site.in_features, where)[0])
            result = STAGES[options["kind"]](StageInput(site, weight, statistics, options, where))
            state.update(result.state)
            ops.append(dict(result.op))
        ops.append({"op": "qdq", **recipe.activation})
        built, activation = read_ops(ops, state, site.in_features, where)
        quantized = quantize_weight(transform_weight(tensor.bf16, built), recipe.weight, where)
        digest = site_digest(quantized, recipe.weight, state)
        restored = RestoredSite(quantized, built, activation, digest)
        inputs = _pooled_inputs(statistics)
        entry = {
            "role": role,
            "site": site.name,
            "weight": tensor.bf16_sha256,
            "digest": digest,
            "ops": ops,
            "error": measure_site(tensor.bf16, restored, inputs),
            "state": {
                name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in state.items()
            },
        }
        self._journal.add(entry, state)

    def _read_statistics(self, role: str, site: Site) -> GroupStatistics:
        assert self._plan.calibration is not None
        key = (role, site.input_group)
        if self._statistics is None or self._statistics[0] != key:
            self._statistics = (key, self._plan.calibration.read(*key))
        return self._statistics[1]

    def _quantized(self) -> Iterator[tuple[str, str]]:
        for role, routes in self._plan.routes.items():
            yield from ((role, site) for site, route in routes.items() if route.to == "quantize")

    def _done(self, role: str, site: str) -> dict[str, Any]:
        entry = self._journal.get(role, site)
        assert entry is not None
        return entry

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

    def _document(self, identities: Mapping[str, Identity], state: Mapping[str, Any]) -> dict[str, Any]:
        recipe, calibration = self._plan.recipe, self._plan.calibration
        sites: dict[str, dict[str, Any]] = {}
        for role, routes in self._plan.routes.items():
            sites[role] = {}
            for site, route in routes.items():
                found: dict[str, Any] = {"route": route.to, "rule": route.rule, "reason": route.reason}
                if route.to == "quantize":
                    done = self._done(role, site)
                    found |= {"weight": dict(recipe.weight), "ops": done["ops"], "digest": done["digest"]}
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
            "state": dict(state),
            "sites": sites,
        }
        document["id"] = content_id(document)
        return document


def _pooled_inputs(statistics: GroupStatistics | None) -> Tensor | None:
    if statistics is None or not statistics.inputs:
        return None
    return torch.cat([statistics.inputs[index] for index in sorted(statistics.inputs)])
