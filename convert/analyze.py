"""`hfq analyze`: figures and errors per block and per linear of a base, from one calibration and one format.

The result is a document under `hfq.analysis/1`; what it says about blocks stands under `scores`, where a recipe's
selection finds it. Nothing in it names a place, a time or a machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.atomic import publish_folder, refuse_existing, write_file
from hfq.schema.canonical import canonical_json, content_id
from hfq.schema.documents import read_document, validate
from hfq.schema.errors import UsageError

from .analysis_html import render_analysis
from .calibration import Calibration, load_calibration
from .checkpoint import Checkpoint
from .expert import Expert
from .expert_analysis import ExpertAnalysis, Formats
from .identity import same_weights
from .model_analysis import analyze_model, obstacle
from .progress import Progress, Silent
from .prompts import Prompt
from .recipe import load_recipe
from .svg_plots import require_report_extra
from .transformer import build_transformer, require_video_extra
from .weights import NUMERICS

__all__ = ["DOCUMENT", "FORMATS", "PAGE", "SCORES", "Analysis", "analyze", "formats_of", "load_analysis", "scores_of"]

DOCUMENT: Final = "analysis.json"
PAGE: Final = "analysis.html"
FORMATS: Final = ("hif8", "hif4")

SCORES: Final = (
    "act_max", "act_rms", "act_crest", "act_kurtosis", "act_channel_ratio", "act_nmse", "weight_nmse", "output_nmse",
    "isolated", "isolated_contribution", "propagated",
)  # fmt: skip
"""Names that a recipe can select blocks by. Larger always means more to lose."""

_NOT_WANTED: Final = "not asked for (--no-model-errors)"


@dataclass(frozen=True)
class Analysis:
    """A finished analysis: its folder and its document."""

    path: Path
    document: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Content hash of the document, 64 hex digits."""
        return str(self.document["id"])


def formats_of(name: str) -> Formats:
    """The quantizers of `hif8` (weights with a power-of-two scale per row) or `hif4` (profile `ref`): those of the
    preset that rounds plainly.

    Raises:
        UsageError: another name.
    """
    if name not in FORMATS:
        raise UsageError("an unknown format", expected=" or ".join(FORMATS), found=name)
    recipe = load_recipe(f"rtn-{name}")
    return Formats(dict(recipe.weight), dict(recipe.activation))


def load_analysis(path: str | os.PathLike[str]) -> Analysis:
    """An analysis from its folder, or from its document alone.

    Raises:
        MissingPathError, MalformedFileError and subclasses, WrongIdError
    """
    location = Path(path)
    folder, file = (location, location / DOCUMENT) if location.is_dir() else (location.parent, location)
    return Analysis(folder, read_document(file, "analysis"))


def analyze(
    checkpoint: Checkpoint,
    calibration: str | os.PathLike[str] | Calibration,
    *,
    out: str | os.PathLike[str],
    format: str = "hif8",
    evaluation_prompts: Sequence[Prompt] | None = None,
    model_errors: bool = True,
    progress: Progress | None = None,
) -> Analysis:
    """Analyse a base over a calibration.

    Args:
        checkpoint: from `open_checkpoint`.
        calibration: folder or Calibration, of the same base.
        out: folder to make: `analysis.json` and `analysis.html`.
        format: "hif8" or "hif4", of weights and activations.
        evaluation_prompts: prompts that the quantized model will be judged by; the calibration should have none of
            them, and the ones it has are listed.
        model_errors: also run each expert on the calibration's kept calls, where there are any and it fits in memory.

    Raises:
        OutputExistsError, MissingDependencyError, UsageError, CalibrationBaseError, WrongRoleError,
        DigestMismatchError, NonFiniteWeightError, and what reading the checkpoint raises. After any of them nothing is
        left that this call made.
    """
    shown, destination, formats = progress or Silent(), Path(out), formats_of(format)
    # Nothing is written before everything is known, so there is no unfinished work to refuse.
    refuse_existing(destination, resume=True)
    require_report_extra()
    opened = calibration if isinstance(calibration, Calibration) else load_calibration(calibration)
    try:
        document = _document(checkpoint, opened, format, formats, evaluation_prompts, model_errors, shown)
    finally:
        if opened is not calibration:
            opened.close()
    page = render_analysis(document)
    _publish(destination, {DOCUMENT: canonical_json(document) + b"\n", PAGE: page.encode()})
    return Analysis(destination, document)


