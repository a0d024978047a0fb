"""Clips of the tiny Wan: what quantized ones take over BF16 ones, in turns, in one run.

    python benchmarks/generation.py --out benchmarks/results/generation.json

One thread, as `hfq demo` uses: the model's operations are too small to share. A clip is denoised, not encoded. Kernels
are loaded as everywhere: when small tensors have added up, here during calls that do not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import torch
from timing import ROUNDS, Candidate, paired

import hfq
from hfq.commands.demo import CALIBRATION_PROMPTS
from hfq.convert.provenance import machine
from hfq.convert.tiny.pipeline import WEIGHTS, load_tiny_pipeline
from hfq.schema.atomic import write_file

RECIPES: Final = ("tail-aware-hif4", "boundary-hif8")
STEPS: Final = 10


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a clip, round by round: of BF16 and of every recipe."""
    torch.set_num_threads(1)
    plain = load_tiny_pipeline()
    pipelines = {"bf16": plain}
    with tempfile.TemporaryDirectory(prefix="hfq-generation-") as folder, hfq.open_checkpoint(WEIGHTS) as base:
        calibration = hfq.calibrate(WEIGHTS, list(CALIBRATION_PROMPTS), Path(folder) / "calibration", steps=steps)
        for recipe in RECIPES:
            pipelines[recipe] = copy.deepcopy(plain)
            with hfq.quantize(base, recipe, calibration, out=Path(folder) / recipe) as delta:
                hfq.apply(pipelines[recipe], delta)

    def clip(pipeline: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipeline(CALIBRATION_PROMPTS[0], num_inference_steps=steps, generator=generator, output_type="pt").frames

    # A candidate's two calls that do not count come before all rounds.
    seconds = paired({name: Candidate(lambda p=each: clip(p)) for name, each in pipelines.items()}, rounds=rounds)
    return {"machine": machine(), "threads": 1, "steps": steps, "load_average": os.getloadavg(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    document = measure(args.rounds, args.steps)
    text = json.dumps(document, indent=1) + "\n"
    if args.out:
        write_file(args.out, text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
