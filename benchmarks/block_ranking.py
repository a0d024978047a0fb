"""Does the ranking of `hfq analyze` agree with what single quantized blocks do to sampled latents?

    python benchmarks/block_ranking.py --out benchmarks/results/block-ranking.json

The tiny Wan, HiFloat4, plain rounding. *Measured*: one block of one expert is quantized at a time and whole clips are
sampled; NMSE of the final latents to those of the same prompts and seeds without quantization, geometric mean over
prompts that the calibration does not have. *Analysis*: propagated error and ranks from spread calls. *Sampled*: plain
mean over the calls that lie in the statistics, one per timestep bin and branch. About ten minutes on two cores; prints
the table of docs/analysis.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hfq.convert.analyze import formats_of
from hfq.convert.block_errors import block_errors
from hfq.convert.calibrate import CalibrationOptions, calibrate_model
from hfq.convert.call_sample import CallSample
from hfq.convert.generation import prepare_scheduler
from hfq.convert.pipelines import LoadedModel, load_model
from hfq.convert.prompts import Prompt
from hfq.convert.rounded_transformer import RoundedTransformer
from hfq.convert.tiny.pipeline import WEIGHTS

CALIBRATION: Final = (
    "a red circle moving left over a black background", "a blue square moving up over a white background",
    "a green triangle moving right over a gray background", "a yellow cross moving down over a black background",
)  # fmt: skip
EVALUATION: Final = (
    "a yellow circle moving right over a black background", "a green square moving down over a black background",
    "a red triangle moving up over a white background", "a blue cross moving left over a gray background",
)  # fmt: skip
FIRST_SEED: Final = 100

Floats = npt.NDArray[np.float64]


def spearman(left: Floats, right: Floats) -> float:
    """Rank correlation of values without ties."""
    return float(np.corrcoef(left.argsort().argsort(), right.argsort().argsort())[0, 1])


@torch.no_grad()
def sample_latent(model: LoadedModel, number: int) -> Tensor:
    """The final latent of an evaluation prompt, float64."""
    settings = model.defaults
    prepare_scheduler(model.pipeline, settings)
    found = model.pipeline(
        prompt=EVALUATION[number], negative_prompt=settings.negative_prompt, height=settings.height,
        width=settings.width, num_frames=settings.frames, num_inference_steps=settings.steps,
        guidance_scale=settings.guidance, guidance_scale_2=settings.guidance_low,
        generator=torch.Generator().manual_seed(FIRST_SEED + number), output_type="latent",
    )  # fmt: skip
    latent: Tensor = found.frames.double()
    return latent


def measure(model: LoadedModel, role: str, exact: list[Tensor]) -> Floats:
    """[blocks, prompts]: NMSE of the final latents with one block of an expert quantized."""
    formats = formats_of("hif4")
    rounded = RoundedTransformer(model.transformers[role], formats.weight, formats.activation)
    rows = []
    for block in range(len(rounded.blocks)):
        with rounded.quantized(block):
            found = [sample_latent(model, number) for number in range(len(EVALUATION))]
        rows.append([float((y - x).square().sum() / x.square().sum()) for y, x in zip(found, exact, strict=True)])
        print(f"{role} block {block}: {' '.join(f'{value:.2e}' for value in rows[-1])}", flush=True)
    return np.array(rows)


def analysed(model: LoadedModel, role: str, calls: Any) -> Floats:
    """[blocks, calls]: propagated error of every block."""
    formats = formats_of("hif4")
    found = block_errors(model.transformers[role], calls, formats.weight, formats.activation)
    return np.array([[errors.propagated for errors in of_block] for of_block in found.values()])


def main() -> None:
    """Measure, write the figures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, result = load_model(WEIGHTS), {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = [Prompt(text) for text in CALIBRATION]
        chosen = CalibrationOptions(keep_inputs=1)
        calibration, _ = calibrate_model(model, prompts, Path(folder) / "cal", model.defaults, chosen)
        exact = [sample_latent(model, number) for number in range(len(EVALUATION))]
        for role in model.transformers:
            calls = calibration.calls(role)
            table, sample = analysed(model, role, calls), CallSample(calls)
            pooled = analysed(model, role, calibration.sampled_calls(role)).mean(axis=1)
            means, ranks = np.array([sample.mean(row) for row in table]), sample.ranks(table)
            latents = measure(model, role, exact)
            truth = np.exp(np.log(latents).mean(axis=1))
            result[role] = {
                "latents": latents.tolist(), "measured": truth.tolist(), "propagated": means.tolist(), "ranks": ranks,
                "sampled": pooled.tolist(), "spearman": spearman(means, truth),
                "spearman_sampled": spearman(pooled, truth),
            }  # fmt: skip
        calibration.close()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for role, found in result.items():
        print(f"\n{role}: Spearman {found['spearman']:.2f} (sampled calls {found['spearman_sampled']:.2f})\n")
        print("| block | measured | lowest and highest prompt | propagated | rank | sampled calls |")
        print("| --- | --- | --- | --- | --- | --- |")
        for block, values in enumerate(found["latents"]):
            low, high = found["ranks"][block]
            print(
                f"| {block} | {found['measured'][block]:.1e} | {min(values):.1e} to {max(values):.1e} "
                f"| {found['propagated'][block]:.1e} | {low if low == high else f'{low}-{high}'} "
                f"| {found['sampled'][block]:.1e} |"
            )


if __name__ == "__main__":
    main()
