"""The table of docs/results.md: every recipe on the tiny Wan, measured the same way.

    make results            # or: python benchmarks/results.py --out benchmarks/results --docs docs/results.md

For each arm: convert from one calibration, apply, then

- expert error: NMSE of the expert's output, teacher-forced (every arm gets the inputs that the BF16 run had),
- PSNR of each clip to the BF16 clip of the same prompt and seed,
- what a classifier trained on true clips sees in the clips.

Calibration and evaluation prompts are disjoint. Intervals are 95 %: bootstrap over clips for means, Wilson for shares;
differences to plain rounding are paired by clip.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "tiny_wan"))
from classifier import classify, load_classifier
from evaluate import choose_labels, generate, summarise
from shapes import prompt_of

import hfq
from hfq.convert.apply import apply
from hfq.convert.delta_inspect import describe_delta
from hfq.convert.provenance import machine, software
from hfq.convert.recipe import load_recipe
from hfq.convert.tiny.pipeline import WEIGHTS, load_tiny_pipeline
from hfq.schema.errors import CalibrationRangeError

FIRST_SEED = 900_000
CALIBRATION_PROMPTS = 16
KEPT_INPUTS = 64
FORCED_PROMPTS = 8
FORCED_EVERY = 4
RESAMPLES = 10_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """One row of the table: a recipe, or None for the base itself."""

    name: str
    recipe: dict[str, Any] | None


def arms() -> list[Arm]:
    """BF16, the plain presets, and Tail-Aware with each statistic."""
    rows = [Arm("BF16", None)]
    rows += [Arm(name, dict(load_recipe(name).document)) for name in ("rtn-hif8", "rtn-hif4")]
    for label, statistic, percentile in (
        ("max", "max", None), ("p99.99", "percentile", 99.99), ("p99.9", "percentile", 99.9),
        ("p99", "percentile", 99.0), ("rms", "rms", None),
    ):  # fmt: skip
        document = copy.deepcopy(dict(load_recipe("tail-aware-hif4").document))
        stage = document["stage"][0]
        stage["statistic"] = statistic
        stage.pop("percentile")
        if percentile is not None:
            stage["percentile"] = percentile
        rows.append(Arm(f"tail-aware-hif4, {label}", document))
    return rows


class Recorder:
    """What every forward of the BF16 experts got and gave, for a few prompts and every few steps."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[dict[str, Tensor], Tensor]]] = {"high_noise": [], "low_noise": []}
        self._seen = 0

    def hook(self, role: str) -> Callable[..., None]:
        """A forward hook that keeps both guidance branches of every `FORCED_EVERY`-th step."""

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if (self._seen // 2) % FORCED_EVERY == 0:
                kept = {name: kwargs[name].clone() for name in ("hidden_states", "timestep", "encoder_hidden_states")}
                self.calls[role].append((kept, output[0].clone()))
            self._seen += 1

        return after


def record(pipeline: Any, prompts: list[str]) -> Recorder:
    """Run prompts one by one and record."""
    recorder = Recorder()
    experts = {"high_noise": pipeline.transformer, "low_noise": pipeline.transformer_2}
    handles = [module.register_forward_hook(recorder.hook(role), with_kwargs=True) for role, module in experts.items()]
    for index, prompt in enumerate(prompts):
        pipeline(prompt, generator=torch.Generator().manual_seed(FIRST_SEED + index), output_type="latent")
    for handle in handles:
        handle.remove()
    return recorder


@torch.no_grad()
def expert_errors(pipeline: Any, recorder: Recorder) -> dict[str, Floats]:
    """role -> NMSE of each recorded call's output."""
    found = {}
    for role, module in (("high_noise", pipeline.transformer), ("low_noise", pipeline.transformer_2)):
        errors = []
        for inputs, expected in recorder.calls[role]:
            output = module(**inputs, return_dict=False)[0]
            error = (output.double() - expected.double()).square().sum() / expected.double().square().sum()
            errors.append(float(error))
        found[role] = np.asarray(errors)
    return found


def psnr(clips: Tensor, reference: Tensor) -> Floats:
    """PSNR in dB of each clip [N, 3, F, H, W] in [-1, 1]; peak to peak is 2."""
    error = (clips.double() - reference.double()).square().mean(dim=(1, 2, 3, 4))
    return (10 * torch.log10(4.0 / error.clamp(min=1e-12))).numpy()


def bootstrap(values: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile-bootstrap interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def measure(pairs: int, work: Path) -> dict[str, Any]:
    """Everything; returns the document."""
    labels = choose_labels(pairs + CALIBRATION_PROMPTS)
    held_out, calibration_labels = labels[:pairs], labels[pairs:]
    prompts = [prompt_of(label) for label in held_out]
    calibration_prompts = [prompt_of(label) for label in calibration_labels]
    assert not set(prompts) & set(calibration_prompts)
    checkpoint = hfq.open_checkpoint(WEIGHTS)
    started = time.monotonic()
    hfq.calibrate(checkpoint, calibration_prompts, work / "cal", keep_inputs=KEPT_INPUTS)
    calibration_seconds = time.monotonic() - started
    base = load_tiny_pipeline()
    recorder = record(base, prompts[:FORCED_PROMPTS])
    reference = generate(base, prompts, FIRST_SEED, 40, 3.0, batch=12)
    classifier = load_classifier()
    rows: list[dict[str, Any]] = []
    plain: Floats | None = None
    for index, arm in enumerate(arms()):
        print(arm.name, file=sys.stderr, flush=True)
        pipeline, clips = base, reference
        row: dict[str, Any] = {"arm": arm.name}
        if arm.recipe is not None:
            started = time.monotonic()
            try:
                delta = hfq.quantize(checkpoint, arm.recipe, work / "cal", out=work / f"delta{index}")
            except CalibrationRangeError as error:
                rows.append({**row, "refused": str(error)})
                continue
            row["convert_seconds"] = round(time.monotonic() - started, 2)
            described = describe_delta(delta)
            row |= {
                "delta": delta.id,
                "delta_bytes": described["delta_bytes"],
                "stored_bits_per_weight": described["stored_bits_per_weight"],
                "restored_bits_per_weight": described["restored_bits_per_weight"],
                "weight_nmse": {role: error["weight_nmse"] for role, error in described["error"].items()},
                "linear_output_nmse": {role: error["output_nmse"] for role, error in described["error"].items()},
            }
            pipeline = load_tiny_pipeline()
            apply(pipeline, delta)
            errors = expert_errors(pipeline, recorder)
            row["expert_nmse"] = {role: bootstrap(values) for role, values in errors.items()}
            clips = generate(pipeline, prompts, FIRST_SEED, 40, 3.0, batch=12)
            values = psnr(clips, reference)
            row["psnr_db"] = bootstrap(values)
            if arm.name == "rtn-hif4":
                plain = values
            if plain is not None and arm.name != "rtn-hif4":
                row["psnr_db_over_rtn_hif4"] = bootstrap(values - plain)
        row["accuracy"] = summarise(classify(classifier, clips) == held_out)
        rows.append(row)
    return {
        "pairs": pairs,
        "first_seed": FIRST_SEED,
        "calibration_prompts": CALIBRATION_PROMPTS,
        "calibration_seconds": round(calibration_seconds, 1),
        "forced_calls": {role: len(calls) for role, calls in recorder.calls.items()},
        "software": software(),
        "machine": machine(),
        "python": platform.python_version(),
        "rows": rows,
    }


def _interval(found: tuple[float, float, float] | list[float] | None, form: str) -> str:
    return "" if found is None else f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def table(document: dict[str, Any]) -> str:
    """The Markdown table."""
    lines = [
        "| arm | high-noise output NMSE | low-noise output NMSE | PSNR to BF16, dB | paired difference to rtn-hif4, dB "
        "| shape | colour | direction | all three |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in document["rows"]:
        if "refused" in row:
            lines.append(f"| {row['arm']} | refused: {row['refused']} |  |  |  |  |  |  |  |")
            continue
        errors = row.get("expert_nmse", {})
        shares = []
        for slot in ("shape", "colour", "direction", "shape_colour_direction"):
            found = row["accuracy"][slot]
            low, high = found["wilson_95"]
            shares.append(f"{100 * found['share']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]")
        cells = [
            row["arm"],
            _interval(errors.get("high_noise"), ".4f"),
            _interval(errors.get("low_noise"), ".4f"),
            _interval(row.get("psnr_db"), ".2f"),
            _interval(row.get("psnr_db_over_rtn_hif4"), "+.2f"),
            *shares,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| arm | weight NMSE, high / low | linear output NMSE, high / low | delta on disk | bits per weight, packed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in document["rows"]:
        if "delta" in row:
            weight, output = row["weight_nmse"], row["linear_output_nmse"]
            measured = output["high_noise"] is not None
            outputs = f"{output['high_noise']:.2e} / {output['low_noise']:.2e}" if measured else "not measured"
            lines.append(
                f"| {row['arm']} | {weight['high_noise']:.2e} / {weight['low_noise']:.2e} | {outputs} "
                f"| {row['delta_bytes'] / 1000:.0f} kB | {row['restored_bits_per_weight']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="prompt-seed pairs")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--docs", type=Path, help="Markdown file whose marked part is replaced")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="hfq-results-"))
    try:
        document = measure(args.pairs, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = table(document)
    print(text)
    if args.docs:
        begin, end = "<!-- table: begin -->", "<!-- table: end -->"
        page = args.docs.read_text(encoding="utf-8")
        head, _, rest = page.partition(begin)
        tail = rest.partition(end)[2]
        args.docs.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
