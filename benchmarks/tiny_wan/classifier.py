"""The judge: a small convolutional network that says what a clip shows, trained on true clips only.

    python benchmarks/tiny_wan/classifier.py            train, test on held-out clips, write classifier.safetensors

It never sees a generated clip. Noise, blur and contrast are varied in training, so that a soft clip is judged by its
shape, colour and motion and not by its softness.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from shapes import SLOTS, draw_clips, random_labels
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
HELD_OUT_SEED, HELD_OUT_CLIPS = 987_654, 4000


Triple = tuple[int, int, int]


def _stage(inputs: int, outputs: int, kernel: Triple, stride: Triple) -> list[nn.Module]:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return [nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Clips float [B, 3, 9, 24, 24] in [-1, 1] -> one tensor of logits [B, words] per slot."""

    def __init__(self) -> None:
        super().__init__()
        # The first layers keep the full resolution: a circle and a square of radius 5 differ in their corners only.
        self.body = nn.Sequential(
            *_stage(4, 16, (1, 3, 3), (1, 1, 1)),
            *_stage(16, 24, (3, 3, 3), (2, 2, 2)),
            *_stage(24, 32, (3, 3, 3), (2, 1, 1)),
            *_stage(32, 48, (3, 3, 3), (2, 2, 2)),
            nn.MaxPool3d((1, 2, 2)),
            nn.Flatten(),
            nn.Linear(48 * 2 * 3 * 3, 96),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({slot: nn.Linear(96, len(words)) for slot, words in SLOTS.items()})

    def forward(self, clips: Tensor) -> list[Tensor]:
        # The object covers a fifth of the picture at most, so the median is the background. How much a pixel differs
        # from it shows the shape in every colour.
        background = clips.flatten(2).median(dim=2).values[:, :, None, None, None]
        difference = torch.linalg.vector_norm(clips - background, dim=1, keepdim=True)
        difference = difference / difference.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
        features = self.body(torch.cat((clips, difference), dim=1))
        return [self.heads[slot](features) for slot in SLOTS]


def disturb(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Blur (sigma up to 0.8 pixels), contrast (0.8 to 1.1) and noise (sigma up to 0.15), drawn per clip."""
    count, channels, frames, height, width = clips.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    offset = torch.arange(-2.0, 3.0)
    kernel = torch.exp(-0.5 * (offset / draw(0.2, 0.8)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [B, 5]
    flat = F.pad(clips.reshape(1, count * channels * frames, height, width), (2, 2, 2, 2), mode="replicate")
    planes = kernel.repeat_interleave(channels * frames, dim=0)
    flat = F.conv2d(flat, planes[:, None, :, None], groups=planes.shape[0])
    flat = F.conv2d(flat, planes[:, None, None, :], groups=planes.shape[0])
    contrast, noise = (v[:, None, None, None, None] for v in (draw(0.8, 1.1), draw(0.0, 0.15)))
    return flat.view_as(clips) * contrast + noise * torch.randn(clips.shape, generator=generator)


def load_classifier(path: Path = WEIGHTS) -> Classifier:
    model = Classifier()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def classify(model: Classifier, clips: Tensor) -> Tensor:
    """The most likely word per slot: int64 [B, 4], in the order of `SLOTS`."""
    return torch.stack([logits.argmax(dim=1) for logits in model(clips.clamp(-1, 1))], dim=1)


def train(steps: int, batch: int, seed: int) -> Classifier:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        labels = random_labels(batch, generator)
        logits = model(disturb(draw_clips(labels, generator), generator))
        loss = torch.stack([F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)
    return model.eval()


def held_out_accuracy(model: Classifier, disturbed: bool) -> dict[str, float]:
    """Share of right answers per slot on true clips of a seed that training never uses."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    labels = random_labels(HELD_OUT_CLIPS, generator)
    clips = draw_clips(labels, generator)
    if disturbed:
        clips = disturb(clips, generator)
    right = torch.cat([classify(model, part) for part in clips.split(250)]) == labels
    return {slot: float(right[:, i].float().mean()) for i, slot in enumerate(SLOTS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = train(args.steps, args.batch, args.seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, WEIGHTS)
    model = load_classifier()
    print(json.dumps({"clean": held_out_accuracy(model, False), "disturbed": held_out_accuracy(model, True)}, indent=2))


if __name__ == "__main__":
    main()
