"""Measure the shipped model: generate clips from prompts and unseen seeds, and let the classifier say what they show.

    python benchmarks/tiny_wan/evaluate.py --out benchmarks/tiny_wan/evaluation.json

Every combination of words is asked for at most once before any is asked for again, each clip with a seed of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from classifier import classify, load_classifier
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from export import SCHEDULERS
from shapes import SLOTS, prompt_of
from torch import Tensor

from hfq.convert.tiny.pipeline import WEIGHTS, TinyWanPipeline, load_tiny_pipeline

FIRST_SEED = 600_000


def choose_labels(count: int, seed: int = 7) -> Tensor:
    """Labels int64 [count, 4]: all combinations in a fixed random order, repeated when there are not enough."""
    every = torch.tensor(list(itertools.product(*(range(len(words)) for words in SLOTS.values()))))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return every[order].repeat(math.ceil(count / len(every)), 1)[:count]


def generate(
    pipeline: TinyWanPipeline, prompts: list[str], first_seed: int, steps: int, guidance: float, batch: int
) -> Tensor:
    """Clips float32 [N, 3, 9, 24, 24] in [-1, 1]; clip i comes from seed `first_seed + i`."""
    clips = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))]
        frames = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        ).frames
        clips.append(frames.float().permute(0, 2, 1, 3, 4) * 2 - 1)
    return torch.cat(clips)


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, extra = right / count, z * z / count
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(right: Tensor) -> dict[str, Any]:
    """Accuracy with its interval per slot, for shape, colour and direction together, and for all four; bool [N, 4]."""
    columns = {slot: right[:, i] for i, slot in enumerate(SLOTS)}
    columns["shape_colour_direction"] = right[:, :3].all(dim=1)
    columns["all"] = right.all(dim=1)
    result = {}
    for name, column in columns.items():
        hits, count = int(column.sum()), len(column)
        low, high = wilson(hits, count)
        result[name] = {
            "right": hits,
            "of": count,
            "share": round(hits / count, 4),
            "wilson_95": [round(low, 4), round(high, 4)],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), help="another scheduler than the shipped one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipeline = load_tiny_pipeline(args.weights)
    if args.scheduler:
        cls = {c.__name__: c for c in (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)}[args.scheduler]
        pipeline.scheduler = cls(**SCHEDULERS[args.scheduler])
    labels = choose_labels(args.clips)
    prompts = [prompt_of(label) for label in labels]
    start = time.monotonic()
    clips = generate(pipeline, prompts, args.first_seed, args.steps, args.guidance, args.batch)
    seconds = time.monotonic() - start
    seen = classify(load_classifier(), clips)
    result = {
        "clips": args.clips,
        "first_seed": args.first_seed,
        "steps": args.steps,
        "guidance_scale": args.guidance,
        "scheduler": type(pipeline.scheduler).__name__,
        "threads": torch.get_num_threads(),
        "seconds_per_clip": round(seconds / args.clips, 3),
        "accuracy": summarise(seen == labels),
        "wrong": [
            {"asked": prompts[i], "seen": prompt_of(seen[i]), "seed": args.first_seed + i}
            for i in range(args.clips)
            if not bool((seen[i] == labels[i]).all())
        ],
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
