"""Write the package folder from a training run: original Wan 2.2 layout and names, BF16.

    python benchmarks/tiny_wan/export.py --run RUN --out convert/tiny/weights

A run whose experts are not trained yet exports the base model twice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from shapes import SLOTS
from train import BOUNDARY, CONFIG, SHIFT

from hfq.convert.keymap import to_original

SCHEDULERS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000, "shift": SHIFT},
    "UniPCMultistepScheduler": {
        "flow_shift": SHIFT,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
    },
}
ALIASES = {
    "grey": "gray",
    "circles": "circle",
    "disc": "circle",
    "disk": "circle",
    "ball": "circle",
    "squares": "square",
    "triangles": "triangle",
    "crosses": "cross",
    "plus": "cross",
    "violet": "purple",
    "leftwards": "left",
    "leftward": "left",
    "rightwards": "right",
    "rightward": "right",
    "upwards": "up",
    "upward": "up",
    "downwards": "down",
    "downward": "down",
}
# fmt: off
FILLER = (
    "a", "an", "and", "the", "this", "that", "is", "are", "it", "its", "in", "into", "on", "onto", "over", "above",
    "before", "against", "across", "to", "towards", "toward", "from", "with", "of", "moving", "moves", "move",
    "going", "goes", "go", "sliding", "slides", "slide", "flying", "flies", "drifting", "drifts", "background",
    "backdrop", "scene", "video", "clip", "one", "single", "plain", "shape", "color", "colour", "colored", "coloured",
)
# fmt: on


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export_expert(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write one expert; `weights` are the training names (`transformer.` + diffusers name), fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "transformer."
    tensors = {
        to_original(name.removeprefix(prefix)): tensor.to(torch.bfloat16).contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    save_file(dict(sorted(tensors.items())), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    heads, width = CONFIG["num_attention_heads"], CONFIG["attention_head_dim"]
    write_json(
        folder / "config.json",
        {
            "_class_name": "WanModel",
            "dim": heads * width,
            "eps": CONFIG["eps"],
            "ffn_dim": CONFIG["ffn_dim"],
            "freq_dim": CONFIG["freq_dim"],
            "in_dim": CONFIG["in_channels"],
            "model_type": "t2v",
            "num_heads": heads,
            "num_layers": CONFIG["num_layers"],
            "out_dim": CONFIG["out_channels"],
            "text_len": len(SLOTS),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), default="UniPCMultistepScheduler")
    args = parser.parse_args()
    base = load_file(args.run / "base.safetensors")
    for role in ("high_noise", "low_noise"):
        trained = args.run / f"{role}.safetensors"
        export_expert(load_file(trained) if trained.exists() else base, args.out / f"{role}_model")
    tables = {slot: base[f"text.tables.{slot}"].to(torch.bfloat16) for slot in SLOTS}
    save_file(tables, args.out / "text_encoder.safetensors", metadata={"format": "pt"})
    write_json(args.out / "vocab.json", {"slots": SLOTS, "aliases": ALIASES, "filler": sorted(FILLER)})
    for path in args.out.rglob("*.safetensors"):
        path.chmod(0o644)
    write_json(
        args.out / "pipeline.json",
        {
            "scheduler": {"class": args.scheduler, "config": SCHEDULERS[args.scheduler]},
            "boundary_ratio": BOUNDARY,
            "height": 24,
            "width": 24,
            "num_frames": 9,
            "num_inference_steps": 40,
            "guidance_scale": 3.0,
        },
    )


if __name__ == "__main__":
    main()
