"""Draw docs/images/tiny-wan.png: one row per prompt, some frames of the generated clip, the prompt printed beside it.

python benchmarks/tiny_wan/contact_sheet.py --out docs/images/tiny-wan.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from evaluate import generate
from PIL import Image, ImageDraw, ImageFont
from shapes import prompt_of

from hfq.convert.tiny.pipeline import WEIGHTS, load_tiny_pipeline

FRAMES = (0, 2, 4, 6, 8)
ZOOM, GAP, TEXT_WIDTH = 4, 6, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=900_000)
    parser.add_argument("--no-labels", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    # Every word turns up about equally often; nothing is chosen by its result.
    labels = torch.tensor([[i % 4, i % 5, (i + i // 4) % 4, i % 3] for i in range(args.rows)])
    prompts = [prompt_of(label) for label in labels]
    clips = generate(load_tiny_pipeline(args.weights), prompts, args.first_seed, 40, 3.0, args.rows)
    pixels = ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    side = clips.shape[-1] * ZOOM
    left = GAP if args.no_labels else TEXT_WIDTH
    sheet = Image.new("RGB", (left + len(FRAMES) * (side + GAP), GAP + args.rows * (side + GAP)), (205, 214, 224))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, prompt in enumerate(prompts):
        top = GAP + row * (side + GAP)
        if not args.no_labels:
            draw.text((GAP, top + side // 2 - 9), prompt, fill=(20, 20, 20), font=font)
        for column, frame in enumerate(FRAMES):
            picture = Image.fromarray(pixels[row, :, frame].permute(1, 2, 0).numpy())
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * (side + GAP), top))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