def _document(
    checkpoint: Checkpoint, calibration: Calibration, name: str, formats: Formats,
    evaluation_prompts: Sequence[Prompt] | None, model_errors: bool, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    parts = {role: ExpertAnalysis(expert, calibration, formats) for role, expert in checkpoint.experts.items()}
    for part in parts.values():
        part.check()
    overlap = _overlap(calibration, evaluation_prompts)
    if overlap:
        progress.note(
            f"warning: {len(overlap)} of {len(evaluation_prompts or ())} evaluation prompts are in the calibration: "
            "what is chosen from this analysis was chosen on them"
        )
    calibration.verify_bytes()
    roots: dict[str, str] = {}
    experts: dict[str, Any] = {}
    for role, expert in checkpoint.experts.items():
        roots[role] = parts[role].run(progress)
        found = parts[role].document()
        model, skipped = _model(expert, calibration, formats, model_errors, progress)
        found |= {"model": model, "model_skipped": skipped}
        experts[role] = {**found, "scores": scores_of(found)}
    for warning in same_weights(roots.values()):
        progress.note(f"warning: {warning}")
    measured = any(found["model"] is not None for found in experts.values())
    calls = {"calls": calibration.spread.id} if measured and calibration.spread is not None else {}
    document: dict[str, Any] = {
        "schema": "hfq.analysis/1",
        "numerics": NUMERICS,
        "format": name,
        "weight": dict(formats.weight),
        "activation": dict(formats.activation),
        "base": {
            "model_type": checkpoint.architecture.model_type,
            "experts": {role: {"bf16_root": root} for role, root in roots.items()},
        },
        "calibration": {"id": calibration.id, "prompts": calibration.prompt_hashes, **calls},
        "evaluation": None if evaluation_prompts is None else {"prompts": len(evaluation_prompts), "overlap": overlap},
        "experts": experts,
    }
    document["id"] = content_id(document)
    return validate(document, "analysis", DOCUMENT)


def _overlap(calibration: Calibration, prompts: Sequence[Prompt] | None) -> list[str]:
    known = set(calibration.prompt_hashes)
    return sorted({prompt.sha256 for prompt in prompts or ()} & known)


def _model(
    expert: Expert, calibration: Calibration, formats: Formats, wanted: bool, progress: Progress
) -> tuple[dict[str, Any] | None, str | None]:
    """The errors of the whole expert, or why there are none."""
    if not wanted:
        return None, _NOT_WANTED
    calls = calibration.calls(expert.role)
    reason = obstacle(expert.architecture, calls)
    if reason is not None:
        progress.note(f"{expert.role}: no errors of whole blocks: {reason}")
        return None, reason
    require_video_extra()
    transformer, _ = build_transformer(expert, progress=progress)
    return analyze_model(transformer, expert.role, expert.architecture.num_layers, calls, formats, progress), None


def scores_of(expert: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """score -> block -> number, of the blocks of the main stack; only the scores that every block has.

    Args:
        expert: `blocks` and `model` of an expert's document.
    """
    model = (expert["model"] or {"blocks": {}})["blocks"]
    scores: dict[str, dict[str, float]] = {}
    for name in SCORES:
        values = {
            block: _score(name, entry, model.get(block))
            for block, entry in expert["blocks"].items()
            if block.startswith("blocks.")
        }
        known = {block: value for block, value in values.items() if value is not None}
        if known and len(known) == len(values):
            scores[name] = known
    return scores


def _score(name: str, block: Mapping[str, Any], model: Mapping[str, Any] | None) -> float | None:
    value: float | None
    match name:
        case "weight_nmse":
            value = block["weight"]["nmse"]
        case "output_nmse":
            value = block["output_nmse"]
        case "isolated" | "isolated_contribution" | "propagated":
            value = None if model is None else model[name]
        case _:
            value = block["activation"][name.removeprefix("act_")]
    return value


def _publish(destination: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder with its files, whole or not at all."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        for name, data in files.items():
            write_file(temporary / name, data)
        publish_folder(temporary, destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
